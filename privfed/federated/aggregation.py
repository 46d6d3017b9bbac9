"""From the survivors' updates to their sum: in the clear, or as integers of a ring, masked or not.

Every way has the same rule of who counts: a client whose input arrived is in the sum, even when it vanishes after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.randomness import RandomSource
from privfed.secagg import FixedPointCodec, SecureSum, Stage, arrives

Real = NDArray[np.float64]
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
    """Sums client vectors of bounded norm."""

    def slack(self, cohort_size: int, length: int) -> float:
        """By how much encoding may lengthen a vector: clip to the bound less this."""
        ...

    def sum(
        self,
        round_number: int,
        vectors: Mapping[int, Real],
        dropouts: Dropouts,
        source: Callable[[int], RandomSource],
    ) -> Aggregate:
        """Sum ``vectors`` of those clients that ``dropouts`` lets arrive; ``source`` gives a client's randomness.

        Raises:
            privfed.secagg.RoundAborted: Too few clients were left.
        """
        ...


class PlainAggregation:
    """Mode ``off``: floats in the clear, and the server sees each of them."""

    def slack(self, cohort_size: int, length: int) -> float:
        """Nothing is rounded."""
        return 0.0

    def sum(
        self,
        round_number: int,
        vectors: Mapping[int, Real],
        dropouts: Dropouts,
        source: Callable[[int], RandomSource],
    ) -> Aggregate:
        """Sum in the order of the clients' identifiers, so that the rounding is always the same."""
        received = {c: vectors[c] for c in sorted(vectors) if arrives(dropouts.get(c, Stage.UNMASK))}
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
        bound: L2 bound of every vector.
        ring_bits: Width of the ring.
        threshold: Survivors needed; raised to a majority of the cohort, which the protocol requires.
        masked: Whether what arrives hides what was sent.
    """

    secure_sum: Callable[[int, int], SecureSum]
    bound: float
    ring_bits: int
    threshold: int | None
    masked: bool

    def slack(self, cohort_size: int, length: int) -> float:
        """``sqrt(length) / scale``: stochastic rounding moves each coordinate by less than one step."""
        return self._codec(cohort_size, length).rounding_slack

    def sum(
        self,
        round_number: int,
        vectors: Mapping[int, Real],
        dropouts: Dropouts,
        source: Callable[[int], RandomSource],
    ) -> Aggregate:
        """Encode, mask (in mode ``protocol``), sum, unmask, decode."""
        codec = self._codec(len(vectors), len(next(iter(vectors.values()))))
        encoded = {c: codec.encode(v, source(c).words(len(v))) for c, v in sorted(vectors.items())}
        threshold = max(self.threshold or 2, len(vectors) // 2 + 1)
        result = self.secure_sum(round_number, threshold).sum(encoded, dropouts)
        return Aggregate(
            codec.decode(result.total),
            result.survivors,
            {c: codec.decode(encoded[c]) for c in result.survivors},
            {c: codec.decode(u) for c, u in result.uploads.items()} if self.masked else {},
            result.bytes_per_stage,
            result.seconds_per_stage,
        )

    def _codec(self, cohort_size: int, length: int) -> FixedPointCodec:
        return FixedPointCodec.for_cohort(max(cohort_size, 1), self.bound, length, ring_bits=self.ring_bits)
