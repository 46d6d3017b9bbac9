"""Real images and text, real local SGD, and views built from both, without the rest of the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from attacks import Imprint
from privfed.data.text import CHARACTER_TOKENS, character_ids, windows
from privfed.models.functional import Model, cross_entropy
from privfed.models.zoo import ZOO
from privfed.transcript import Kind, Observation, Observer, Plan, View

PLAN = Plan(
    learning_rate=0.1,
    local_epochs=1,
    batch_size=8,
    server_scale=1.0,
    clip_norm=None,
    noise_stddev=0.0,
    divisor=None,
    mode="off",
)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16.0).reshape(-1, 8, 8, 1), labels.astype(np.int64)


TEXT = b"Shall I compare thee to a summer's day? Thou art more lovely and more temperate"
WINDOW = 8


@lru_cache(maxsize=1)
def _text() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    features, labels = windows(character_ids(TEXT), WINDOW)
    return features[WINDOW:] / 255.0, labels[WINDOW:].astype(np.int64)


@dataclass(frozen=True)
class Lab:
    """Trains clients on digits, or a text model on text, and shows an observer what came of it."""

    model: Model
    weights: NDArray[np.float32]
    plan: Plan = PLAN

    @property
    def images(self) -> NDArray[np.float64]:
        return _digits()[0] if self.model.embedding is None else _text()[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        return _digits()[1] if self.model.embedding is None else _text()[1]

    def update(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """New weights less old weights after local SGD on ``rows`` of the digits, ``[d]``, before clipping."""
        start = self.weights.astype(np.float64)
        weights = start.copy()
        for _ in range(self.plan.local_epochs):
            for first in range(0, len(rows), self.plan.batch_size):
                batch = list(rows[first : first + self.plan.batch_size])
                weights = weights - self.plan.learning_rate * self.gradient(
                    weights, self.images[batch], self.labels[batch]
                )
        return weights - start

    def gradient(
        self, weights: NDArray[Any], images: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Of the mean loss, in double precision: ``[d]``."""
        weights = weights.astype(np.float64)
        variables = [tf.constant(part) for part in self.model.unflatten(weights)]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            logits = self.model.logits(variables, tf.constant(images))
            loss = cross_entropy(logits, tf.constant(labels))
        return np.concatenate([part.numpy().reshape(-1) for part in tape.gradient(loss, variables)])

    def observe(
        self, rows: Sequence[int], vector: NDArray[np.float64] | None = None, **changes: Any
    ) -> Observation:
        """The update on ``rows`` (or ``vector`` instead of it) as the server sees it; ``clients`` are the rows."""
        vector = self.update(rows) if vector is None else vector
        seen = Observation(1, Kind.CLIENT_UPDATE, self.weights, vector, 1.0, tuple(rows))
        return replace(seen, **changes)

    def view(self, *observations: Observation, observer: Observer = Observer.SERVER) -> View:
        return View(observer, self.plan, self.model, observations)

    def truth(self, observation: Observation) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """What ``observe`` put into an observation."""
        rows = list(observation.clients)
        return self.images[rows], self.labels[rows]


@lru_cache(maxsize=8)
def _model(name: str) -> tuple[Model, NDArray[np.float32]]:
    if name == "imprinted":
        agreed, weights = _model("mlp")
        crafted = Imprint(bins=64).craft(agreed, weights, _digits()[0])
        return crafted.model, crafted.weights
    text = name == "transformer"
    model = ZOO[name]((WINDOW,), CHARACTER_TOKENS, width=64) if text else ZOO[name]((8, 8, 1), 10)
    return model, model.initial_vector(3)


@pytest.fixture(scope="session")
def lab() -> Callable[..., Lab]:
    """``lab("lenet", local_epochs=2)``: a lab with a model of the zoo and changes to the plan."""

    def build(name: str = "softmax", **plan: Any) -> Lab:
        return Lab(*_model(name), replace(PLAN, **plan))

    return build


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """These graphs are too small to split; like the local executor, one thread an operation."""
    # Where another test has started TensorFlow already, it stays as it is.
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)


@pytest.fixture(scope="session")
def mean_image() -> NDArray[np.float64]:
    return np.asarray(_digits()[0].mean(axis=0))
