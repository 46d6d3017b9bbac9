"""Symmetric Skellam noise, the difference of two Poisson numbers: a sum of such noises is such noise again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError
from privfed.privacy.randomness import RandomSource

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

MAX_VARIANCE = 2.0**32
"""In steps²: its table takes 6 MB."""
MIN_VARIANCE = 2.0**-20
LARGE = 1000.0
"""From this variance on the uniform expansion of the Bessel function is as good as float64."""
TAIL_BITS = 80
"""The noise never reaches where the distribution has less than 2⁻⁸⁰ left."""
LEVEL_BITS = 10
"""Each level of tables covers a tail down to this share of itself."""
BLOCK = 1 << 16


@dataclass(frozen=True)
class _Level:
    """Inverts the distribution of the magnitude, given that it is at least ``start``.

    ``thresholds[i]``, ascending, is ``2⁶³ · P(magnitude > start + last - i | magnitude ≥ start)``.
    """

    start: int
    thresholds: Words


def skellam(variance: float, size: int, source: RandomSource) -> Integers:
    """``Poisson(variance/2) - Poisson(variance/2)``, ``[size]``.

    By inversion of tables. One word gives the sign and a 63-bit number to look up the magnitude by. The rarest
    2⁻¹⁰ of the numbers mean "further out", where a fresh word is looked up in the table of the tail, and so on.
    Each probability is so within a factor ``1 ± 2⁻³⁵`` of the true one, down to a tail of mass below 2⁻⁸⁰ that is
    never drawn. The total variation distance is below 2⁻³⁵ a coordinate; what counts for privacy is the factor,
    by which a release of 10⁶ coordinates adds less than 10⁻⁴ to ε (and the tail less than 10⁻¹⁷ to δ).

    Args:
        variance: In steps², from ``MIN_VARIANCE`` to ``MAX_VARIANCE``.
        size: How many.
        source: Seeded or secure; both take the same path.

    Raises:
        PrivacyError: The variance is out of range.
    """
    if not MIN_VARIANCE <= variance <= MAX_VARIANCE:
        raise PrivacyError(
            f"must be from {MIN_VARIANCE:g} to {MAX_VARIANCE:g} steps²", where="variance", value=variance
        )
    levels = _levels(float(variance))
    out = np.empty(size, np.int64)
    for begin in range(0, size, BLOCK):
        block = out[begin : begin + BLOCK]
        words = source.words(len(block))
        negative = (words & np.uint64(1)).astype(bool)
        block[:] = _magnitudes(levels, words, source)
        np.negative(block, out=block, where=negative)
    return out


def _magnitudes(levels: tuple[_Level, ...], words: Words, source: RandomSource) -> Integers:
    result = np.empty(len(words), np.int64)
    missing = np.arange(len(words))
    for level in levels:
        above = np.searchsorted(level.thresholds, words >> np.uint64(1), side="right")
        inside = above > 0
        result[missing[inside]] = level.start + len(level.thresholds) - above[inside]
        missing = missing[~inside]
        if not missing.size:
            break
        words = source.words(missing.size)
    return result


@lru_cache(maxsize=4)
def _levels(variance: float) -> tuple[_Level, ...]:
    magnitude = np.exp(log_pmf(np.arange(_reach(variance) + 1), variance))
    magnitude[1:] *= 2
    # From the far end, so that small probabilities are summed before large ones; normalised by the same sum.
    survival = np.append(np.cumsum(magnitude[::-1])[::-1], 0.0)
    levels, start, end = [], 0, len(magnitude)
    while start < end:
        # ``survival`` decreases: everything up to the first magnitude whose tail is small enough.
        far = int(np.searchsorted(-survival[:end], -survival[start] * 2.0**-LEVEL_BITS))
        stop = min(max(start + 1, far), end)
        share = survival[start + 1 : stop + 1] / survival[start]
        levels.append(_Level(start, np.rint(share * 2.0**63).astype(np.uint64)[::-1].copy()))
        start = stop
    return tuple(levels)


def _reach(variance: float) -> int:
    """Beyond it there is a mass below 2⁻⁸⁰, by Chernoff: ``log E exp(tX) = variance·(cosh t - 1)``."""
    t = np.geomspace(1e-5, 50, 400)
    bits = (TAIL_BITS + 1) * math.log(2)
    return math.ceil(float(((bits + variance * (np.cosh(t) - 1)) / t).min()))


def log_pmf(values: Integers, variance: float) -> NDArray[np.float64]:
    """Logarithm of ``exp(-variance) · I_|k|(variance)``, the probability of ``k``, for each of ``values``.

    For a large variance by the uniform expansion of the modified Bessel function (DLMF 10.41.3), rewritten with
    ``r = sqrt(k² + variance²)`` so that it holds at ``k = 0`` too.
    """
    k = np.abs(values).astype(np.float64)
    if variance < LARGE:
        from scipy.special import ive

        with np.errstate(divide="ignore"):  # probabilities below 1e-300 are 0
            return np.asarray(np.log(ive(k, variance)))
    u = k / variance
    root = np.sqrt(1 + np.square(u))
    exponent = variance * (np.square(u) / (1 + root) - u * np.arcsinh(u))
    r = variance * root
    p2 = np.square(k / r)
    first_term = (3 - 5 * p2) / 24
    second = (81 + p2 * (-462 + p2 * 385)) / 1152
    third = (30375 + p2 * (-369603 + p2 * (765765 - p2 * 425425))) / 414720
    series = (first_term + (second + third / r) / r) / r
    result: NDArray[np.float64] = exponent - np.log(2 * math.pi * r) / 2 + np.log1p(series)
    return result
