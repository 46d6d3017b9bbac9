"""Stochastic rounding to the grid, block by block, by the bits of a keystream."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext
from numpy.typing import NDArray

from privfed.secagg import ring
from privfed.secagg.prg import keystream

BLOCK = 1 << 15
"""Coordinates rounded together: all that is made on the way stays in the cache."""

FRACTION_BITS = 16
"""Most bits that decide a rounding in ``Float32Rounding``."""

_BLAS_PART = 1 << 13
_ZEROS = memoryview(bytes(8 * BLOCK))


class Rounding(Protocol):
    """Rounds one block of a vector after another."""

    def __call__(self, block: NDArray[Any]) -> NDArray[Any] | None:
        """Signed steps of the grid ``[len(block)]``, as wide as the ring, in space that the next call uses again.

        ``None`` when the block is not finite, or by itself longer than the bound; NumPy may warn of that.
        """
        ...

    def longest(self) -> float:
        """Steps that the L2 norm of all blocks so far, rounded, does not exceed."""
        ...


class Float32Rounding:
    """Of float32 to 32-bit steps, by fixed point: a coordinate ``m``, in steps, as ``M = trunc(2**f m)`` in int32.

    With ``R`` uniform on the integers below ``2**f`` the result is ``(M + R) >> f``: one of the two neighbours of
    ``m``, and in the mean ``m`` but for less than ``2**-f`` steps. ``f`` is 16, or what the length leaves room
    for: so what is lost is below ``2**-16`` steps, or below ``2**-29`` of the length.

    Args:
        scale: Steps of the grid per unit of what is rounded.
        length: L2 norm, in steps, that the vector does not exceed; below ``2**31 - 2**16``.
        dimension: Of the vector.
        key: Of the keystream, 32 bytes.
    """

    def __init__(self, scale: np.float32, length: float, dimension: int, key: bytes) -> None:
        # What rounds in these few operations is less than ``FixedPointCodec.rounding_slack`` leaves for measuring.
        self._longest = (length + math.sqrt(dimension)) * (1 + 2.0**-50)
        # No coordinate is longer than the vector.
        self._fraction = max(0, min(FRACTION_BITS, 30 - math.frexp(length)[1]))
        self._scale = scale * np.float32(2**self._fraction)
        self._stream = keystream(key)
        self._words = np.empty(BLOCK, "u1" if self._fraction <= 8 else "<u2")
        self._spare = self._words.dtype.type(8 * self._words.itemsize - self._fraction)
        # Rows that lie a power of two apart share sets of the cache, and the loads wait for the stores.
        self._scaled, as_ints = np.empty((2, BLOCK + 272), np.float32)
        self._steps = as_ints.view(np.int32)

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        """As ``Rounding``."""
        scaled = self._scaled[: len(block)]
        steps: NDArray[np.int32] = self._steps[: len(block)]
        np.multiply(block, self._scale, out=scaled)
        steps[...] = scaled
        random = _next_words(self._stream, self._words, len(block))
        if self._spare:
            np.right_shift(random, self._spare, out=random)
        np.add(steps, random, out=steps)
        np.right_shift(steps, self._fraction, out=steps)
        return steps

    def longest(self) -> float:
        """As ``Rounding``."""
        return self._longest


class Float64Rounding:
    """Of any floats to steps of a 32- or 64-bit ring: magnitudes first, then signs; 64 bits for each rounding.

    Args:
        scale: Steps of the grid per unit, a power of two.
        bound: Longest vector, in steps.
        key: Of the keystream, 32 bytes.
        ring_bits: From 8 to 64.
    """

    def __init__(self, scale: float, bound: float, key: bytes, ring_bits: int) -> None:
        self._scale, self._bound, self._squared, self._count = scale, bound, 0.0, 0
        self._dtype = np.dtype(f"i{ring.dtype_of(ring_bits).itemsize}")
        self._stream = keystream(key)
        self._words = np.empty(BLOCK, "<u8")

    def __call__(self, block: NDArray[Any]) -> NDArray[Any] | None:
        """As ``Rounding``."""
        words = _next_words(self._stream, self._words, len(block))
        magnitudes = np.abs(block.astype(np.float64)) * self._scale
        if not magnitudes.max() <= self._bound:
            return None
        rounded = round_magnitudes(magnitudes, words)
        signed = rounded.astype(np.int64)
        np.negative(signed, out=signed, where=block < 0)
        self._squared += sum_of_squares(rounded.astype(np.float64))
        self._count += len(block)
        return signed.astype(self._dtype)

    def longest(self) -> float:
        """As ``Rounding``."""
        return math.sqrt(self._squared) * (1 + (self._count + 8) * 2.0**-52)


def round_magnitudes(magnitudes: NDArray[np.float64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each of ``magnitudes`` up with the probability of its fraction, decided by uniform ``words``."""
    fractions, wholes = np.modf(magnitudes)
    steps = wholes.astype(np.uint64)
    steps += words < np.ldexp(fractions, 64).astype(np.uint64)
    return steps


def sum_of_squares(vector: NDArray[Any]) -> float:
    """Of floats ``[n]``, in float64; in parts for which BLAS starts no threads."""
    total = 0.0
    for start in range(0, len(vector), _BLAS_PART):
        part = vector[start : start + _BLAS_PART].astype(np.float64, copy=False)
        total += float(np.dot(part, part))
    return total


def _next_words(stream: CipherContext, into: NDArray[Any], size: int) -> NDArray[Any]:
    words = into[:size]
    stream.update_into(_ZEROS[: words.nbytes], words.view(np.uint8).data)
    return words
