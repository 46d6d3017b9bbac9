"""Each server optimizer against ``tff.learning.optimizers`` over many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privfed.federated.server_update import OPTIMIZERS, ServerOptimizer, adagrad, adam, sgd, yogi

CASES: dict[str, tuple[ServerOptimizer, Callable[[Any], Any]]] = {
    "sgd": (sgd(0.7), lambda o: o.build_sgdm(0.7)),
    "sgd with momentum": (sgd(0.7, 0.9), lambda o: o.build_sgdm(0.7, momentum=0.9)),
    "adagrad": (adagrad(0.1), lambda o: o.build_adagrad(0.1)),
    "adam": (adam(0.01), lambda o: o.build_adam(0.01)),
    "yogi": (yogi(0.01), lambda o: o.build_yogi(0.01)),
}


@pytest.mark.parametrize("name", CASES)
def test_same_weights_as_tff_after_fifty_steps(name: str) -> None:
    import tensorflow as tf
    import tensorflow_federated as tff

    ours, build = CASES[name]
    theirs = build(tff.learning.optimizers)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=17).astype(np.float32)
    reference = tf.constant(weights)
    state = ours.initialize(17)
    tff_state = theirs.initialize(tf.TensorSpec([17], tf.float32))
    for step in range(50):
        gradient = rng.normal(scale=10.0 ** (step % 5 - 2), size=17).astype(np.float32)
        gradient[step % 17] = 0
        state, weights = ours.step(state, weights, gradient)
        tff_state, reference = theirs.next(tff_state, reference, tf.constant(gradient))
        np.testing.assert_allclose(weights, reference.numpy(), rtol=2e-5, atol=2e-6)
        assert weights.dtype == np.float32


def test_every_registered_optimizer_is_held_to_tff() -> None:
    assert {name.split()[0] for name in CASES} == set(OPTIMIZERS)


def test_only_a_step_without_memory_is_linear() -> None:
    assert sgd(0.5).linear_scale == 0.5
    assert all(o.linear_scale is None for o in (sgd(0.5, 0.9), adam(0.1), adagrad(0.1), yogi(0.1)))
