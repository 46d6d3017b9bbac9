"""Arithmetic of scales and norms that rounds nothing: a bound that is checked in floats is none."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privfed.secagg.errors import ParameterError

Words = NDArray[np.uint64]


def exact_square_sum(values: Words) -> int:
    """Sum of squares of integers below ``2**63``, with no rounding and no overflow.

    A square is built of 32-bit halves, and partial sums are kept in two 32-bit halves as well, which can hold
    ``2**32`` of them.
    """
    low, high = values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)
    total = _exact_sum(low * low)
    if high.any():
        total += (_exact_sum(low * high) << 33) + (_exact_sum(high * high) << 64)
    return total


def _exact_sum(values: Words) -> int:
    low = int((values & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))
    high = int((values >> np.uint64(32)).sum(dtype=np.uint64))
    return low + (high << 32)


def power_of_two(times: int, exponent: int, clip_norm: float) -> float:
    """``times * 2**exponent``, which must be an everyday number."""
    if not -900 <= exponent <= 900:
        raise ParameterError(f"clip_norm: {clip_norm} is too far from 1 for float64. Rescale the updates")
    return math.ldexp(times, exponent)


def floor_log2(value: Fraction) -> int:
    """Of a positive fraction, the exponent of the largest power of two that is no more."""
    estimate = value.numerator.bit_length() - value.denominator.bit_length()
    return estimate if Fraction(2) ** estimate <= value else estimate - 1
