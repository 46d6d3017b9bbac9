"""A mechanism as it is, under the eyes of the auditor, who scores canaries and measures what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.audit.canaries import CanaryClients
from privfed.audit.notes import Notes, Tally, sketched_coordinates
from privfed.federated.cohorts import Cohort
from privfed.federated.server_update import ServerOptimizer
from privfed.privacy.clipping import Contribution, clip_by_l2, l2_norm
from privfed.privacy.mechanisms import AdaptiveClipping, Mechanism, Terms
from privfed.privacy.mechanisms import State as MechanismState
from privfed.privacy.randomness import RandomSource

Vector = NDArray[np.float32]
Real = NDArray[np.float64]

MEASURED_EACH_ROUND = 4
"""Clients' contributions that are decoded in a round, beside canaries', where clients bring noise."""


@dataclass(frozen=True, eq=False)
class ServerStep:
    """What the server is to do with a noised sum, for the auditor to do again.

    Attributes:
        optimizer: The server's.
        rate: Factor on its learning rate, by round.
        divisor: Of the sum.
    """

    optimizer: ServerOptimizer
    rate: Callable[[int], float]
    divisor: float


@dataclass(eq=False)
class _Seen:
    """What came by in the round that is running.

    Attributes:
        sampled: Its cohort.
        weights: Those that it began at, ``[d]``.
        canary: Whose update comes next; ``None`` for a client.
        arrived: Canaries in the sum.
        survivors: Updates in the sum.
        lengths: Of clipped updates, over the clip norm.
        remainders: Of noisy contributions along their updates, in standard deviations.
        own: Inner products of canaries with their noisy contributions, over the clip norm.
        clipped: Sum of the updates as the auditor clips them, where nobody else knows it, ``[d]``.
    """

    sampled: Cohort | None = None
    weights: Vector | None = None
    canary: int | None = None
    arrived: list[int] = field(default_factory=list)
    survivors: int = 0
    lengths: list[float] = field(default_factory=list)
    remainders: list[float] = field(default_factory=list)
    own: dict[int, float] = field(default_factory=dict)
    clipped: Real | None = None


@dataclass(eq=False)
class Watched:
    """A mechanism, with the auditor's notes behind its state.

    The auditor has every sum before the noise and after it, which no observer has: more than all later models
    tell, and what the claim is about.

    Attributes:
        inner: The mechanism.
        canaries: Who they are.
        layers: Sizes of the model's variables.
        rounds: Of the training, at most.
        step: What the server does with noised sums.
    """

    inner: Mechanism
    canaries: CanaryClients
    layers: Sequence[int]
    rounds: int
    step: ServerStep

    def __post_init__(self) -> None:
        self._seen = _Seen()
        self.sketched = sketched_coordinates(self.layers, (self.canaries.first, *b"sketch"))
        self._starts = np.cumsum([0, *self.layers[:-1]])
        self._inner_arrays = len(self.inner.initialize(sum(self.layers)))

    def __getattr__(self, name: str) -> Any:
        """Whatever does not concern the state."""
        if name == "inner":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def sampled(self, cohort: Cohort) -> None:
        """The cohort of the round that follows."""
        self._seen = _Seen(sampled=cohort)

    def begins(self, weights: Vector) -> None:
        """See ``Auditor``."""
        self._seen = _Seen(sampled=self._seen.sampled, weights=weights)

    def sends(self, canary: int | None) -> None:
        """See ``Auditor``."""
        self._seen.canary = canary

    def summed(self, survivors: int, canaries: Sequence[int], longest: float) -> None:
        """See ``Auditor``."""
        self._seen.survivors, self._seen.arrived = survivors, list(canaries)
        if longest:
            clip = self.clip_norm_in(None)
            self._seen.lengths.append(longest / clip)

    def clip_norm_in(self, state: MechanismState | None) -> float:
        """L2 bound of an update: it changes from round to round where it follows a quantile."""
        if isinstance(self.inner, AdaptiveClipping) and state is not None:
            return float(state[0])
        return float(self.inner.clip_norm)  # type: ignore[attr-defined]  # every mechanism that claims anything has it

    def notes(self, state: MechanismState) -> Notes:
        """The auditor's part of a state."""
        return Notes.split(state, self._inner_arrays)

    def initialize(self, dimension: int) -> MechanismState:
        """The mechanism's, and empty notes."""
        notes = Notes.empty(
            self.canaries.count,
            len(self.layers),
            len(self.sketched),
            self.rounds,
            self.canaries.first + self.canaries.count,
            self.step.optimizer.initialize(dimension),
            history=self.inner.whole_run,
        )
        return (*self.inner.initialize(dimension), *notes.as_arrays())

    def _own(self, state: MechanismState) -> MechanismState:
        return state[: self._inner_arrays]

    def bound(self, state: MechanismState) -> float | None:
        """See ``Mechanism``."""
        return self.inner.bound(self._own(state))

    def flat_clip(self, state: MechanismState, dimension: int) -> float | None:
        """See ``Mechanism``."""
        return self.inner.flat_clip(self._own(state), dimension)

    def stddev(self, state: MechanismState, survivors: float) -> float:
        """See ``Mechanism``."""
        return self.inner.stddev(self._own(state), survivors)

    def on_client(
        self, state: MechanismState, update: Vector, slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """The mechanism's, measured."""
        seen, canary = self._seen, self._seen.canary
        sent = self.inner.on_client(self._own(state), update, slack, terms, source)
        seen.survivors += 1
        if canary is not None:
            seen.arrived.append(canary)
        clip = self.clip_norm_in(state)
        if not self.inner.client_noise:
            seen.lengths.append(float(sent.factor) * l2_norm(sent.unscaled[: len(update)]) / clip)
            return sent
        clipped = clip_by_l2(update, clip).vector.astype(np.float64)
        seen.clipped = clipped if seen.clipped is None else seen.clipped + clipped
        if canary is not None or seen.survivors <= MEASURED_EACH_ROUND:
            self._measure_noisy(self.inner.as_update(sent.vector, len(update), terms), clipped, clip)
        return sent

    def _measure_noisy(self, sent: Real, clipped: Real, clip: float) -> None:
        """A contribution ``[d]`` less the clipped update in it is noise, and noise knows no direction."""
        seen, length = self._seen, float(np.linalg.norm(clipped))
        if length > 0:
            along = float((sent - clipped) @ clipped) / length
            seen.remainders.append(along / self.inner.client_noise)
        if seen.canary is not None:
            seen.own[seen.canary] = float(sent @ self.canaries.directions[seen.canary]) / clip

    def on_server(
        self, state: MechanismState, total: Real, terms: Terms, source: RandomSource
    ) -> tuple[Real, MechanismState]:
        """The mechanism's, and what the auditor notes of the round."""
        own, seen = self._own(state), self._seen
        noised, after = self.inner.on_server(own, total, terms, source)
        notes = self.notes(state).copied()
        dimension = sum(self.layers)
        clear = self.inner.as_update(total, dimension, terms)
        stddev = self.inner.stddev(own, seen.survivors)
        # Where clients bring noise nobody has the sum without it, save the auditor, who clipped the same updates.
        without = clear
        if self.inner.client_noise:
            without = np.zeros(dimension) if seen.clipped is None else seen.clipped
        if stddev:
            self._note_noise(notes, (noised - without) / stddev, terms)
        # A round that is aborted still draws its row of correlated noise, over nothing, and nobody sees it.
        shown = bool(not self.inner.whole_run or not seen.survivors or clear.any())
        if shown:
            self._note_scores(notes, clear, noised, self.clip_norm_in(own), stddev, terms)
        self._note_cohort(notes, terms)
        notes.clip[:] = (
            notes.clip[0] + len(seen.lengths),
            max(notes.clip[1], *seen.lengths, 0.0),
            notes.clip[2] + len(seen.remainders),
            notes.clip[3] + sum(seen.remainders),
        )
        if shown:
            notes = self._redone(notes, noised, terms)
        self._seen = _Seen()
        return noised, (*after, *notes.as_arrays())

    def _note_noise(self, notes: Notes, noise: Real, terms: Terms) -> None:
        notes.squares[:] += np.add.reduceat(np.square(noise), self._starts)
        notes.sketch[terms.round - 1] = noise[self.sketched]

    def _note_cohort(self, notes: Notes, terms: Terms) -> None:
        seen = self._seen
        notes.survivors[terms.round - 1] = seen.survivors
        if seen.sampled is not None:
            notes.sizes[terms.round - 1] = len(seen.sampled.clients)
            notes.counts[list(seen.sampled.clients)] += 1

    def _note_scores(
        self, notes: Notes, clear: Real, noised: Real, clip: float, stddev: float, terms: Terms
    ) -> None:
        """Inner products of all canaries, where they were in the sum and where they were not."""
        c, q, seen, tally = self.canaries, self.canaries.rate, self._seen, Tally(notes.tally)
        length = float(np.linalg.norm(noised))
        both = c.directions @ np.stack([noised, clear], axis=1).astype(np.float32)
        in_noised, in_clear = both.astype(np.float64).T / clip
        arrived, there = np.zeros((2, c.count), bool)
        arrived[seen.arrived] = True
        there[seen.arrived] = c.included[seen.arrived]
        # The variance of a random direction's inner product: noise and all updates together.
        variance = max(length**2 / len(noised) / clip**2, 1e-300)
        ratio = (2 * in_noised - 1) / (2 * variance)
        tally.rounds[:] += 1
        tally.likelihood[:] += np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + ratio)
        tally.known_likelihood[:] += np.where(arrived, ratio, 0.0)
        np.maximum(tally.largest_cosine, in_noised * (clip / max(length, 1e-300)), out=tally.largest_cosine)
        np.maximum(tally.largest_in_sum, in_clear, out=tally.largest_in_sum)
        tally.participations[:] += there
        in_noise = in_noised * (clip / stddev if stddev else math.inf)
        _add(tally.with_sum, tally.with_squares, np.where(there, in_noised, 0.0))
        _add(tally.without_sum, tally.without_squares, np.where(there, 0.0, in_noise))
        if self.inner.whole_run:
            notes.scores[terms.round - 1], notes.drawn[terms.round - 1] = in_noised, arrived
        if seen.own:
            self._note_own(tally, clip)

    def _note_own(self, tally: Tally, clip: float) -> None:
        """Contributions that somebody receives one by one, all of whose noise is the canary's."""
        who, own = np.array(list(self._seen.own)), np.array(list(self._seen.own.values()))
        there, spread = self.canaries.included[who], self.inner.client_noise / clip
        tally.own_rounds[who] += 1
        tally.own_likelihood[who] += (2 * own - 1) / (2 * spread**2)
        for name, values in (("with", np.where(there, own, 0.0)), ("without", np.where(there, 0.0, own / spread))):
            getattr(tally, f"own_{name}_sum")[who] += values
            getattr(tally, f"own_{name}_squares")[who] += np.square(values)

    def _redone(self, notes: Notes, noised: Real, terms: Terms) -> Notes:
        """The server's step by the auditor; the next round's weights must be what it gives."""
        if (weights := self._seen.weights) is None:
            return notes
        checked = notes.steps if not len(notes.expected) else deviation(notes, weights)
        update = (noised[: len(weights)] / self.step.divisor).astype(np.float32)
        state, expected = self.step.optimizer.step(notes.server, weights, -update, self.step.rate(terms.round))
        return replace(notes, steps=checked, server=state, expected=np.stack([weights, expected]).reshape(-1))


def deviation(notes: Notes, weights: Vector) -> Real:
    """``Notes.steps`` after the model that the last round led to is known: ``weights`` ``[d]``."""
    before, expected = notes.expected.reshape(2, -1).astype(np.float64)
    step, taken = expected - before, weights.astype(np.float64) - before
    length = max(float(np.linalg.norm(step)), 1e-300)
    off = float(np.linalg.norm(taken - step)) / length
    if off <= notes.steps[1]:
        return np.array([notes.steps[0] + 1, *notes.steps[1:]])
    return np.array([notes.steps[0] + 1, off, float(taken @ step) / length**2])


def _add(sums: Real, squares: Real, values: Real) -> None:
    sums += values
    squares += np.square(values)
