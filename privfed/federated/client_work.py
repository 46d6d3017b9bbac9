"""Local training of many clients at once: the seam between the round and whoever computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class LocalTraining:
    """What each client does with the model it was sent: SGD, as in Algorithm 1 of McMahan et al. (2017).

    Attributes:
        learning_rate: Of plain SGD on the mean loss of a batch.
        epochs: Passes over the client's examples.
        batch_size: Examples per step; the last batch of an epoch may be smaller.
        shuffle: Whether each epoch has an order of its own, or the one of the data.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    shuffle: bool = True


@dataclass(frozen=True, eq=False)
class ClientUpdates:
    """Updates of a chunk of clients, as they left local training: neither clipped nor weighted.

    Attributes:
        clients: Identifiers, in the order of the rows.
        deltas: New weights less old weights, ``[clients, d]``; not finite where the training diverged.
        examples: Examples of each client, ``[clients]``.
        loss_sum: Sum of the training losses over the examples seen, before each step, ``[clients]``.
        correct: Examples classified right before their step, ``[clients]``.
        seen: Examples seen over all epochs, ``[clients]``.
    """

    clients: tuple[int, ...]
    deltas: NDArray[np.float32]
    examples: NDArray[np.int64]
    loss_sum: NDArray[np.float64]
    correct: NDArray[np.float64]
    seen: NDArray[np.float64]


class ClientWork(Protocol):
    """Trains clients from the same weights; yields their updates in chunks, in the order given."""

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Train ``clients`` from ``weights`` ``[d]``.

        ``seed`` and a client's identifier fix the order of its examples, so every executor trains alike.
        """
        ...


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which examples each step of each client takes, for a chunk of clients.

    Attributes:
        rows: Row numbers in the packed population, concatenated over steps, ``[examples seen]``.
        step_bounds: Step ``s`` takes ``rows[step_bounds[s]:step_bounds[s + 1]]``, ``[steps + 1]``.
        client_bounds: Client ``i`` takes the steps from ``client_bounds[i]`` to ``client_bounds[i + 1]``.
    """

    rows: NDArray[np.int32]
    step_bounds: NDArray[np.int32]
    client_bounds: NDArray[np.int32]


def schedule(
    offsets: NDArray[np.int64], clients: Sequence[int], training: LocalTraining, seed: Sequence[int]
) -> Schedule:
    """Lay out the steps of ``clients`` whose examples are the rows ``offsets[c]:offsets[c + 1]``."""
    rows: list[NDArray[np.int64]] = []
    lengths: list[NDArray[np.int64]] = []
    steps = [0]
    for client in clients:
        first, last = int(offsets[client]), int(offsets[client + 1])
        size = last - first
        whole, rest = divmod(size, training.batch_size)
        epoch = np.array([training.batch_size] * whole + [rest] * (rest > 0), np.int64)
        rng = np.random.default_rng([*seed, client]) if training.shuffle else None
        for _ in range(training.epochs):
            order = rng.permutation(size) if rng is not None else np.arange(size)
            rows.append(first + order)
            lengths.append(epoch)
        steps.append(steps[-1] + training.epochs * len(epoch))
    none = [np.zeros(0, np.int64)]
    return Schedule(
        np.concatenate(rows or none).astype(np.int32),
        np.concatenate([[0], np.cumsum(np.concatenate(lengths or none))]).astype(np.int32),
        np.array(steps, np.int32),
    )
