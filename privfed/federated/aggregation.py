"""From the survivors' updates to their sum: in the clear, or as integers of a ring, masked or not.

Every way has the same rule of who counts: a client whose input arrived is in the sum, even when it vanishes after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.federated.encoding import EncodedSum, Encoding, FixedPointEncoding, IntegerCodec, IntegerEncoding
from privfed.privacy.randomness import RandomSource
from privfed.secagg import FixedPointCodec, SecureSum, Stage, arrives, packing

Real = NDArray[np.float64]
Vector = NDArray[Any]
Dropouts = Mapping[int, Stage | None]

FLOAT_BYTES = 4
"""Of a coordinate that is sent in the clear."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the vectors of one round have in common.

    Attributes:
        round: From 1.
        cohort: Whose they are.
        length: Coordinates of each.
        bound: L2 bound of each, encoding included; ``None`` for none.
        integral: Whether they are integers (int64) of the ring already.
        source: A client's randomness, for the rounding.
        model: Digest of the model that all clients were given; the protocol makes them compare it.
        clip_norm: In force in this round, where it moves from round to round; ``None`` where it stays.
    """

    round: int
    cohort: tuple[int, ...]
    length: int
    bound: float | None
    integral: bool
    source: Callable[[int], RandomSource]
    model: bytes
    clip_norm: float | None = None


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What the server ends up with.

    Attributes:
        total: Sum over the survivors, ``[length]``.
        survivors: Clients in the sum.
        received: Each survivor's vector as it went into the sum, ``[length]``.
        uploads: What arrived from each client when that is something else: masked vectors, ``[length]``.
        bytes_per_stage: Traffic of the protocol's stages, clients to server.
        seconds_per_stage: Wall time by the same stages.
        threshold: Survivors that the sum needed; ``None`` where it needed none.
        ring_bits: Width of the ring; ``None`` where there was none.
    """

    total: Real
    survivors: tuple[int, ...]
    received: Mapping[int, Real]
    uploads: Mapping[int, Real] = field(default_factory=dict)
    bytes_per_stage: Mapping[str, int] = field(default_factory=dict)
    seconds_per_stage: Mapping[str, float] = field(default_factory=dict)
    threshold: int | None = None
    ring_bits: int | None = None


class RunningSum(Protocol):
    """A sum that needs no vector once it has it."""

    @property
    def encoded(self) -> EncodedSum:
        """What takes the vectors of clients whose input will arrive, in any order or in pieces."""
        ...

    def close(self, dropouts: Dropouts) -> Aggregate:
        """The sum, without single vectors; ``dropouts`` names every client that was not added, and others.

        Raises:
            privfed.secagg.RoundAborted: Too few clients were left.
        """
        ...


class Aggregation(Protocol):
    """Sums client vectors."""

    def slack(self, inputs: Inputs) -> float:
        """By how much encoding may lengthen a vector: clip to the bound less this."""
        ...

    def running_sum(self, inputs: Inputs) -> RunningSum | None:
        """What ``sum`` gives, vector by vector; ``None`` where the vectors must be there together."""
        ...

    def sum(self, inputs: Inputs, vectors: Mapping[int, Vector], dropouts: Dropouts) -> Aggregate:
        """Sum ``vectors``, one of each client of the cohort, of those that ``dropouts`` lets arrive.

        Vectors of int64 are summed as they are: modulo the ring where there is one, with the result centred on 0.

        Raises:
            privfed.secagg.RoundAborted: Too few clients were left.
        """
        ...


class RemoteClients(Protocol):
    """Clients that are elsewhere: they train, clip, noise, encode and mask where they are."""

    def sum(self, weights: Vector, inputs: Inputs) -> Aggregate:
        """The sum over those of the cohort that took part, from ``weights`` ``[d]``.

        Raises:
            privfed.secagg.RoundAborted: Too few clients were left.
        """
        ...


class PlainAggregation:
    """Mode ``off``: floats in the clear, and the server sees each of them."""

    def slack(self, inputs: Inputs) -> float:
        """Nothing is rounded."""
        return 0.0

    def running_sum(self, inputs: Inputs) -> RunningSum | None:
        """None: floats are added in one order, so that the rounding is always the same."""
        return None

    def sum(self, inputs: Inputs, vectors: Mapping[int, Vector], dropouts: Dropouts) -> Aggregate:
        """Sum in the order of the clients' identifiers, so that the rounding is always the same."""
        received = {
            c: np.asarray(vectors[c], np.float64)
            for c in sorted(vectors)
            if arrives(dropouts.get(c, Stage.UNMASK))
        }
        total = np.zeros(inputs.length)
        for vector in received.values():
            total += vector
        return Aggregate(
            total, tuple(received), received, {}, {"input": inputs.length * FLOAT_BYTES * len(received)}
        )


def round_threshold(cohort_size: int, configured: int | None, colluders: int) -> int:
    """Survivors that a round of ``cohort_size`` clients needs: the configured number, and never less than is safe.

    With more than half of cohort and colluders together, an active server cannot have two survivor lists signed:
    the colluders would sign both, the others one each (Bonawitz et al. 2017, section 6.2).
    """
    return max(configured or 2, (cohort_size + colluders) // 2 + 1)


@dataclass(frozen=True)
class RingAggregation:
    """Modes ``ring`` and ``protocol``: fixed point in a ring; the same integers, so the same sum to the last bit.

    Attributes:
        secure_sum: ``(round, threshold, model, ring_bits) -> SecureSum``: the plain ring sum or the masking
            protocol.
        ring_bits: Width of the ring; ``None`` for the narrowest that takes each cohort's 16-bit values.
        threshold: Survivors needed; raised to ``round_threshold``.
        masked: Whether what arrives hides what was sent.
        colluders: Clients of a cohort that may work with the server.
    """

    secure_sum: Callable[[int, int, bytes, int], SecureSum]
    ring_bits: int | None
    threshold: int | None
    masked: bool
    colluders: int = 0

    def slack(self, inputs: Inputs) -> float:
        """``sqrt(length) / scale``: stochastic rounding moves each coordinate by less than one step."""
        return 0.0 if inputs.integral else self._codec(inputs).rounding_slack

    def sum(self, inputs: Inputs, vectors: Mapping[int, Vector], dropouts: Dropouts) -> Aggregate:
        """Encode, mask (in mode ``protocol``), sum, unmask, decode."""
        encoding, encoded = self.encoding(inputs), {}
        for client, vector in sorted(vectors.items()):
            encoded[client] = encoding.zeros()
            encoding.add(encoded[client], client, vector)
        result = self._secure_sum(inputs, encoding).sum(encoded, dropouts)
        return Aggregate(
            encoding.decode(result.total),
            result.survivors,
            {c: encoding.decode(encoded[c]) for c in result.survivors},
            {c: encoding.decode(u) for c, u in result.uploads.items()} if self.masked else {},
            result.bytes_per_stage,
            result.seconds_per_stage,
            self.threshold_of(inputs),
            encoding.codec.ring_bits,
        )

    def running_sum(self, inputs: Inputs) -> RunningSum | None:
        """Integers add up to the same in any order; masking needs them together."""
        if self.masked or not inputs.cohort:
            return None
        encoding = self.encoding(inputs)
        return _RunningRingSum(EncodedSum(encoding), inputs, self._secure_sum(inputs, encoding))

    def _secure_sum(self, inputs: Inputs, encoding: Encoding) -> SecureSum:
        return self.secure_sum(inputs.round, self.threshold_of(inputs), inputs.model, encoding.codec.ring_bits)

    def threshold_of(self, inputs: Inputs) -> int:
        """Survivors that the round needs."""
        return round_threshold(len(inputs.cohort), self.threshold, self.colluders)

    def encoding(self, inputs: Inputs) -> Encoding:
        """From a client's vector to the ring and back."""
        if inputs.integral:
            if self.ring_bits is None:
                raise ValueError("integers come with a ring of their own: its width must be given")
            return IntegerEncoding(IntegerCodec(self.ring_bits), inputs.length)
        return FixedPointEncoding(self._codec(inputs), inputs.source)

    def _codec(self, inputs: Inputs) -> FixedPointCodec:
        if inputs.bound is None:
            raise ValueError("a ring of fixed width needs vectors of bounded norm")
        cohort = max(len(inputs.cohort), 1), inputs.bound, inputs.length
        if self.ring_bits is None:
            return FixedPointCodec.narrowest(*cohort)
        return FixedPointCodec.for_cohort(*cohort, ring_bits=self.ring_bits)


@dataclass(frozen=True, eq=False)
class _RunningRingSum:
    encoded: EncodedSum
    inputs: Inputs
    secure_sum: SecureSum

    def close(self, dropouts: Dropouts) -> Aggregate:
        encoding, total = self.encoded.encoding, self.encoded.total
        if total is None:
            total = encoding.zeros()
        # Who survives, and whether enough do, is for the sum of whole cohorts to say: it gets short vectors.
        stand_ins = dict.fromkeys(self.inputs.cohort, total[:1])
        survivors = self.secure_sum.sum(stand_ins, dropouts).survivors
        bits = encoding.codec.ring_bits
        sent = {"input": packing.packed_bytes(len(total), bits) * len(survivors)}
        seconds = {"input": self.encoded.seconds}
        return Aggregate(encoding.decode(total), survivors, {}, {}, sent, seconds, ring_bits=bits)
