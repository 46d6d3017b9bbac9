"""One round of federated averaging under differential privacy and secure aggregation, top to bottom.

::

    weights ──▶ local SGD ▸ clip ▸ encode ▸ mask ──▶ sum ▸ unmask ▸ decode ▸ noise ▸ divide ▸ server step ──▶
               └─────────── each client ──────────┘ └───────────────────── server ──────────────────────┘

McMahan et al. 2018, Algorithm 1 (client-level DP-FedAvg) with the sum computed as in Bonawitz et al. 2017.
A client whose update is not finite counts as dropped out and is reported.

Single updates are kept only where somebody needs them: masking, weights, SCAFFOLD, a mechanism that does more to
them than clip, or the transcript. Otherwise they are clipped and added up where they are trained, or as they come;
in mode ``ring`` whatever the mechanism does to them, as each client's randomness is its own.
That changes nothing but rounding in mode ``off``, and nothing at all in mode ``ring``.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.federated.aggregation import (
    FLOAT_BYTES,
    Aggregate,
    Aggregation,
    Inputs,
    PlainAggregation,
    RemoteClients,
    RunningSum,
)
from privfed.federated.client_half import ClientHalf, CollectedHalves, Half, Halves, halves_of
from privfed.federated.client_work import ClientWork, Conditions
from privfed.federated.cohorts import Cohort
from privfed.federated.outcome import RoundMetrics, RoundOutcome, RoundState, stage_costs
from privfed.federated.scaffold import Scaffold, Variates
from privfed.federated.server_update import ServerOptimizer
from privfed.federated.streams import Purpose, Streams
from privfed.privacy.clipping import l2_norm
from privfed.privacy.mechanisms import Mechanism, Terms
from privfed.privacy.mechanisms import State as MechanismState
from privfed.secagg import RoundAborted, Stage, arrives
from privfed.transcript import RoundRecord

Vector = NDArray[np.float32]
Real = NDArray[np.float64]


def constant_rate(number: int) -> float:
    """The factor of a learning rate that stays."""
    return 1.0


@dataclass(frozen=True, eq=False)
class Round:
    """The parts of a round; calling it runs one.

    Attributes:
        work: Local training.
        mechanism: Clipping on the client, noise on the server.
        aggregation: From vectors to their sum.
        server: The server's optimizer.
        streams: Randomness by purpose and round.
        divisor: What the sum is divided by: the *expected* cohort under differential privacy, so that the
            division says nothing about who took part; ``None`` for the survivors' weight.
        shares: Weight of each client's update in (0, 1], by client; ``None`` for equal weights.
        client_rate: Factor on the clients' learning rate, by round.
        server_rate: Factor on the server's.
        scaffold: With control variates, which then travel behind each update; ``None`` without.
        remote: Clients that do their half elsewhere, and tell nothing else of it; ``None`` for ``work``.
    """

    work: ClientWork
    mechanism: Mechanism
    aggregation: Aggregation
    server: ServerOptimizer
    streams: Streams
    divisor: float | None
    shares: Real | None = None
    client_rate: Callable[[int], float] = constant_rate
    server_rate: Callable[[int], float] = constant_rate
    scaffold: Scaffold | None = None
    remote: RemoteClients | None = None

    def initialize(self, dimension: int) -> RoundState:
        """The state before round 1."""
        variates = None if self.scaffold is None else Variates(np.zeros(dimension, np.float32))
        return RoundState(self.server.initialize(dimension), self.mechanism.initialize(dimension), variates)

    def __call__(
        self,
        number: int,
        weights: Vector,
        state: RoundState,
        cohort: Cohort,
        release: Callable[[Vector, int], None],
        *,
        record: bool = True,
    ) -> RoundOutcome:
        """Run round ``number`` from ``weights`` ``[d]``; nothing that a client does makes it raise.

        ``release`` is called with the new weights and the number of survivors before anybody sees them: it puts
        them on the ledger. ``record`` says whether the transcript keeps the round, and so needs single updates.
        """
        started = time.perf_counter()
        terms = Terms(number, len(cohort.clients))
        clip_norm = None if record else self._clip_in_training(state.mechanism, len(weights))
        if self.remote is not None:
            local = _Local(self.inputs(weights, state.mechanism, terms, cohort.clients))
        elif clip_norm is None:
            local = self._train_and_clip(weights, state, terms, cohort, running=not record)
        else:
            local = self._train_clip_and_sum(weights, clip_norm, state, terms, cohort)
        aggregate, aborted = self._sum(weights, local, cohort)
        new_weights, new_state = weights, state
        if aggregate is not None:
            noised, mechanism_state = self.mechanism.on_server(
                state.mechanism, aggregate.total, terms, self.streams.source(Purpose.NOISE, number)
            )
            update = self._mean(noised, len(weights), aggregate)
            server_state, new_weights = self.server.step(state.server, weights, -update, self.server_rate(number))
            variates = self._variates_after(state.variates, local, noised, aggregate, number)
            new_state = RoundState(server_state, mechanism_state, variates)
            release(new_weights, len(aggregate.survivors))
        elif self.mechanism.whole_run:
            # Rows of correlated noise belong to rounds: this round's is drawn, and shown to nobody.
            nothing = np.zeros(local.inputs.length)
            _, after = self.mechanism.on_server(
                state.mechanism, nothing, terms, self.streams.source(Purpose.NOISE, number)
            )
            new_state = RoundState(state.server, after)
        metrics = RoundMetrics(
            round=number,
            train_loss=local.loss_sum / local.seen if local.seen else None,
            train_accuracy=local.correct / local.seen if local.seen else None,
            cohort=len(cohort.clients),
            survivors=len(aggregate.survivors) if aggregate else 0,
            non_finite=len(local.non_finite),
            clipped_fraction=local.clipped / len(local.norms) if local.norms else None,
            mean_norm=float(np.mean(local.norms)) if local.norms else None,
            signal_to_noise=self._signal_to_noise(state.mechanism, aggregate, len(weights)),
            upload_bytes=sum(aggregate.bytes_per_stage.values()) if aggregate else 0,
            ring_bits=aggregate.ring_bits if aggregate else None,
            aborted=aborted,
            seconds=time.perf_counter() - started,
        )
        kept = self._record(terms, weights, new_weights, cohort, aggregate) if record else None
        return RoundOutcome(new_weights, new_state, metrics, kept, stage_costs(aggregate))

    def _train_and_clip(
        self, weights: Vector, state: RoundState, terms: Terms, cohort: Cohort, *, running: bool
    ) -> _Local:
        """Client half: local SGD, then the mechanism's; weight or change of variate follow behind the update.

        With ``running`` vectors are added up as they come, where the aggregation can do that.
        """
        local = _Local(self.inputs(weights, state.mechanism, terms, cohort.clients))
        work, variates = self._work(state, terms.round), state.variates
        slack = self.aggregation.slack(local.inputs)
        if running:
            local.running = self.aggregation.running_sum(local.inputs)
        nothing = np.zeros(local.inputs.length, np.int64 if local.inputs.integral else np.float64)
        local.vectors = dict.fromkeys(cohort.clients, nothing)

        to_send = ClientHalf(self.mechanism, state.mechanism, slack, terms, self.streams, self.shares)
        clients, seed = _arriving(cohort), self.streams.key(Purpose.SHUFFLE, terms.round)
        encoded = None if local.running is None else local.running.encoded
        halves: Halves = {}

        def with_change(client: int, delta: Vector) -> Half | None:
            assert self.scaffold is not None
            assert variates is not None
            delta = variates.sent(delta, int(self.scaffold.steps[client]), self._scaffold_rate(terms.round))
            sent = to_send(client, delta)
            if sent is None:
                return None
            change = sent.vector[len(weights) :].astype(np.float64)
            if encoded is None:
                return Half(sent.norm_before, sent.was_clipped, sent.vector, change)
            encoded.add(client, sent.vector)
            return Half(sent.norm_before, sent.was_clipped, None, change)

        if variates is None:
            work.fold(weights, clients, seed, CollectedHalves(to_send, encoded, halves))
        else:
            work.each(weights, clients, seed, lambda chunk: halves.update(halves_of(chunk, with_change)))
        for client in clients:  # in one order, whoever was ready first
            half, *counts = halves[client]
            local.count(*counts)
            if half is None:
                local.non_finite.append(client)
                continue
            if half.vector is not None:
                local.vectors[client] = half.vector
            if half.change is not None:
                local.changes[client] = half.change
            local.norms.append(half.norm)
            local.clipped += half.was_clipped
        return local

    def _work(self, state: RoundState, number: int) -> ClientWork:
        """Local training as it is in round ``number``."""
        corrections = None if state.variates is None else state.variates.corrections
        # No lambda: clients that train elsewhere take it with them.
        source = partial(self.streams.source, Purpose.CLIENT_NOISE, number)
        return self.work.under(Conditions(self.client_rate(number), corrections, source))

    def _scaffold_rate(self, number: int) -> float:
        assert self.scaffold is not None
        return self.scaffold.rate * self.client_rate(number)

    def _variates_after(
        self, variates: Variates | None, local: _Local, total: Real, aggregate: Aggregate, number: int
    ) -> Variates | None:
        if variates is None or self.scaffold is None:
            return None
        changes = {client: local.changes[client] for client in aggregate.survivors}
        behind = total[len(variates.server) :]
        return variates.after(changes, behind, self._scaffold_rate(number), len(self.scaffold.steps))

    def _clip_in_training(self, state: MechanismState, dimension: int) -> float | None:
        """The norm to clip to where that and a plain sum are all there is to do; else ``None``."""
        if (
            self.scaffold is not None
            or self.shares is not None
            or not isinstance(self.aggregation, PlainAggregation)
        ):
            return None
        return self.mechanism.flat_clip(state, dimension)

    def _train_clip_and_sum(
        self, weights: Vector, clip_norm: float, state: RoundState, terms: Terms, cohort: Cohort
    ) -> _Local:
        """The same in one go, where no single update is needed."""
        local = _Local(self.inputs(weights, state.mechanism, terms, cohort.clients))
        # In secure mode the guarantee must hold for the sum as it is computed, so it is computed in float64.
        done = self._work(state, terms.round).clipped_sum(
            weights,
            _arriving(cohort),
            self.streams.key(Purpose.SHUFFLE, terms.round),
            None if math.isinf(clip_norm) else clip_norm,
            exact=self.streams.secure,
        )
        local.count(float(np.nansum(done.loss_sum)), float(done.correct.sum()), float(done.seen.sum()))
        norms = done.norms[done.finite]
        local.norms, local.clipped = norms.tolist(), int((norms > clip_norm).sum())
        clients = np.array(done.clients, np.int64)
        local.non_finite = clients[~done.finite].tolist()
        survivors = tuple(sorted(clients[done.finite].tolist()))
        sent = {"input": len(weights) * FLOAT_BYTES * len(survivors)}
        local.aggregate = Aggregate(done.total, survivors, {}, {}, sent)
        return local

    def inputs(self, weights: Vector, state: MechanismState, terms: Terms, cohort: Sequence[int]) -> Inputs:
        """What the vectors of a round have in common that ``cohort`` trains from ``weights`` ``[d]``."""
        update = len(weights) if self.scaffold is None else 2 * len(weights)
        length, bound = self.mechanism.length(update), self.mechanism.bound(state)
        if self.shares is not None:
            # A weighted vector carries its weight, at most 1, as one more coordinate.
            length, bound = length + 1, None if bound is None else math.hypot(bound, 1.0)
        return Inputs(
            terms.round,
            tuple(cohort),
            length,
            bound,
            self.mechanism.integral,
            partial(self.streams.source, Purpose.ROUNDING, terms.round),  # clients elsewhere take it with them
            hashlib.sha256(weights.tobytes()).digest(),
            self.mechanism.moving_clip(state),
        )

    def _sum(self, weights: Vector, local: _Local, cohort: Cohort) -> tuple[Aggregate | None, str | None]:
        dropouts: dict[int, Stage | None] = {**cohort.dropouts, **dict.fromkeys(local.non_finite)}
        if not cohort.clients and self.divisor is not None:
            # An empty Poisson cohort: the mechanism still adds its noise, or silence would tell who is missing.
            return Aggregate(np.zeros(local.inputs.length), (), {}), None
        if not cohort.clients:
            return None, "no client was sampled"
        try:
            if self.remote is not None:
                aggregate = self.remote.sum(weights, local.inputs)
            elif local.aggregate is not None:
                aggregate = local.aggregate
            elif local.running is not None:
                aggregate = local.running.close(dropouts)
            else:
                aggregate = self.aggregation.sum(local.inputs, local.vectors, dropouts)
        except RoundAborted as error:
            return None, str(error)
        if not aggregate.survivors and self.divisor is None:
            return None, "no client survived"
        return aggregate, None

    def _mean(self, noised: Real, dimension: int, aggregate: Aggregate) -> Vector:
        if self.shares is not None:
            weighted: Vector = (noised[:dimension] / noised[dimension]).astype(np.float32)
            return weighted
        mean: Vector = (noised[:dimension] / (self.divisor or len(aggregate.survivors))).astype(np.float32)
        return mean

    def _signal_to_noise(self, state: MechanismState, aggregate: Aggregate | None, dimension: int) -> float | None:
        if aggregate is None or self.mechanism.integral:
            return None
        stddev = self.mechanism.stddev(state, len(aggregate.survivors))
        if not stddev:
            return None
        return l2_norm(aggregate.total[:dimension]) / (stddev * math.sqrt(dimension))

    def _record(
        self, terms: Terms, weights: Vector, new_weights: Vector, cohort: Cohort, aggregate: Aggregate | None
    ) -> RoundRecord:
        d = len(weights)
        received = aggregate.received if aggregate else {}
        shares = {c: float(v[d]) for c, v in received.items()} if self.shares is not None else {}
        if self.shares is None and aggregate is not None:
            shares = dict.fromkeys(aggregate.survivors, 1.0)

        def seen(vector: Real) -> Real:
            return self.mechanism.as_update(vector, d, terms)

        return RoundRecord(
            round=terms.round,
            weights=weights,
            new_weights=new_weights,
            cohort=cohort.clients,
            updates={c: seen(v) for c, v in received.items()},
            shares=shares,
            uploads={c: seen(v) for c, v in aggregate.uploads.items()} if aggregate else {},
            total=seen(aggregate.total) if aggregate else np.zeros(d),
            threshold=aggregate.threshold if aggregate else None,
            rate_factor=self.client_rate(terms.round),
            server_factor=self.server_rate(terms.round),
        )


@dataclass(eq=False)
class _Local:
    """What the clients of one cohort made, and its statistics.

    ``vectors`` are what they send; ``running`` or ``aggregate`` hold the sum instead, where it is made earlier.
    ``changes`` are those of control variates, which clients keep.
    """

    inputs: Inputs
    vectors: dict[int, NDArray[Any]] = field(default_factory=dict)
    running: RunningSum | None = None
    aggregate: Aggregate | None = None
    changes: dict[int, Real] = field(default_factory=dict)
    non_finite: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    seen: float = 0.0

    def count(self, loss_sum: float, correct: float, seen: float) -> None:
        """Add what clients report of their training; a loss that is not a number counts as none."""
        self.loss_sum += 0.0 if math.isnan(loss_sum) else loss_sum
        self.correct += correct
        self.seen += seen


def _arriving(cohort: Cohort) -> tuple[int, ...]:
    """Clients whose input reaches the server: what the others train is lost, so they need not."""
    return tuple(c for c in cohort.clients if arrives(cohort.dropouts.get(c, Stage.UNMASK)))
