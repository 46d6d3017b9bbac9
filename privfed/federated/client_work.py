"""Local training of many clients at once: the seam between the round and whoever computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.clipping import clip_by_l2, l2_norm
from privfed.privacy.errors import NonFiniteUpdateError
from privfed.privacy.mechanisms import ExampleNoise
from privfed.privacy.randomness import RandomSource

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class LocalTraining:
    """What each client does with the model it was sent: SGD, as in Algorithm 1 of McMahan et al. (2017).

    With ``g`` the gradient of a batch's mean loss at ``w``, and ``w0`` the weights sent, a step is
    ``v = momentum·v + g + proximal·(w - w0) + correction``, ``w -= learning_rate·v``; ``v`` begins at zero in each
    round, and ``correction`` is the client's, the same in all steps of a round.

    Attributes:
        learning_rate: Of a step, before the round's factor.
        epochs: Passes over the client's examples.
        batch_size: Examples per step; the last batch of an epoch may be smaller.
        shuffle: Whether each epoch has an order of its own, or the one of the data.
        steps: Steps of a client that has examples, in as many passes as they take, in place of ``epochs``.
        momentum: Of the client's steps, in [0, 1).
        proximal: The μ of FedProx (Li et al. 2020, Algorithm 2), 0 or more.
        corrected: Whether rounds bring ``Conditions.corrections``.
        example: DP-SGD. Every client, even one without examples, takes ``steps`` steps. Each draws its examples,
            and follows ``(sum of their clipped gradients + noise) / batch_size``: the divisor tells nothing.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    shuffle: bool = True
    steps: int | None = None
    momentum: float = 0.0
    proximal: float = 0.0
    corrected: bool = False
    example: ExampleNoise | None = None

    def steps_of(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps of clients with so many examples."""
        if self.steps is None:
            return self.epochs * -(-sizes // self.batch_size)
        if self.example is not None:
            return np.full_like(sizes, self.steps)
        return np.where(sizes > 0, self.steps, 0)

    def seen(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Examples in those steps, each as often as it is taken; on average where they are drawn."""
        if self.steps is None:
            return (self.epochs * sizes).astype(np.float64)
        if self.example is not None:
            return self.steps * self.example.rate * sizes
        in_pass = np.maximum(1, -(-sizes // self.batch_size))
        whole, rest = self.steps // in_pass, self.steps % in_pass
        return np.where(sizes > 0, whole * sizes + np.minimum(sizes, rest * self.batch_size), 0.0)

    def takes_one_step(self, largest: int) -> bool:
        """Whether a client of ``largest`` examples takes one step over all of them."""
        return largest <= self.batch_size and (self.epochs if self.steps is None else self.steps) == 1


@dataclass(frozen=True, eq=False)
class Conditions:
    """What local training is given anew in each round, beside the weights.

    Attributes:
        rate_factor: On the learning rate.
        corrections: ``clients -> [clients, d]``, added to each gradient; ``None`` for none.
        source: A client's randomness, for DP-SGD.
    """

    rate_factor: float = 1.0
    corrections: Callable[[Sequence[int]], NDArray[np.float32]] | None = None
    source: Callable[[int], RandomSource] | None = None


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


@dataclass(frozen=True, eq=False)
class ClippedSum:
    """What a cohort's updates come to when nobody needs single ones.

    Attributes:
        total: Sum of the clipped updates of all clients whose update is finite, ``[d]``.
        clients: Identifiers, in the order asked for; the arrays below follow it, ``[clients]``.
        norms: L2 norm of each update before the clip; not finite where the update is not.
        finite: Whether the update is finite, and so in the sum.
        loss_sum: Sum of the training losses over the examples seen, before each step.
        correct: Examples classified right before their step.
        seen: Examples seen over all epochs.
    """

    total: NDArray[np.float64]
    clients: tuple[int, ...]
    norms: NDArray[np.float64]
    finite: NDArray[np.bool_]
    loss_sum: NDArray[np.float64]
    correct: NDArray[np.float64]
    seen: NDArray[np.float64]


class Fold(Protocol):
    """Takes updates in, in any order.

    It begins empty and can be pickled: where clients train elsewhere, copies take them in there.
    """

    @property
    def apart(self) -> bool:
        """Whether it grows with every update, where it else is as large as one."""
        ...

    def take(self, chunk: ClientUpdates) -> None:
        """Take updates in."""
        ...

    def taken(self) -> Any:
        """What was taken in, for another's ``merge``; can be pickled."""
        ...

    def merge(self, taken: Any) -> None:
        """Take in what a copy has ``taken``."""
        ...


class ClientWork(Protocol):
    """Trains clients from the same weights; who inherits has plain ``each``, ``fold`` and ``clipped_sum``."""

    def under(self, conditions: Conditions) -> ClientWork:
        """The same work in a round with these conditions; what is inherited serves work that no round changes."""
        return self

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Train ``clients`` from ``weights`` ``[d]``; yields their updates in chunks, in the order given.

        ``seed`` and a client's identifier fix the order of its examples, so every executor trains alike.
        """
        ...

    def each(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        consume: Callable[[ClientUpdates], None],
    ) -> None:
        """Train ``clients`` likewise, and hand their updates to ``consume`` as they are made, in any order.

        It is called from this thread alone.
        """
        for chunk in self(weights, clients, seed):
            consume(chunk)

    def fold(self, weights: Vector, clients: Sequence[int], seed: Sequence[int], fold: Fold) -> None:
        """Train ``clients`` likewise, and have ``fold`` take their updates in, where they are made."""
        self.each(weights, clients, seed, fold.take)

    def clipped_sum(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        clip_norm: float | None,
        *,
        exact: bool = False,
    ) -> ClippedSum:
        """Train ``clients`` likewise, clip each update to an L2 norm of ``clip_norm``, and add them up.

        Memory does not grow with the cohort. Every contribution to the sum is at most ``clip_norm`` long, rounding
        included. ``exact`` asks for contributions that are added in float64 one by one, where a faster way would
        add up some of them in float32 first.
        """
        return clip_and_sum(self(weights, clients, seed), clip_norm, len(weights))


def clip_and_sum(chunks: Iterable[ClientUpdates], clip_norm: float | None, dimension: int) -> ClippedSum:
    """The clipped sum of single updates ``[dimension]``, as they come."""
    total = np.zeros(dimension)
    parts = list[ClientUpdates]()
    norms = list[float]()
    for chunk in chunks:
        for delta in chunk.deltas:
            try:
                vector = delta if clip_norm is None else clip_by_l2(delta, clip_norm).vector
                norms.append(l2_norm(delta))
            except NonFiniteUpdateError:
                norms.append(math.nan)
            if math.isfinite(norms[-1]):
                total += vector
        parts.append(replace(chunk, deltas=chunk.deltas[:0]))
    return ClippedSum(
        total,
        tuple(client for part in parts for client in part.clients),
        np.array(norms, np.float64),
        np.isfinite(norms),
        *(
            np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0)])
            for name in ("loss_sum", "correct", "seen")
        ),
    )


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
    offsets: NDArray[np.int64],
    clients: Sequence[int] | NDArray[np.int64],
    training: LocalTraining,
    seed: Sequence[int],
) -> Schedule:
    """Lay out the steps of ``clients`` whose examples are the rows ``offsets[c]:offsets[c + 1]``.

    A client's order in each epoch follows from ``seed`` and its identifier. Where one step takes all of a client's
    examples their order means nothing, and it stays the one of the data.
    """
    ids = np.asarray(clients, np.int64)
    first, sizes = offsets[ids], offsets[ids + 1] - offsets[ids]
    in_pass, steps = -(-sizes // training.batch_size), training.steps_of(sizes)
    passes = np.full(len(ids), training.epochs)
    if training.steps is not None:
        passes = -(-steps // np.maximum(1, in_pass))
    # A pass of a client is a segment of the rows; with a fixed number of steps the last one may end early.
    owner = np.repeat(np.arange(len(ids)), passes)
    segment_steps, left = in_pass[owner], sizes[owner]
    ends_client = (np.cumsum(passes) - 1)[passes > 0]
    segment_steps[ends_client] = (steps - (passes - 1) * in_pass)[passes > 0]
    segment_size = np.minimum(left, segment_steps * training.batch_size)
    ends = np.cumsum(segment_size)
    rows = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first[owner] - ends + segment_size, segment_size)
    if training.shuffle:
        _shuffle(rows, ids, sizes, passes, segment_size, training.batch_size, seed)
    lengths = np.full(segment_steps.sum(), training.batch_size)
    present = segment_steps > 0
    last_steps = np.cumsum(segment_steps[present]) - 1
    lengths[last_steps] = (segment_size - (segment_steps - 1) * training.batch_size)[present]
    return Schedule(rows.astype(np.int32), _bounds(lengths), _bounds(steps))


def drawn_schedule(
    offsets: NDArray[np.int64],
    clients: Sequence[int] | NDArray[np.int64],
    training: LocalTraining,
    sources: Sequence[RandomSource],
) -> Schedule:
    """The steps of ``clients`` by DP-SGD: each takes the examples that it draws, often fewer or more, or none."""
    assert training.example is not None  # asked for no other training
    assert training.steps is not None
    rows, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for client, source in zip(clients, sources, strict=True):
        first, last = offsets[client], offsets[client + 1]
        taken = training.example.batches(source, training.steps, last - first)
        rows.append(first + np.nonzero(taken)[1])
        lengths.append(taken.sum(1))
    bounds = np.arange(len(clients) + 1, dtype=np.int32) * training.steps
    return Schedule(np.concatenate(rows).astype(np.int32), _bounds(np.concatenate(lengths)), bounds)


def _shuffle(
    rows: NDArray[np.int64],
    clients: NDArray[np.int64],
    sizes: NDArray[np.int64],
    passes: NDArray[np.int64],
    segment_size: NDArray[np.int64],
    batch_size: int,
    seed: Sequence[int],
) -> None:
    """Permute the rows of each segment in place, or draw them where it does not hold all of a client's."""
    starts, segments = np.cumsum(segment_size) - segment_size, np.cumsum(passes) - passes
    for i in np.flatnonzero(sizes > batch_size):
        rng = np.random.default_rng([*seed, int(clients[i])])
        for segment in range(segments[i], segments[i] + passes[i]):
            start, size = starts[segment], segment_size[segment]
            rows[start : start + size] = rows[start] + rng.permutation(sizes[i])[:size]


def _bounds(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    bounds = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    return bounds
