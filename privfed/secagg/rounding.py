"""Stochastic rounding to the grid, block by block, by the bits of a keystream."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext
from numpy.typing import NDArray

from privfed.secagg import ring
from privfed.secagg.prg import keystream

BLOCK = 1 << 15
"""Coordinates rounded together: all that is made on the way stays in the cache."""

FRACTION_BITS = 16
"""Bits that decide a rounding in ``Float32Rounding``."""

PIECE = 256
"""Most float32 squares that are added up before float64 takes over."""

_BLAS_PART = 1 << 13
_ZEROS = memoryview(bytes(8 * BLOCK))

Rounded = tuple[NDArray[Any], float]
"""Signed steps of the grid, as wide as the ring, and the sum of their squares."""


class Rounding(Protocol):
    """Rounds one block of a vector after another."""

    error: float
    """Most by which a sum of squares may be off, as a share of itself."""

    def __call__(self, block: NDArray[Any]) -> Rounded | None:
        """Steps ``[len(block)]``, in space that the next call uses again, and the sum of their squares.

        ``None`` when the block is not finite, or by itself longer than the bound; NumPy may warn of that.
        """
        ...


class Float32Rounding:
    """Of float32 to 32-bit steps, which must stay below ``2**30``, almost all of it in float32.

    A coordinate ``m``, in steps, goes to one of its two neighbours. Rounded down it is ``i``, and the rest is
    ``f = m - i``; below ``2**24`` neither has an error, and above it ``f`` is 0. With ``R`` uniform on the
    integers below ``2**16`` the result is ``i + 1`` where ``R < 2**16 f``: the mean is right to ``2**-16`` steps.

    Args:
        scale: Steps of the grid per unit of what is rounded.
        bound: Longest vector, in steps.
        key: Of the keystream, 32 bytes.
    """

    error = 2.0**-15  # a sum of 256 float32 squares is off by less than 256 · 2⁻²⁴ (Higham 2002, section 4.2)

    def __init__(self, scale: np.float32, bound: float, key: bytes) -> None:
        self._scale, self._limit = scale, bound**2 * (1 + self.error)
        self._stream = keystream(key)
        self._words = np.empty(BLOCK, "<u2")
        # Rows that lie a power of two apart share sets of the cache, and the loads wait for the stores.
        self._scaled, self._down, self._random = np.empty((3, BLOCK + 272), np.float32)
        self._up, self._steps = np.empty(BLOCK, bool), np.empty(BLOCK, np.int32)

    def __call__(self, block: NDArray[Any]) -> Rounded | None:
        """As ``Rounding``."""
        size = len(block)
        scaled, down, random, up, steps = (
            scratch[:size] for scratch in (self._scaled, self._down, self._random, self._up, self._steps)
        )
        random[...] = _next_words(self._stream, self._words, size)
        np.multiply(block, self._scale, out=scaled)
        np.floor(scaled, out=down)
        np.subtract(scaled, down, out=scaled)
        np.multiply(scaled, np.float32(2**FRACTION_BITS), out=scaled)
        np.less(random, scaled, out=up)
        random[...] = up  # faster than to add what is of another type
        np.add(down, random, out=down)
        squared = self._sum_of_squares(size)
        if not squared <= self._limit:  # false for what is not a number
            return None
        steps[...] = down
        return steps, squared

    def _sum_of_squares(self, size: int) -> float:
        whole = -(-size // PIECE) * PIECE
        self._down[size:whole] = 0
        pieces = self._down[:whole].reshape(-1, PIECE)
        return float(np.einsum("ij,ij->i", pieces, pieces).sum(dtype=np.float64))


class Float64Rounding:
    """Of any floats to steps of a 32- or 64-bit ring: magnitudes first, then signs; 64 bits for each rounding.

    Args:
        scale: Steps of the grid per unit, a power of two.
        bound: Longest vector, in steps.
        key: Of the keystream, 32 bytes.
        ring_bits: From 8 to 64.
    """

    error = BLOCK * 2.0**-52

    def __init__(self, scale: float, bound: float, key: bytes, ring_bits: int) -> None:
        self._scale, self._bound = scale, bound
        self._dtype = np.dtype(f"i{ring.dtype_of(ring_bits).itemsize}")
        self._stream = keystream(key)
        self._words = np.empty(BLOCK, "<u8")

    def __call__(self, block: NDArray[Any]) -> Rounded | None:
        """As ``Rounding``."""
        words = _next_words(self._stream, self._words, len(block))
        magnitudes = np.abs(block.astype(np.float64)) * self._scale
        if not magnitudes.max() <= self._bound:
            return None
        rounded = round_magnitudes(magnitudes, words)
        signed = rounded.astype(np.int64)
        np.negative(signed, out=signed, where=block < 0)
        return signed.astype(self._dtype), sum_of_squares(rounded.astype(np.float64))


def round_magnitudes(magnitudes: NDArray[np.float64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each of ``magnitudes`` up with the probability of its fraction, decided by uniform ``words``."""
    fractions, wholes = np.modf(magnitudes)
    steps = wholes.astype(np.uint64)
    steps += words < np.ldexp(fractions, 64).astype(np.uint64)
    return steps


def sum_of_squares(vector: NDArray[Any]) -> float:
    """Of floats ``[n]``, in their own precision; in parts for which BLAS starts no threads."""
    total = 0.0
    for start in range(0, len(vector), _BLAS_PART):
        part = vector[start : start + _BLAS_PART]
        total += float(np.dot(part, part))
    return total


def _next_words(stream: CipherContext, into: NDArray[Any], size: int) -> NDArray[Any]:
    words = into[:size]
    stream.update_into(_ZEROS[: words.nbytes], words.view(np.uint8).data)
    return words
