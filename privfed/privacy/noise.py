"""Gaussian noise: on the integers from the system's CSPRNG, or in floating point from a seeded generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError
from privfed.privacy.randomness import RandomSource, below

Integers = NDArray[np.int64]

BLOCK = 1 << 16
"""Coordinates sampled together, so that the work stays in the cache."""
MAX_STDDEV = 2**40
"""Largest standard deviation in grid steps: samples of 40 of them still fit a float64 exactly."""


def gaussian(stddev: float, size: int, source: RandomSource) -> NDArray[np.float64]:
    """Floating-point Gaussian noise, ``[size]``: for research only, since its low bits leak (Mironov 2012)."""
    return stddev * source.normal(size)


def discrete_gaussian(stddev: int, size: int, source: RandomSource) -> Integers:
    """Samples of the discrete Gaussian with scale ``stddev``, ``[size]`` (Canonne, Kamath & Steinke 2020, Alg. 3).

    Proportional to ``exp(-x² / (2·stddev²))`` on the integers. The discrete Laplace proposal is exact (integer
    arithmetic only); the acceptance probability is computed in float64 and compared at 64 bits. That changes a
    coordinate's probabilities by a factor within 1 ± 2⁻⁴⁷ where ``|x| ≤ 5·stddev``. Further out the factor grows
    without bound (an acceptance is never rarer than 2⁻⁶⁴), but all of it together moves a probability mass below
    2⁻⁵⁸. A release of 10⁶ coordinates so adds less than 10⁻⁷ to ε and less than ``10⁻¹¹·(1 + exp(ε))`` to δ.

    Raises:
        PrivacyError: ``stddev`` is no integer from 1 to ``MAX_STDDEV``.
    """
    if not (isinstance(stddev, int) and 1 <= stddev <= MAX_STDDEV):
        raise PrivacyError(f"must be an integer from 1 to {MAX_STDDEV} grid steps", where="stddev", value=stddev)
    out = np.empty(size, np.int64)
    for start in range(0, size, BLOCK):
        block = out[start : start + BLOCK]
        missing = np.arange(len(block))
        while missing.size:
            proposal = discrete_laplace(stddev + 1, missing.size, source)
            distance = np.abs(proposal) - stddev * (stddev / (stddev + 1))
            accepted = _below_probability(np.exp(-np.square(distance / stddev) / 2), source)
            block[missing[accepted]] = proposal[accepted]
            missing = missing[~accepted]
    return out


def discrete_laplace(scale: int, size: int, source: RandomSource) -> Integers:
    """Exact samples proportional to ``exp(-|x| / scale)``, ``[size]`` (Canonne et al. 2020, Alg. 2)."""
    out = np.empty(size, np.int64)
    missing = np.arange(size)
    while missing.size:
        remainder = below(source, scale, missing.size)
        kept = np.flatnonzero(bernoulli_exp(remainder, scale, source))
        quotient = _geometric(kept.size, source)
        magnitude = remainder[kept] + scale * quotient
        negative = (source.words(kept.size) & np.uint64(1)).astype(bool)
        proper = ~(negative & (magnitude == 0))  # zero must not be counted twice
        values = np.where(negative, -magnitude, magnitude)[proper]
        out[missing[kept[proper]]] = values
        missing = np.delete(missing, kept[proper])
    return out


def bernoulli_exp(numerators: Integers, denominator: int, source: RandomSource) -> NDArray[np.bool_]:
    """Exact draws, true with probability ``exp(-numerator / denominator)`` for ratios in [0, 1] (Alg. 1)."""
    result = np.zeros(len(numerators), bool)
    alive = np.arange(len(numerators))
    k = 1
    while alive.size:
        goes_on = below(source, denominator * k, alive.size) < numerators[alive]
        result[alive[~goes_on]] = k % 2 == 1
        alive = alive[goes_on]
        k += 1
    return result


def _geometric(size: int, source: RandomSource) -> Integers:
    """How many draws with probability ``exp(-1)`` succeed in a row."""
    count = np.zeros(size, np.int64)
    alive = np.arange(size)
    while alive.size:
        alive = alive[bernoulli_exp(np.ones(alive.size, np.int64), 1, source)]
        count[alive] += 1
    return count


def _below_probability(probability: NDArray[np.float64], source: RandomSource) -> NDArray[np.bool_]:
    # 64 bits of a uniform number against the probability, without rounding the number to a float first.
    words = source.words(len(probability))
    high, low = (words >> np.uint64(32)).astype(np.float64), (words & np.uint64(0xFFFFFFFF)).astype(np.float64)
    scaled = probability * 2.0**32
    whole = np.floor(scaled)
    accepted: NDArray[np.bool_] = (high < whole) | ((high == whole) & (low < (scaled - whole) * 2.0**32))
    return accepted
