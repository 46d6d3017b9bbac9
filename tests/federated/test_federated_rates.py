"""Learning-rate schedules: known values, and what a round makes of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from privfed.federated.rates import RateSchedule
from privfed.federated.server_update import OPTIMIZERS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"decay": "exponential", "factor": 0.5, "every": 1}, [1, 0.5, 0.25, 0.125, 0.0625]),
        ({"decay": "exponential", "factor": 0.5}, [0.5 ** (t / 5) for t in range(5)]),
        ({"decay": "step", "factor": 0.1, "every": 2}, [1, 1, 0.1, 0.1, 0.01]),
        ({"decay": "cosine", "factor": 0.2}, [0.2 + 0.4 * (1 + math.cos(math.pi * t / 5)) for t in range(5)]),
        ({"warmup": 2}, [0.5, 1, 1, 1, 1]),
        ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ({"warmup": 2, "decay": "step", "factor": 0.5, "every": 1}, [0.5, 1, 1, 0.5, 0.25]),
        ({"warmup": 5, "decay": "cosine"}, [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_factors_of_five_rounds(options: dict[str, Any], expected: list[float]) -> None:
    schedule = RateSchedule(5, **options)
    assert [schedule(number) for number in range(1, 6)] == pytest.approx(expected)
    assert schedule.constant == (options == {})


@pytest.mark.parametrize("decay", ["exponential", "cosine"])
def test_decays_fall_and_stay_positive(decay: Any) -> None:
    factors = [RateSchedule(50, decay, 0.01, warmup=5)(number) for number in range(6, 80)]
    assert factors[0] == 1
    assert all(a >= b > 0 for a, b in itertools.pairwise(factors))
    assert factors[44] < 0.02


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_on_the_servers_rate_is_a_smaller_rate(name: str) -> None:
    rng, full, half = np.random.default_rng(0), OPTIMIZERS[name](0.2), OPTIMIZERS[name](0.1)
    weights = other = rng.normal(size=9).astype(np.float32)
    state, second = full.initialize(9), half.initialize(9)
    for _ in range(4):
        gradient = rng.normal(size=9).astype(np.float32)
        state, weights = full.step(state, weights, gradient, 0.5)
        second, other = half.step(second, other, gradient)
    np.testing.assert_allclose(weights, other, rtol=1e-6)
