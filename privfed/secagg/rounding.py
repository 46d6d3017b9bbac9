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

FRACTION_BITS = 30
"""Bits that decide a rounding in ``Float32Rounding``: a fraction and a random number add up in an int32."""


_BLAS_PART = 1 << 13
_ZEROS = memoryview(bytes(8 * BLOCK))


class Rounding(Protocol):
    """Rounds one block of a vector after another."""

    def __call__(self, block: NDArray[Any]) -> NDArray[Any] | None:
        """Signed steps of the grid ``[len(block)]``, as wide as the ring, in space that the next call uses again.

        ``None`` when the block is not finite, or by itself longer than the bound.
        """
        ...


class Float32Rounding:
    """Of float32 to 32-bit steps, which must stay below ``2**30``, in float32 and int32 alone.

    A coordinate ``m``, in steps, goes to one of its two neighbours. Truncated towards zero it is ``i``, and the
    rest is ``f = m - i``, both without error. With ``R`` uniform on the integers below ``2**30`` the result is
    ``i + floor((f · 2**30 + R) / 2**30)``, which adds the sign of ``f`` with probability ``|f|``.

    Args:
        scale: Steps of the grid per unit, a power of two.
        bound: Longest vector, in steps.
        key: Of the keystream, 32 bytes.
    """

    def __init__(self, scale: float, bound: float, key: bytes) -> None:
        self._scale, self._limit = np.float32(scale), (1.001 * bound) ** 2
        self._stream = keystream(key)
        self._words = np.empty(BLOCK, "<u4")
        self._scaled, self._rest = np.empty((2, BLOCK), np.float32)
        self._steps, self._bits = np.empty((2, BLOCK), np.int32)

    def __call__(self, block: NDArray[Any]) -> NDArray[Any] | None:
        """As ``Rounding``."""
        size = len(block)
        scaled, rest, steps, bits = (
            scratch[:size] for scratch in (self._scaled, self._rest, self._steps, self._bits)
        )
        with np.errstate(over="ignore"):
            np.multiply(block, self._scale, out=scaled)
        # Right to a thousandth, and false for what is not a number.
        if not sum_of_squares(scaled) <= self._limit:
            return None
        steps[...] = scaled
        rest[...] = steps
        np.subtract(scaled, rest, out=rest)
        np.multiply(rest, np.float32(2**FRACTION_BITS), out=rest)
        bits[...] = rest
        words = _next_words(self._stream, self._words, size)
        np.right_shift(words, 32 - FRACTION_BITS, out=words)
        np.add(bits, words.view(np.int32), out=bits)
        np.right_shift(bits, FRACTION_BITS, out=bits)
        rounded: NDArray[Any] = np.add(steps, bits, out=steps)
        return rounded


class Float64Rounding:
    """Of any floats to steps of a 32- or 64-bit ring: magnitudes first, then signs; 64 bits for each rounding.

    Args:
        scale: Steps of the grid per unit, a power of two.
        bound: Longest vector, in steps.
        key: Of the keystream, 32 bytes.
        ring_bits: From 8 to 64.
    """

    def __init__(self, scale: float, bound: float, key: bytes, ring_bits: int) -> None:
        self._scale, self._bound = scale, bound
        self._dtype = np.dtype(f"i{ring.dtype_of(ring_bits).itemsize}")
        self._stream = keystream(key)
        self._words = np.empty(BLOCK, "<u8")

    def __call__(self, block: NDArray[Any]) -> NDArray[Any] | None:
        """As ``Rounding``."""
        words = _next_words(self._stream, self._words, len(block))
        with np.errstate(over="ignore"):
            magnitudes = np.abs(block.astype(np.float64)) * self._scale
        if not magnitudes.max() <= self._bound:
            return None
        signed: NDArray[Any] = round_magnitudes(magnitudes, words).astype(np.int64)
        np.negative(signed, out=signed, where=block < 0)
        steps: NDArray[Any] = signed.astype(self._dtype)
        return steps


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
