"""From clients' vectors to a ring and back, each vector straight into a sum."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.randomness import RandomSource
from privfed.secagg import FixedPointCodec, ring

Real = NDArray[np.float64]

ONE = np.float32(1)


class RingCodec(Protocol):
    """Whatever encodes into a ring."""

    @property
    def ring_bits(self) -> int:
        """Width of the ring."""
        ...


class Encoding(Protocol):
    """From a client's vector to the ring and back."""

    @property
    def codec(self) -> RingCodec:
        """What knows the ring."""
        ...

    def zeros(self) -> NDArray[Any]:
        """What sums begin with."""
        ...

    def add(
        self,
        total: NDArray[Any],
        client: int,
        vector: NDArray[Any],
        factor: np.float32 = ONE,
        longest: float | None = None,
    ) -> None:
        """Encode ``factor * vector`` of ``client`` and add it to ``total`` in place, as long as ``zeros()``.

        ``longest`` is an L2 norm that it does not exceed, where that is known.
        """
        ...

    def decode(self, total: NDArray[Any]) -> Real:
        """Of a ring vector."""
        ...


@dataclass(eq=False)
class EncodedSum:
    """A sum in the ring: the same integers in whatever order and in however many pieces it is added up.

    Attributes:
        encoding: Of each vector.
        total: So far, ``[length]`` of the ring's type; ``None`` before the first.
        seconds: Spent on encoding.
    """

    encoding: Encoding
    total: NDArray[Any] | None = field(default=None, repr=False)
    seconds: float = 0.0

    def add(
        self, client: int, vector: NDArray[Any], factor: np.float32 = ONE, longest: float | None = None
    ) -> None:
        """Add ``factor * vector`` of a client whose input will arrive; arguments as ``Encoding.add``."""
        started = time.perf_counter()
        if self.total is None:
            self.total = self.encoding.zeros()
        self.encoding.add(self.total, client, vector, factor, longest)
        self.seconds += time.perf_counter() - started

    def merge(self, total: NDArray[Any] | None, seconds: float) -> None:
        """Add what was added up elsewhere with the same encoding; ``total`` may be kept, and is not changed."""
        self.seconds += seconds
        if self.total is None or total is None:
            self.total = self.total if total is None else total.copy()
        else:
            self.total += total


@dataclass(frozen=True)
class FixedPointEncoding:
    """Of real vectors; ``source`` gives a client's randomness."""

    codec: FixedPointCodec
    source: Callable[[int], RandomSource]

    def zeros(self) -> NDArray[Any]:
        """As ``Encoding``."""
        return np.zeros(self.codec.length, self.codec.dtype)

    def add(
        self,
        total: NDArray[Any],
        client: int,
        vector: NDArray[Any],
        factor: np.float32 = ONE,
        longest: float | None = None,
    ) -> None:
        """As ``Encoding``."""
        # 256 bits of the client's own, whether from a seed or from the CSPRNG, key its rounding.
        self.codec.add_encoded(total, vector, self.source(client).words(4).tobytes(), factor, longest)

    def decode(self, total: NDArray[Any]) -> Real:
        """As ``Encoding``."""
        return self.codec.decode(total)


@dataclass(frozen=True)
class IntegerEncoding:
    """Of vectors ``[length]`` that are integers already."""

    codec: IntegerCodec
    length: int

    def zeros(self) -> NDArray[Any]:
        """As ``Encoding``."""
        return np.zeros(self.length, self.codec.dtype)

    def add(
        self,
        total: NDArray[Any],
        client: int,
        vector: NDArray[Any],
        factor: np.float32 = ONE,
        longest: float | None = None,
    ) -> None:
        """As ``Encoding``; integers are taken as they are, so the factor must be 1."""
        if factor != 1:
            raise ValueError(f"integers cannot be scaled on their way into the ring, got a factor of {factor}")
        total += self.codec.encode(vector)

    def decode(self, total: NDArray[Any]) -> Real:
        """As ``Encoding``."""
        return self.codec.decode(total)


@dataclass(frozen=True)
class IntegerCodec:
    """Integers to a ring and back, centred on 0: exact while no sum leaves half of the ring."""

    ring_bits: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of a ring element."""
        return ring.dtype_of(self.ring_bits)

    def encode(self, vector: NDArray[np.int64]) -> NDArray[Any]:
        """``vector`` ``[length]`` modulo the ring."""
        encoded: NDArray[Any] = vector.astype(np.uint64).astype(self.dtype)
        return encoded

    def decode(self, total: NDArray[Any]) -> Real:
        """The representative nearest to 0."""
        centred: Real = ring.to_signed(total, self.ring_bits).astype(np.float64)
        return centred
