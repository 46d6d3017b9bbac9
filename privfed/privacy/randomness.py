"""Where randomness comes from: seeded generators for research, the operating system's CSPRNG for secure mode.

Everything random in the privacy mechanisms is drawn from 64-bit words, so that both modes share one code.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError

Words = NDArray[np.uint64]


class RandomSource(Protocol):
    """A stream of independent uniform 64-bit words."""

    def words(self, size: int) -> Words:
        """The next ``size`` words."""
        ...

    def normal(self, size: int) -> NDArray[np.float64]:
        """Standard normal numbers, ``[size]``.

        Raises:
            PrivacyError: The source is secure, where floating-point noise is no option.
        """
        ...


class SeededSource:
    """PCG64 seeded by a tuple of integers: reproducible, and no secret from who knows the key."""

    def __init__(self, *key: int) -> None:
        self._key = key

    @cached_property
    def _generator(self) -> np.random.Generator:
        # Not before it is used: most mechanisms draw nothing on clients, and seeding is slow.
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._key)))

    def words(self, size: int) -> Words:
        """The next ``size`` words of the stream."""
        return self._generator.integers(0, 2**64, size, dtype=np.uint64)

    def normal(self, size: int) -> NDArray[np.float64]:
        """Standard normal numbers, ``[size]``."""
        return self._generator.standard_normal(size)


class SystemSource:
    """The operating system's CSPRNG."""

    def words(self, size: int) -> Words:
        """``size`` fresh words."""
        return np.frombuffer(os.urandom(8 * size), np.uint64)

    def normal(self, size: int) -> NDArray[np.float64]:
        """Refused: the low bits of floating-point noise give values away (Mironov 2012)."""
        raise PrivacyError(
            "secure mode draws no floating-point noise", remedy="Use the discrete Gaussian on the integer grid"
        )


def uniform(source: RandomSource, size: int) -> NDArray[np.float64]:
    """Multiples of 2⁻⁵³ in [0, 1), ``[size]``."""
    return (source.words(size) >> np.uint64(11)) * 2.0**-53


def bernoulli(source: RandomSource, rate: float, size: int) -> NDArray[np.bool_]:
    """Independent draws that are true with probability ``rate``, to within 2⁻⁵³."""
    if not 0 <= rate <= 1:
        raise PrivacyError("a probability lies in [0, 1]", where="rate", value=rate)
    return uniform(source, size) < rate


def below(source: RandomSource, bound: int, size: int) -> NDArray[np.int64]:
    """Exactly uniform integers in ``[0, bound)``, by rejection, ``[size]``."""
    if not 0 < bound <= 2**62:
        raise PrivacyError("a bound lies in [1, 2^62]", where="bound", value=bound)
    limit = np.uint64((2**64 // bound) * bound - 1)
    out = np.empty(size, np.int64)
    missing = np.arange(size)
    while missing.size:
        words = source.words(missing.size)
        good = words <= limit
        out[missing[good]] = (words[good] % np.uint64(bound)).astype(np.int64)
        missing = missing[~good]
    return out


def choice(source: RandomSource, population: int, size: int) -> NDArray[np.int64]:
    """``size`` of ``population`` without replacement, every set equally likely (Floyd 1987)."""
    if not 0 <= size <= population:
        raise PrivacyError(f"cannot choose from {population}", where="size", value=size)
    chosen: set[int] = set()
    for last in range(population - size, population):
        draw = int(below(source, last + 1, 1)[0])
        chosen.add(last if draw in chosen else draw)
    return np.fromiter(sorted(chosen), np.int64, len(chosen))
