"""From the survivors' updates to their sum: in the clear, or as integers of a ring, masked or not.

Every way has the same rule of who counts: a client whose input arrived is in the sum, even when it vanishes after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.randomness import RandomSource
from privfed.secagg import FixedPointCodec, SecureSum, Stage, arrives

Real = NDArray[np.float64]
Vector = NDArray[Any]
Dropouts = Mapping[int, Stage | None]


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
    """

    total: Real
    survivors: tuple[int, ...]
    received: Mapping[int, Real]
    uploads: Mapping[int, Real] = field(default_factory=dict)
    bytes_per_stage: Mapping[str, int] = field(default_factory=dict)
    seconds_per_stage: Mapping[str, float] = field(default_factory=dict)


class Aggregation(Protocol):
    """Sums client vectors; ``bound`` is the L2 bound of each of them in the round, ``None`` for none."""

    def slack(self, cohort_size: int, length: int, bound: float | None) -> float:
        """By how much encoding may lengthen a vector: clip to the bound less this."""
        ...

    def sum(
        self,
        round_number: int,
        vectors: Mapping[int, Vector],
        dropouts: Dropouts,
        source: Callable[[int], RandomSource],
        bound: float | None,
    ) -> Aggregate:
        """Sum ``vectors`` of those clients that ``dropouts`` lets arrive; ``source`` gives a client's randomness.

        Vectors of int64 are summed as they are: modulo the ring where there is one, with the result centred on 0.

        Raises:
            privfed.secagg.RoundAborted: Too few clients were left.
        """
        ...


class PlainAggregation:
    """Mode ``off``: floats in the clear, and the server sees each of them."""

    def slack(self, cohort_size: int, length: int, bound: float | None) -> float:
        """Nothing is rounded."""
        return 0.0

    def sum(
        self,
        round_number: int,
        vectors: Mapping[int, Vector],
        dropouts: Dropouts,
        source: Callable[[int], RandomSource],
        bound: float | None,
    ) -> Aggregate:
        """Sum in the order of the clients' identifiers, so that the rounding is always the same."""
        received = {
            c: np.asarray(vectors[c], np.float64)
            for c in sorted(vectors)
            if arrives(dropouts.get(c, Stage.UNMASK))
        }
        length = len(next(iter(vectors.values())))
        total = np.zeros(length)
        for vector in received.values():
            total += vector
        return Aggregate(total, tuple(received), received, {}, {"input": length * 4 * len(received)})


@dataclass(frozen=True)
class RingAggregation:
    """Modes ``ring`` and ``protocol``: fixed point in a ring; the same integers, so the same sum to the last bit.

    Attributes:
        secure_sum: ``(round, threshold) -> SecureSum``: the plain ring sum or the masking protocol.
        ring_bits: Width of the ring.
        threshold: Survivors needed; raised to a majority of the cohort, which the protocol requires.
        masked: Whether what arrives hides what was sent.
    """

    secure_sum: Callable[[int, int], SecureSum]
    ring_bits: int
    threshold: int | None
    masked: bool

    def slack(self, cohort_size: int, length: int, bound: float | None) -> float:
        """``sqrt(length) / scale``: stochastic rounding moves each coordinate by less than one step."""
        return self._codec(cohort_size, length, bound).rounding_slack

    def sum(
        self,
        round_number: int,
        vectors: Mapping[int, Vector],
        dropouts: Dropouts,
        source: Callable[[int], RandomSource],
        bound: float | None,
    ) -> Aggregate:
        """Encode, mask (in mode ``protocol``), sum, unmask, decode."""
        first = next(iter(vectors.values()))
        if np.issubdtype(first.dtype, np.integer):
            integers = IntegerCodec(self.ring_bits)
            encoded = {c: integers.encode(v) for c, v in sorted(vectors.items())}
            decode = integers.decode
        else:
            codec = self._codec(len(vectors), len(first), bound)
            encoded = {c: codec.encode(v, source(c).words(len(v))) for c, v in sorted(vectors.items())}
            decode = codec.decode
        threshold = max(self.threshold or 2, len(vectors) // 2 + 1)
        result = self.secure_sum(round_number, threshold).sum(encoded, dropouts)
        return Aggregate(
            decode(result.total),
            result.survivors,
            {c: decode(encoded[c]) for c in result.survivors},
            {c: decode(u) for c, u in result.uploads.items()} if self.masked else {},
            result.bytes_per_stage,
            result.seconds_per_stage,
        )

    def _codec(self, cohort_size: int, length: int, bound: float | None) -> FixedPointCodec:
        if bound is None:
            raise ValueError("a ring of fixed width needs vectors of bounded norm")
        return FixedPointCodec.for_cohort(max(cohort_size, 1), bound, length, ring_bits=self.ring_bits)


@dataclass(frozen=True)
class IntegerCodec:
    """Integers to a ring and back, centred on 0: exact while no sum leaves half of the ring."""

    ring_bits: int

    def encode(self, vector: NDArray[np.int64]) -> NDArray[Any]:
        """``vector`` ``[length]`` modulo the ring."""
        return vector.astype(np.uint64).astype(f"u{self.ring_bits // 8}")

    def decode(self, total: NDArray[Any]) -> Real:
        """The representative nearest to 0."""
        centred: Real = total.astype(f"u{self.ring_bits // 8}").view(f"i{self.ring_bits // 8}").astype(np.float64)
        return centred
