"""Conditional stochastic rounding: to integers, with a bound on the norm that always holds.

Rounding may lengthen a vector by ``sqrt(d)`` steps, yet hardly ever does. Rounding again whenever it lengthens it
by more than a far smaller bound keeps the sensitivity small (Kairouz, Liu & Steinke 2021, Algorithm 1).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError
from privfed.privacy.randomness import RandomSource, uniform

Integers = NDArray[np.int64]

BETA = math.exp(-0.5)
"""How often a rounding may be refused, at most; the paper's choice. Bias and retries fall with it."""
MAX_ATTEMPTS = 100
"""At the default ``BETA`` all of them fail with a probability below 2⁻⁷²."""
MAX_NORM = 2.0**45
"""In steps; above it float64 has no room for what is rounded away."""
MARGIN = 2.0**-46
"""Relative error that a norm computed in float64 by pairwise sums cannot reach."""


def rounded_norm_bound(norm: float, dimension: int, beta: float = BETA) -> float:
    """The L2 bound, in steps, that ``conditional_round`` keeps (Kairouz et al. 2021, Theorem 1).

    ``min(sqrt(norm² + d/4 + sqrt(2·log(1/β))·(norm + sqrt(d)/2)), norm + sqrt(d))``.

    Args:
        norm: L2 bound before rounding, in steps.
        dimension: ``d``, padding included.
        beta: Bound on the chance of another attempt, in [0, 1); 0 stands for the second term alone.

    Raises:
        PrivacyError: An argument is out of range.
    """
    if not 0 < norm <= MAX_NORM:
        raise PrivacyError(f"must be positive, at most {MAX_NORM:g} steps", where="norm", value=norm)
    if dimension < 1:
        raise PrivacyError("must be at least 1", where="dimension", value=dimension)
    if not 0 <= beta < 1:
        raise PrivacyError("lies in [0, 1)", where="beta", value=beta)
    always = norm + math.sqrt(dimension)
    if beta == 0:
        return always
    spread = math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(dimension) / 2)
    return min(math.sqrt(norm**2 + dimension / 4 + spread), always)


def conditional_round(
    vector: NDArray[np.float64], norm: float, source: RandomSource, beta: float = BETA
) -> Integers:
    """Integers ``[d]`` whose L2 norm never exceeds ``rounded_norm_bound(norm, d, beta)``.

    Each coordinate goes to one of its two neighbours, unbiased but for the condition. A vector longer than
    ``norm``, as a rotation in floating point may leave it, is shortened first. When ``MAX_ATTEMPTS`` roundings in
    a row are too long, which chance does not bring about, the vector is rounded towards zero: biased, but never
    longer than it was.

    Args:
        vector: ``[d]``, in steps.
        norm: The L2 bound before rounding, in steps.
        source: Where the coins come from; 64 bits a coordinate and attempt.
        beta: As in ``rounded_norm_bound``.

    Raises:
        NonFiniteUpdateError: NaN or infinity in the vector.
        PrivacyError: An argument is out of range.
    """
    bound = rounded_norm_bound(norm, len(vector), beta)
    length = _length(vector)
    if not math.isfinite(length):
        raise NonFiniteUpdateError("NaN, infinite or too large", where="vector")
    room = norm * (1 - MARGIN)
    if length > room:
        vector = vector * (room / length)
    lower = np.floor(vector)
    share = vector - lower
    for _ in range(MAX_ATTEMPTS):
        rounded = lower + (uniform(source, len(vector)) < share)
        if _length(rounded) * (1 + MARGIN) <= bound:
            break
    else:
        rounded = np.trunc(vector)
    integers: Integers = rounded.astype(np.int64)
    return integers


def _length(vector: NDArray[Any]) -> float:
    # Not np.linalg.norm: its error grows with the dimension, that of NumPy's pairwise sum with the logarithm.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(total) if (total := float(np.square(vector).sum())) >= 0 else math.nan
