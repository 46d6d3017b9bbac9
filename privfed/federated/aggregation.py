"""From the survivors' updates to their sum: in the clear, or as integers of a ring, masked or not.

Every way has the same rule of who counts: a client whose input arrived is in the sum, even when it vanishes after.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.federated.encoding import Encoding, FixedPointEncoding, IntegerCodec, IntegerEncoding
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


class RunningSum(Protocol):
    """A sum that needs no vector once it has it."""

    def add(self, client: int, vector: Vector) -> None:
        """Add the vector of a client whose input will arrive; from any thread, in any order."""
        ...

    def close(self, dropouts: Dropouts) -> Aggregate:
        """The sum, without single vectors; ``dropouts`` names every client that was not added, and others.

        Raises:
            privfed.secagg.RoundAborted: Too few clients were left.
        """
        ...


class Aggregation(Protocol):
    """Sums client vectors; ``bound`` is the L2 bound of each of them in the round, ``None`` for none."""

    def slack(self, cohort_size: int, length: int, bound: float | None) -> float:
        """By how much encoding may lengthen a vector: clip to the bound less this."""
        ...

    def running_sum(
        self,
        round_number: int,
        cohort: Sequence[int],
        length: int,
        source: Callable[[int], RandomSource],
        bound: float | None,
        *,
        integral: bool,
    ) -> RunningSum | None:
        """What ``sum`` gives, vector by vector; ``None`` where the vectors must be there together.

        ``integral`` says that the vectors of ``cohort``, each ``[length]``, are of int64.
        """
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

    def running_sum(
        self,
        round_number: int,
        cohort: Sequence[int],
        length: int,
        source: Callable[[int], RandomSource],
        bound: float | None,
        *,
        integral: bool,
    ) -> RunningSum | None:
        """None: floats are added in one order, so that the rounding is always the same."""
        return None

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
        encoding = self._encoding(len(vectors), len(first), bound, np.issubdtype(first.dtype, np.integer), source)
        encoded = {}
        for client, vector in sorted(vectors.items()):
            encoded[client] = encoding.zeros(len(first))
            encoding.add(encoded[client], client, vector)
        result = self.secure_sum(round_number, self._threshold(len(vectors))).sum(encoded, dropouts)
        return Aggregate(
            encoding.decode(result.total),
            result.survivors,
            {c: encoding.decode(encoded[c]) for c in result.survivors},
            {c: encoding.decode(u) for c, u in result.uploads.items()} if self.masked else {},
            result.bytes_per_stage,
            result.seconds_per_stage,
        )

    def running_sum(
        self,
        round_number: int,
        cohort: Sequence[int],
        length: int,
        source: Callable[[int], RandomSource],
        bound: float | None,
        *,
        integral: bool,
    ) -> RunningSum | None:
        """Integers add up to the same in any order; masking needs them together."""
        if self.masked or not cohort:
            return None
        return _RunningRingSum(
            self._encoding(len(cohort), length, bound, integral, source),
            length,
            tuple(cohort),
            self.secure_sum(round_number, self._threshold(len(cohort))),
        )

    def _threshold(self, cohort_size: int) -> int:
        return max(self.threshold or 2, cohort_size // 2 + 1)

    def _encoding(
        self,
        cohort_size: int,
        length: int,
        bound: float | None,
        integral: bool,
        source: Callable[[int], RandomSource],
    ) -> Encoding:
        if integral:
            return IntegerEncoding(IntegerCodec(self.ring_bits))
        return FixedPointEncoding(self._codec(cohort_size, length, bound), source)

    def _codec(self, cohort_size: int, length: int, bound: float | None) -> FixedPointCodec:
        if bound is None:
            raise ValueError("a ring of fixed width needs vectors of bounded norm")
        return FixedPointCodec.for_cohort(max(cohort_size, 1), bound, length, ring_bits=self.ring_bits)


class _RunningRingSum:
    """One partial sum for each thread that adds at the same time."""

    def __init__(self, encoding: Encoding, length: int, cohort: tuple[int, ...], secure_sum: SecureSum) -> None:
        self._encoding, self._length, self._cohort, self._secure_sum = encoding, length, cohort, secure_sum
        self._idle: list[NDArray[Any]] = []
        self._lock = threading.Lock()
        self._seconds = 0.0

    def add(self, client: int, vector: Vector) -> None:
        started = time.perf_counter()
        with self._lock:
            partial = self._idle.pop() if self._idle else self._encoding.zeros(self._length)
        self._encoding.add(partial, client, vector)
        with self._lock:
            self._idle.append(partial)
            self._seconds += time.perf_counter() - started

    def close(self, dropouts: Dropouts) -> Aggregate:
        # Who survives, and whether enough do, is for the sum of whole cohorts to say: it gets short vectors.
        stand_ins = {client: self._encoding.zeros(1) for client in self._cohort}
        survivors = self._secure_sum.sum(stand_ins, dropouts).survivors
        total = self._encoding.zeros(self._length)
        for partial in self._idle:
            total += partial
        sent = {"input": total.nbytes * len(survivors)}
        return Aggregate(self._encoding.decode(total), survivors, {}, {}, sent, {"input": self._seconds})
