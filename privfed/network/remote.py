"""The server's half of a round with real clients: invite, take, unmask, decode; ``RemoteClients`` of the round."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.federated.aggregation import Aggregate, Aggregation, Inputs, PlainAggregation, RingAggregation
from privfed.network import frames
from privfed.network.certificates import Certificate
from privfed.network.errors import FrameError
from privfed.network.exchange import Exchange
from privfed.network.frames import Closed, Invitation, Relay
from privfed.network.participant import CLOSED
from privfed.network.service import Service
from privfed.network.tally import Tally
from privfed.secagg import (
    Directory,
    RoundAborted,
    SecAggParams,
    Server,
    Stage,
    decode,
    encode,
)
from privfed.secagg.errors import CorruptShareError, DuplicateMessageError, UnexpectedMessageError
from privfed.secagg.messages import MaskedInput, ToServer

Vector = NDArray[np.float32]

SESSION_BYTES = 16
NORM_TOLERANCE = 1e-5
"""Of an input in the clear over its bound: float32 was clipped, float64 is measured."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds of a stage, and of the one in which clients train."""

    stage: float = 30.0
    training: float = 600.0


@dataclass(frozen=True, eq=False)
class NetworkClients:
    """Clients behind an exchange.

    Attributes:
        service: Runs the exchange.
        exchange: Where clients are met.
        aggregation: What the plan says of sums.
        deadlines: Of the stages.
        tally: Counts.
        workers: Most threads to unmask with.
    """

    service: Service
    exchange: Exchange
    aggregation: Aggregation
    deadlines: Deadlines
    tally: Tally
    workers: int = 1

    def sum(self, weights: Vector, inputs: Inputs) -> Aggregate:
        """As ``privfed.federated.aggregation.RemoteClients``; what the round was like is an event of the tally."""
        members = self.service.call(self.exchange.members(inputs.cohort))
        self.tally.now.update(state="in a round", round=inputs.round, cohort=len(inputs.cohort))
        last: dict[int, Stage | None] = dict.fromkeys(inputs.cohort)
        aborted: str | None = None
        try:
            if isinstance(self.aggregation, RingAggregation):
                return self._masked_sum(self.aggregation, weights, inputs, members, last)
            return self._plain_sum(weights, inputs, members, last)
        except RoundAborted as error:
            aborted = str(error)
            raise
        finally:
            closed = frames.encode(Closed(round=inputs.round, aborted=aborted is not None))
            self.service.call(self.exchange.close_round(inputs.round, members, closed, CLOSED))
            gone = {
                str(c): None if s is None else s.name.lower() for c, s in last.items() if s is not Stage.UNMASK
            }
            self.tally.event(
                "round", round=inputs.round, cohort=list(inputs.cohort), last_stage=gone, aborted=aborted
            )
            self.tally.round("aborted" if aborted else "completed")
            self.tally.now.update(state="between rounds", stage=None)

    def _masked_sum(
        self,
        aggregation: RingAggregation,
        weights: Vector,
        inputs: Inputs,
        members: Mapping[int, Certificate],
        last: dict[int, Stage | None],
    ) -> Aggregate:
        threshold, encoding = aggregation.threshold_of(inputs), aggregation.encoding(inputs)
        if len(members) < threshold:
            raise RoundAborted(Stage.ADVERTISE_KEYS, len(members), threshold)
        params = SecAggParams(
            session=secrets.token_bytes(SESSION_BYTES),
            round_number=inputs.round,
            client_ids=tuple(members),
            threshold=threshold,
            dimension=len(encoding.zeros()),
            ring_bits=encoding.codec.ring_bits,
        )
        directory = Directory({client: certificate.key for client, certificate in members.items()})
        server = Server(params, directory, model=inputs.model, workers=self.workers)
        uploads: dict[int, NDArray[Any]] = {}
        sent = {stage.name.lower(): 0 for stage in Stage}
        seconds: dict[str, float] = {}

        def take(client: int, step: int, body: memoryview) -> bool:
            message: ToServer = decode(body, peer=client)  # type: ignore[assignment]  # the server refuses others
            try:
                server.receive(message)
            except DuplicateMessageError:
                return False
            if isinstance(message, MaskedInput):
                uploads[client] = message.vector.values
            last[client] = Stage(step)
            sent[Stage(step).name.lower()] += len(body)
            return True

        mail = dict.fromkeys(members, self._invitation(weights, inputs, members, params))
        for stage in Stage:
            started = time.perf_counter()
            self._stage(inputs.round, stage, mail, take, lambda: server.waiting_for)
            try:
                outgoing = server.close_stage()
            except CorruptShareError as error:
                self.tally.refuse("CorruptShare", error.offender, str(error))
                left = sum(step is stage for step in last.values())
                raise RoundAborted(stage, left, threshold, f"a share is wrong: {error}") from error
            finally:
                seconds[stage.name.lower()] = time.perf_counter() - started
                self.tally.stage(stage.name.lower(), seconds[stage.name.lower()])
            mail = {
                client: frames.encode(Relay(round=inputs.round, step=stage + 1), encode(message))
                for client, message in outgoing.items()
            }
        self.tally.now.update(survivors=len(server.survivors))
        return Aggregate(
            encoding.decode(server.total),
            server.survivors,
            {},
            {client: encoding.decode(vector) for client, vector in sorted(uploads.items())},
            sent,
            seconds,
            threshold,
            encoding.codec.ring_bits,
        )

    def _plain_sum(
        self,
        weights: Vector,
        inputs: Inputs,
        members: Mapping[int, Certificate],
        last: dict[int, Stage | None],
    ) -> Aggregate:
        vectors: dict[int, NDArray[np.float64]] = {}
        bound = inputs.bound

        def take(client: int, step: int, body: memoryview) -> bool:
            if client not in members:
                raise UnexpectedMessageError("has no part in this round", offender=client)
            if client in vectors:
                return False
            vectors[client] = plain_vector(
                body, inputs.length, lambda norm: bound is None or norm <= bound * (1 + NORM_TOLERANCE)
            )
            last[client] = Stage.UNMASK  # there is one stage
            return True

        started = time.perf_counter()
        mail = dict.fromkeys(members, self._invitation(weights, inputs, members, None))
        self._stage(inputs.round, Stage.ADVERTISE_KEYS, mail, take, lambda: members.keys() - vectors.keys())
        self.tally.stage("input", time.perf_counter() - started)
        self.tally.now.update(survivors=len(vectors))
        aggregate = PlainAggregation().sum(inputs, vectors, {})
        return Aggregate(
            aggregate.total,
            aggregate.survivors,
            aggregate.received,
            {},
            {"input": 8 * inputs.length * len(vectors)},
            {"input": time.perf_counter() - started},
        )

    def _stage(
        self,
        number: int,
        stage: Stage,
        mail: Mapping[int, bytes],
        take: Callable[[int, int, memoryview], bool],
        waiting: Callable[[], Any],
    ) -> None:
        training = stage is Stage.MASKED_INPUT or isinstance(self.aggregation, PlainAggregation)
        seconds = self.deadlines.training if training else self.deadlines.stage
        self.tally.now.update(stage=stage.name.lower())
        self.service.call(self.exchange.stage(number, stage, mail, take, waiting, seconds))

    def _invitation(
        self,
        weights: Vector,
        inputs: Inputs,
        members: Mapping[int, Certificate],
        params: SecAggParams | None,
    ) -> bytes:
        certificates: Sequence[Certificate] = list(members.values()) if params is not None else []
        body = np.ascontiguousarray(weights, "<f4").tobytes() + b"".join(c.der for c in certificates)
        invitation = Invitation(
            round=inputs.round,
            cohort=len(inputs.cohort),
            members=list(members) if params is not None else [],
            certificates=[len(c.der) for c in certificates],
            session="" if params is None else params.session.hex(),
            threshold=0 if params is None else params.threshold,
            dimension=inputs.length if params is None else params.dimension,
            ring_bits=0 if params is None else params.ring_bits,
            clip_norm=inputs.clip_norm,
        )
        return frames.encode(invitation, body)


def plain_vector(body: memoryview, dimension: int, check: Callable[[float], bool]) -> NDArray[np.float64]:
    """An input in the clear, ``[dimension]``; ``check`` judges its norm.

    Raises:
        FrameError: Wrong length, not finite, or too long.
    """
    if len(body) != 8 * dimension:
        raise FrameError(f"is no vector of {dimension} numbers")
    vector = np.frombuffer(body, "<f8")
    norm = math.sqrt(float(np.einsum("i,i->", vector, vector)))  # makes no copy, and no threads as BLAS does
    if not math.isfinite(norm) or not check(norm):
        raise FrameError("is a vector that is not finite, or longer than the clip norm")
    return vector
