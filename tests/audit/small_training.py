"""A training of a few hundred numbers under audit, without TensorFlow: the real round, mechanisms and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from privfed.audit.canaries import LENGTH, CanaryClients, random_directions
from privfed.audit.canary_work import JoinedWork, RandomUpdates, Silenced
from privfed.audit.notes import Notes
from privfed.audit.watched import ServerStep, Watched
from privfed.federated.aggregation import PlainAggregation, RingAggregation
from privfed.federated.client_work import ClientUpdates, ClientWork
from privfed.federated.cohorts import sample_cohort
from privfed.federated.round import Round
from privfed.federated.server_update import sgd
from privfed.federated.streams import Streams
from privfed.privacy.accounting import ObservedRelease
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.mechanisms import Mechanism
from privfed.privacy.plan import PrivacyPlan
from privfed.privacy.sampling import PoissonSampling, RoundRobinSampling, SamplingScheme
from privfed.secagg import RingSum

CLIENTS, CANARIES, ROUNDS = 60, 40, 30
LAYERS = (200, 30)
CLIP, NOISE = 2.0, 1.5


class Wandering(ClientWork):
    """Clients whose updates are random, and some longer than the clip norm."""

    def __call__(self, weights: Any, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        for client in clients:
            rng = np.random.default_rng([*seed, client])
            delta = rng.normal(0.2, 0.3, (1, len(weights))).astype(np.float32)
            yield ClientUpdates((client,), delta, np.ones(1, np.int64), *np.ones((3, 1)))


@dataclass(eq=False)
class Audited:
    """What a training under audit leaves."""

    watched: Watched
    notes: Notes
    initial: Any
    weights: Any
    sampling: SamplingScheme
    spent: list[Sequence[ObservedRelease]]


def train(
    kind: str = "gaussian",
    seed: int = 0,
    *,
    sampling: SamplingScheme | None = None,
    record: bool = True,
    canaries: int = CANARIES,
    inner: Callable[[Mechanism], Any] = lambda mechanism: mechanism,
    drawn: Callable[[SamplingScheme], SamplingScheme] = lambda scheme: scheme,
    divisor: Callable[[float], float | None] = lambda expected: expected,
    claimed_survivors: Callable[[int], int] = lambda survivors: survivors,
) -> Audited:
    """Train; ``inner``, ``drawn``, ``divisor`` and ``claimed_survivors`` plant faults behind the auditor's back.

    Args:
        kind: Of mechanism.
        seed: Of everything.
        sampling: As claimed; Poisson, or round-robin for correlated noise, when not given.
        record: Whether single updates are kept, and so clipped one by one.
        canaries: How many.
    """
    dimension, everybody = sum(LAYERS), CLIENTS + canaries
    if sampling is None:
        sampling = PoissonSampling(0.3)
        if kind in ("tree", "banded"):
            sampling = RoundRobinSampling(15, everybody, ROUNDS)
    plan = PrivacyPlan(
        kind=kind,  # type: ignore[arg-type]  # a name
        sampling=sampling,
        rounds=ROUNDS,
        delta=1e-3,
        clip_norm=CLIP,
        population=CLIENTS,
        dimension=dimension,
        guests=canaries,
        masked=False,
    )
    mechanism = plan.mechanism(NOISE)
    streams = Streams(seed, secure=False)
    there = np.random.default_rng([seed, 1]).random(canaries) < 0.5
    zero_out = kind not in ("gaussian", "adaptive")
    rate = sampling.rate if isinstance(sampling, PoissonSampling) else sampling.size / everybody  # type: ignore[attr-defined]  # the others have one
    who = CanaryClients(
        "update", CLIENTS, there, random_directions(canaries, dimension, (seed, 2)), rate, zero_out
    )
    server = sgd(0.5, momentum=0.5)
    step = ServerStep(server, lambda number: 1.0, plan.expected_cohort)
    watched = Watched(inner(mechanism), who, LAYERS, ROUNDS, step)
    sent: ClientWork = RandomUpdates(who.directions, LENGTH * CLIP)
    work = JoinedWork(Wandering(), Silenced(sent, ~there) if zero_out else sent, CLIENTS, watched)
    ring = RingAggregation(lambda number, threshold, model, bits: RingSum(threshold, bits), 32, None, False)
    one = Round(
        work,
        watched,  # type: ignore[arg-type]  # a mechanism, by its attributes
        ring if mechanism.integral else PlainAggregation(),
        server,
        streams,
        divisor(plan.expected_cohort),
    )
    initial = weights = np.zeros(dimension, np.float32)
    state, spent = one.initialize(dimension), list[Sequence[ObservedRelease]]()
    for number in range(1, ROUNDS + 1):
        cohort = who.admit(sample_cohort(number, everybody, drawn(sampling), 0.0, streams))
        watched.sampled(cohort)

        def commit(_: Any, survivors: int) -> None:
            spent.append(mechanism.releases(sampling, claimed_survivors(survivors)))

        outcome = one(number, weights, state, cohort, commit, record=record)
        weights, state = outcome.weights, outcome.state
    if mechanism.whole_run:
        spent = spent[:1]
    return Audited(watched, watched.notes(state.mechanism), initial, weights, sampling, spent)


class Faulty:
    """A mechanism with a fault: whatever a subclass does not change is as it was."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mechanism, name)

    @property
    def __class__(self) -> Any:
        """It passes for what it is not."""
        return type(self.mechanism)


class WeakNoise(Faulty):
    """Noise times a factor, in some coordinates."""

    factor: Any = 0.5

    def on_server(self, state: Any, total: Any, terms: Any, source: Any) -> Any:
        noised, after = self.mechanism.on_server(state, total, terms, source)
        return total + self.factor * (noised - total), after


class OneLayerClear(WeakNoise):
    """The smaller layer without noise."""

    factor = np.repeat([1.0, 0.0], LAYERS)


class SameSeed(Faulty):
    """The noise of the first round, again and again."""

    def on_server(self, state: Any, total: Any, terms: Any, source: Any) -> Any:
        return self.mechanism.on_server(state, total, terms, Streams(3, secure=False).source(5, 1))  # type: ignore[arg-type]  # a purpose


class ClippedByLayer(Faulty):
    """Each layer clipped to the clip norm."""

    def flat_clip(self, state: Any, dimension: int) -> None:
        return None

    def on_client(self, state: Any, update: Any, slack: float, terms: Any, source: Any) -> Any:
        parts = np.split(update, [LAYERS[0]])
        clipped = [self.mechanism.on_client(state, part, slack, terms, source) for part in parts]
        return replace(clipped[0], unscaled=np.concatenate([c.vector for c in clipped]), factor=np.float32(1))


class NoShare(DistributedParams):
    """Grid and ring as they are, and no noise."""

    def draw(self, source: Any) -> Any:
        return np.zeros(self.padded, np.int64)


class HalfTheShares(Faulty):
    """Every second client brings no noise."""

    calls = 0

    def on_client(self, state: Any, update: Any, slack: float, terms: Any, source: Any) -> Any:
        self.calls += 1
        mechanism: Any = self.mechanism
        if self.calls % 2:
            mechanism = replace(mechanism, params=NoShare(**vars(mechanism.params)))
        return mechanism.on_client(state, update, slack, terms, source)
