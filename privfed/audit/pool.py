"""Whom membership inference judges: clients of the training and clients that it never saw, as one population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.audit.shadow_scores import Signals
from privfed.data import Population, take_clients
from privfed.data.population import as_float
from privfed.models.functional import Model, Vector

BATCH = 1000


@dataclass(frozen=True, eq=False)
class Pool:
    """Members and non-members.

    Attributes:
        population: Of both.
        is_member: By client, ``[clients]``.
        by_client: Whether clients are units as well as examples: non-members are true clients.
        origin: Where the non-members are from, and so whether they differ in membership alone.
        clients: Identifiers of the population's clients, in the training for members, ``[clients]``.
    """

    population: Population
    is_member: NDArray[np.bool_]
    by_client: bool
    origin: str
    clients: NDArray[np.int64]

    @property
    def owners(self) -> NDArray[np.int64]:
        """The client of each example, ``[n]``."""
        return np.repeat(np.arange(self.population.clients), self.population.sizes)


def make_pool(trained: Population, held_out: Population | None, *, dealt: bool = False) -> Pool:
    """Pool the clients of the training with those held out, or else with the test set.

    Test examples are dealt, shuffled, to clients as large as those of the training: shadow models need them too.
    They are clients like the training's where those were ``dealt`` theirs at random as well.
    """
    if held_out is not None:
        others, origin = held_out, "held-out clients, drawn at random from the same population"
    else:
        others, origin = _deal(trained), "the test set, taken to be a random part of the same data"
        if dealt:
            origin += ", dealt at random to clients as the training's examples were"
    both = replace(
        trained,
        features=np.concatenate([trained.features, others.features]),
        labels=np.concatenate([trained.labels, others.labels]),
        offsets=np.concatenate([trained.offsets, trained.offsets[-1] + others.offsets[1:]]),
    )
    is_member = np.arange(both.clients) < trained.clients
    kept = np.flatnonzero(both.sizes)  # clients without examples are neither
    return Pool(take_clients(both, kept), is_member[kept], dealt or held_out is not None, origin, kept)


def _deal(trained: Population) -> Population:
    order = np.random.default_rng(list(b"test examples")).permutation(len(trained.test_labels))
    sizes = trained.sizes[trained.sizes > 0]
    cuts = np.cumsum(np.resize(sizes, -(-len(order) // int(sizes.min()))))
    offsets = np.concatenate([[0], cuts[cuts < len(order)], [len(order)]]).astype(np.int64)
    return replace(
        trained, features=trained.test_features[order], labels=trained.test_labels[order], offsets=offsets
    )


def draw_halves(units: int, models: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which model trains on which unit, ``[units, models]``: random halves and their complements in turn.

    Every unit is in exactly half of the models, so that no model's absence tells anything (Carlini et al. 2022).
    """
    columns = []
    for _ in range(models // 2):
        half = rng.permutation(units) < units // 2
        columns += [half, ~half]
    return np.stack(columns, axis=1) if columns else np.zeros((units, 0), bool)


def signals_of(model: Model, population: Population) -> Callable[[Vector], Signals]:
    """A function ``weights [d] -> signals [n]`` of every example of every client, traced once."""

    @tf.function(reduce_retracing=True)
    def batch(weights, x, y):  # type: ignore[no-untyped-def]  # TensorFlow traces it; its types are tensors'
        logits = tf.cast(model.logits(model.unflatten(weights), x), tf.float64)
        own = tf.one_hot(y, model.classes, on_value=True, off_value=False)
        right = tf.gather(logits, y, batch_dims=1)
        wrong = tf.reduce_logsumexp(tf.where(own, tf.constant(-np.inf, tf.float64), logits), 1)
        return right - tf.reduce_logsumexp(logits, 1), right - wrong

    def signals(weights: Vector) -> Signals:
        vector = tf.constant(weights)
        parts = []
        for start in range(0, len(population.labels), BATCH):
            rows = slice(start, start + BATCH)
            x = tf.constant(as_float(population.features[rows]))
            parts.append([part.numpy() for part in batch(vector, x, tf.constant(population.labels[rows]))])
        return Signals(*(np.concatenate(side) for side in zip(*parts, strict=True)))

    return signals


def by_client(signals: Signals, population: Population) -> Signals:
    """Mean over each client's examples, in one model or ``[n, models]``; every client has some."""

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.add.reduceat(values, population.offsets[:-1], axis=0)
        return (sums.T / population.sizes).T

    return Signals(mean(signals.log_confidence), mean(signals.log_odds))
