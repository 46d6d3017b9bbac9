"""The client's half of a round: train, clip, noise, encode; bit by bit as the simulation does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.federated.aggregation import Inputs, RingAggregation
from privfed.federated.client_work import Conditions
from privfed.federated.round import Round
from privfed.federated.streams import Purpose
from privfed.network.errors import DeclinedError
from privfed.privacy.errors import PrivacyError
from privfed.privacy.mechanisms import AdaptiveClipping, State, Terms
from privfed.privacy.randomness import RandomSource

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """What the accepted plan says of the vectors of a round.

    Attributes:
        dimension: Coordinates.
        threshold: Fewest survivors; 0 where nothing is masked.
        ring_bits: Of the ring; 0 where nothing is masked.
    """

    dimension: int
    threshold: int
    ring_bits: int


@dataclass(frozen=True, eq=False)
class ClientHalf:
    """One client's part of the rounds of a run.

    Attributes:
        client: Its number.
        round: The parts of a round, as this client made them from the plan it accepted.
        initial: Weights before round 1, ``[d]``.
        rounds: Of the plan.
        clients: In the population.
        largest_cohort: Clients in a round, at most.
    """

    client: int
    round: Round
    initial: Vector
    rounds: int
    clients: int
    largest_cohort: int = 1

    def expected(self, cohort: int) -> Expected:
        """What a round of ``cohort`` drawn clients must ask for."""
        inputs = self._inputs(self.initial, Terms(1, cohort), self._state(len(self.initial), None))
        aggregation = self.round.aggregation
        if not isinstance(aggregation, RingAggregation):
            return Expected(inputs.length, 0, 0)
        encoding = aggregation.encoding(inputs)
        return Expected(len(encoding.zeros()), aggregation.threshold_of(inputs), encoding.codec.ring_bits)

    def check_clip(self, number: int, clip_norm: float | None) -> None:
        """Judge the clip norm that the server names for round ``number``.

        Raises:
            DeclinedError: The plan has one that stays, or cannot have come to this one by now.
        """
        mechanism = self.round.mechanism
        if not isinstance(mechanism, AdaptiveClipping):
            if clip_norm is not None:
                raise DeclinedError(
                    "clip norm", f"the round names a clip norm of {clip_norm:g}, the accepted plan has its own"
                )
            return
        if clip_norm is None:
            raise DeclinedError("clip norm", "the round names no clip norm, which moves in the accepted plan")
        least, most = mechanism.reach(number, self.largest_cohort)
        if not least <= clip_norm <= most:
            raise DeclinedError(
                "clip norm",
                f"a clip norm of {clip_norm:g} in round {number} is not within the plan's reach, "
                f"{least:g} to {most:g}",
            )

    def __call__(self, number: int, weights: Vector, cohort: int, clip_norm: float | None = None) -> NDArray[Any]:
        """The vector to send in round ``number`` from ``weights`` ``[d]``: of the ring, or float64 in the clear.

        ``clip_norm`` is the one in force, where it moves.

        Raises:
            DeclinedError: Local training gave numbers that are not finite, or the encoding has no room.
        """
        parts, terms, state = self.round, Terms(number, cohort), self._state(len(weights), clip_norm)
        inputs = self._inputs(weights, terms, state)

        def source(purpose: Purpose, client: int) -> RandomSource:
            return parts.streams.source(purpose, number, client)

        work = parts.work.under(
            Conditions(parts.client_rate(number), None, lambda client: source(Purpose.CLIENT_NOISE, client))
        )
        (chunk,) = work(weights, (self.client,), parts.streams.key(Purpose.SHUFFLE, number))
        try:
            sent = parts.mechanism.on_client(
                state,
                chunk.deltas[0],
                parts.aggregation.slack(inputs),
                terms,
                source(Purpose.CLIENT_NOISE, self.client),
            )
        except PrivacyError as error:
            raise DeclinedError("local training", f"local training: {error}") from None
        if not np.isfinite(sent.norm_before):
            raise DeclinedError("local training", "local training gave an update that is not finite")
        if not isinstance(parts.aggregation, RingAggregation):
            return np.asarray(sent.vector, np.float64)
        encoding = parts.aggregation.encoding(inputs)
        encoded = encoding.zeros()
        encoding.add(encoded, self.client, sent.vector)
        return encoded

    def _inputs(self, weights: Vector, terms: Terms, state: State) -> Inputs:
        everybody: Sequence[int] = range(terms.cohort)  # how many they are is all that counts here
        return self.round.inputs(weights, state, terms, everybody)

    def _state(self, dimension: int, clip_norm: float | None) -> State:
        """As much of the server's as the client half asks for: the clip norm, where it moves."""
        mechanism = self.round.mechanism
        if isinstance(mechanism, AdaptiveClipping) and clip_norm is not None:
            return mechanism.with_clip(clip_norm)
        return mechanism.initialize(dimension)
