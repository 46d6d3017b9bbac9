"""Canary clients in the very training that is audited: who they are, how they take part, and what is kept of them.

A canary is a client that nobody is: a fair coin, known to the auditor alone, says whether it exists. Those that
do are sampled, clipped, encoded, masked and noised as every client; they are compared with those that do not.

* ``update``: sends one random direction in every round (Andrew et al. 2023), far longer than the clip norm, so
  that a missing clip shows as well. In many dimensions such directions disturb neither each other nor the model.
* ``input``: trains as everybody does, on random images with random labels; its direction is the update that it
  would send in the first round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.audit.one_shot import RoundScores
from privfed.data import Population
from privfed.errors import SettingError
from privfed.federated.client_work import ClientUpdates, ClientWork, ClippedSum, Conditions
from privfed.federated.cohorts import Cohort
from privfed.privacy.mechanisms import Mechanism, Terms
from privfed.privacy.mechanisms import State as MechanismState
from privfed.privacy.randomness import RandomSource

Vector = NDArray[np.float32]
Real = NDArray[np.float64]

LENGTH = 100.0
"""Of a canary's update before the clip, over the clip norm."""
LARGEST_SHARE = 0.25
"""Norm of a round's canaries over the norm of its noise: above, they would act as noise (variance + 6 %)."""
LARGEST_BYTES = 1 << 30
"""Of all directions together, which are held in memory."""


@dataclass(frozen=True, eq=False)
class CanaryClients:
    """The canaries of one training.

    Attributes:
        kind: ``update`` or ``input``.
        first: Identifier of the first; the population's clients come before it.
        included: The coins, ``[k]``.
        directions: Unit vectors ``[k, d]``.
        rate: Chance of a client to be in a round.
    """

    kind: str
    first: int
    included: NDArray[np.bool_]
    directions: Vector
    rate: float

    @property
    def count(self) -> int:
        """Canaries, whether they exist or not."""
        return len(self.included)

    def noise_share(self, noise_multiplier: float) -> float:
        """Expected norm of a round's canaries over that of its noise."""
        together = math.sqrt(self.rate * self.count / 2)
        return together / (noise_multiplier * math.sqrt(self.directions.shape[1]))

    def admit(self, cohort: Cohort) -> Cohort:
        """A cohort drawn from population and canaries, without the canaries that do not exist."""
        there = tuple(c for c in cohort.clients if c < self.first or self.included[c - self.first])
        return Cohort(there, {c: stage for c, stage in cohort.dropouts.items() if c in set(there)})

    def check(self, noise_multiplier: float) -> None:
        """Refuse canaries that would change the training.

        Raises:
            SettingError: They would act as noise.
        """
        share = self.noise_share(noise_multiplier)
        if share > LARGEST_SHARE:
            most = int(self.count * (LARGEST_SHARE / share) ** 2)
            raise SettingError(
                f"in a round they would be {share:.2g} times as long as the noise, and act as noise themselves",
                where="audit.canaries",
                value=self.count,
                remedy=f"At most {most} are short enough beside this noise and model",
            )


def random_directions(count: int, dimension: int, seed: Sequence[int]) -> Vector:
    """Unit vectors ``[count, dimension]``, uniform on the sphere.

    Raises:
        SettingError: They do not fit into memory.
    """
    if 4 * count * dimension > LARGEST_BYTES:
        raise SettingError(
            f"their directions take {4 * count * dimension / 2**30:.1f} GiB, and 1 GiB is held at most",
            where="audit.canaries",
            value=count,
            remedy=f"Use at most {LARGEST_BYTES // (4 * dimension)} with a model of {dimension} weights",
        )
    return normalised(np.random.default_rng(seed).standard_normal((count, dimension), np.float32))


def normalised(vectors: Vector) -> Vector:
    """The rows of ``vectors`` ``[k, d]`` with norm 1."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Vector = (vectors / np.maximum(norms, np.finfo(np.float64).tiny)).astype(np.float32)
    return unit


def gathered(updates: Iterable[ClientUpdates], count: int, dimension: int) -> Vector:
    """The updates of ``count`` clients as one array ``[count, dimension]``; not finite ones are zero."""
    found = np.zeros((count, dimension), np.float32)
    for chunk in updates:
        found[list(chunk.clients)] = chunk.deltas
    found[~np.isfinite(found).all(axis=1)] = 0.0
    return found


def random_clients(population: Population, count: int, seed: Sequence[int]) -> Population:
    """``count`` clients of the population's median size, with uniform random inputs and labels.

    Raises:
        SettingError: Inputs are tokens.
    """
    if population.tokens is not None:
        raise SettingError(
            "random inputs can be made in place of images, not of this data",
            where="audit.canary_kind",
            value="input",
            remedy='Use canary_kind = "update"',
        )
    rng, size = np.random.default_rng(seed), max(1, int(np.median(population.sizes)))
    shape = (count * size, *population.input_shape)
    features: NDArray[np.uint8] | Vector = rng.random(shape, np.float32)
    if population.features.dtype == np.uint8:
        features = np.rint(255 * features).astype(np.uint8)
    return replace(
        population,
        features=features,
        labels=rng.integers(0, population.classes, count * size).astype(population.labels.dtype),
        offsets=np.arange(count + 1, dtype=np.int64) * size,
    )


class RandomUpdates(ClientWork):
    """Local training of ``update`` canaries: there is none, they send their direction."""

    def __init__(self, directions: Vector, length: float) -> None:
        self._directions, self._length = directions, np.float32(length)

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """One update after another; no example was seen."""
        for client in clients:
            nothing = np.zeros(1)
            yield ClientUpdates(
                (client,),
                self._length * self._directions[client : client + 1],
                np.zeros(1, np.int64),
                nothing,
                nothing,
                nothing,
            )


class JoinedWork(ClientWork):
    """The population's local training, and that of canaries, whose identifiers begin at ``first``.

    ``arrived`` is told the canaries that train in a round: they are in its sum.
    """

    def __init__(
        self, clients: ClientWork, canaries: ClientWork, first: int, arrived: Callable[[Sequence[int]], None]
    ) -> None:
        self._clients, self._canaries, self._first, self._arrived = clients, canaries, first, arrived

    def under(self, conditions: Conditions) -> JoinedWork:
        """Both in a round with these conditions."""
        return JoinedWork(
            self._clients.under(conditions), self._canaries.under(conditions), self._first, self._arrived
        )

    def _split(self, clients: Sequence[int]) -> tuple[list[int], list[int]]:
        own = [c for c in clients if c < self._first]
        canaries = [c - self._first for c in clients if c >= self._first]
        self._arrived(canaries)
        return own, canaries

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Clients first, canaries after them, as their identifiers are."""
        own, canaries = self._split(clients)
        yield from self._clients(weights, own, seed)
        for chunk in self._canaries(weights, canaries, seed):
            yield self._named(chunk)

    def each(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        consume: Callable[[ClientUpdates], None],
    ) -> None:
        """See ``ClientWork``."""
        own, canaries = self._split(clients)
        self._clients.each(weights, own, seed, consume)
        self._canaries.each(weights, canaries, seed, lambda chunk: consume(self._named(chunk)))

    def clipped_sum(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        clip_norm: float | None,
        *,
        exact: bool = False,
    ) -> ClippedSum:
        """Both sums together."""
        own, canaries = self._split(clients)
        one = self._clients.clipped_sum(weights, own, seed, clip_norm, exact=exact)
        other = self._canaries.clipped_sum(weights, canaries, seed, clip_norm, exact=exact)
        columns = {
            name: np.concatenate([getattr(one, name), getattr(other, name)])
            for name in ("norms", "finite", "loss_sum", "correct", "seen")
        }
        named = tuple(c + self._first for c in other.clients)
        return ClippedSum(one.total + other.total, (*one.clients, *named), **columns)

    def _named(self, chunk: ClientUpdates) -> ClientUpdates:
        return replace(chunk, clients=tuple(c + self._first for c in chunk.clients))


@dataclass(frozen=True, eq=False)
class Tally:
    """What the auditor keeps of all rounds, by canary; an array, so that it goes into checkpoints.

    Attributes:
        rows: ``[len(ROWS), k]``.
    """

    ROWS = (
        "rounds",
        "likelihood",
        "largest_cosine",
        "largest_in_sum",
        "participations",
        "with_sum",
        "with_squares",
        "without_sum",
        "without_squares",
    )
    rows: Real

    @classmethod
    def empty(cls, count: int) -> Tally:
        """Before round 1."""
        rows = np.zeros((len(cls.ROWS), count))
        rows[[cls.ROWS.index("largest_cosine"), cls.ROWS.index("largest_in_sum")]] = -np.inf
        return cls(rows)

    def __getattr__(self, name: str) -> Real:
        if name not in Tally.ROWS:
            raise AttributeError(name)
        row: Real = self.rows[Tally.ROWS.index(name)]
        return row

    def round_scores(self) -> RoundScores:
        """All canaries' together."""
        participations = int(self.participations.sum())
        return RoundScores(
            participations,
            float(self.with_sum.sum()),
            float(self.with_squares.sum()),
            int(self.rounds.sum()) - participations,
            float(self.without_sum.sum()),
            float(self.without_squares.sum()),
        )


@dataclass(eq=False)
class Watched:
    """A mechanism as it is, at whose server half the auditor scores its canaries.

    ``on_server`` has the sum before the noise, which a server sees, and after it: more than all later models tell,
    and what the claim is about. The tally is the last array of the mechanism's state.
    """

    inner: Mechanism
    canaries: CanaryClients
    arrived: list[int] = field(default_factory=list)

    def note(self, arrived: Sequence[int]) -> None:
        """Canaries in the sum of the round that is running."""
        self.arrived = list(arrived)

    def __getattr__(self, name: str) -> Any:
        """Whatever does not concern the state."""
        return getattr(self.inner, name)

    def initialize(self, dimension: int) -> MechanismState:
        """The mechanism's, and an empty tally."""
        return (*self.inner.initialize(dimension), Tally.empty(self.canaries.count).rows)

    def bound(self, state: MechanismState) -> float | None:
        """See ``Mechanism``."""
        return self.inner.bound(state[:-1])

    def flat_clip(self, state: MechanismState, dimension: int) -> float | None:
        """See ``Mechanism``."""
        return self.inner.flat_clip(state[:-1], dimension)

    def stddev(self, state: MechanismState, survivors: float) -> float:
        """See ``Mechanism``."""
        return self.inner.stddev(state[:-1], survivors)

    def on_client(
        self, state: MechanismState, update: Vector, slack: float, terms: Terms, source: RandomSource
    ) -> Any:
        """See ``Mechanism``."""
        return self.inner.on_client(state[:-1], update, slack, terms, source)

    def on_server(
        self, state: MechanismState, total: Real, terms: Terms, source: RandomSource
    ) -> tuple[Real, MechanismState]:
        """The mechanism's, and the tally of the round."""
        noised, after = self.inner.on_server(state[:-1], total, terms, source)
        bound, stddev = self.inner.bound(state[:-1]), self.inner.stddev(state[:-1], terms.cohort)
        assert bound is not None  # the settings were checked: there is a clip norm
        clear = self.inner.as_update(total, len(noised), terms)
        return noised, (*after, self._scored(Tally(state[-1]), clear, noised, bound, stddev).rows)

    def _scored(self, before: Tally, total: Real, noised: Real, bound: float, stddev: float) -> Tally:
        c, q = self.canaries, self.canaries.rate
        rows = before.rows.copy()
        after = Tally(rows)
        length = float(np.linalg.norm(noised))
        in_noised = c.directions @ noised.astype(np.float32) / bound
        in_total = c.directions @ total.astype(np.float32) / bound
        # The variance of a random direction's inner product: noise and all updates together.
        variance = max(length**2 / len(noised) / bound**2, 1e-300)
        ratio = (2 * in_noised.astype(np.float64) - 1) / (2 * variance)
        after.rounds[:] += 1
        after.likelihood[:] += np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + ratio)
        np.maximum(after.largest_cosine, in_noised * (bound / max(length, 1e-300)), out=after.largest_cosine)
        np.maximum(after.largest_in_sum, in_total, out=after.largest_in_sum)
        there = np.zeros(c.count, bool)
        there[self.arrived] = True
        self.arrived = []
        after.participations[:] += there
        after.with_sum[there] += in_noised[there]
        after.with_squares[there] += in_noised[there].astype(np.float64) ** 2
        in_noise = in_noised.astype(np.float64) * (bound / stddev if stddev else math.inf)
        after.without_sum[~there] += in_noise[~there]
        after.without_squares[~there] += in_noise[~there] ** 2
        return after
