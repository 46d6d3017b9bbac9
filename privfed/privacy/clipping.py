"""Bounding what one client can do: the L2 clip, and the sensitivity that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError

_FAR_FROM_UNDERFLOW = 2.0**-100
"""Above it, what float32 loses of the smallest coordinates is nothing beside the bound."""

_BLOCK = 1 << 13
"""Coordinates in a block: float64 copies stay in the cache, and BLAS starts no threads for so few."""


@dataclass(frozen=True)
class Sensitivity:
    """How far one unit can move the sum.

    Attributes:
        norm: L2 bound, in the units of an update.
        unit: Whose data is added, removed or replaced.
        neighbouring: Which datasets count as neighbours.
    """

    norm: float
    unit: str
    neighbouring: str


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one client hands to the aggregation.

    Attributes:
        vector: The bounded update, ``[d]``; a mechanism may put coordinates of its own behind it, or turn it into
            integers of a ring.
        norm_before: L2 norm of the update before the clip.
        was_clipped: Whether the clip shortened it.
    """

    vector: NDArray[Any]
    norm_before: float
    was_clipped: bool


def clip_by_l2(update: NDArray[np.float32], norm: float) -> Contribution:
    """Scale ``update`` ``[d]`` down to an L2 norm of at most ``norm`` (Abadi et al. 2016, Algorithm 1).

    The bound holds for the float32 result as measured in float64, not only before rounding.

    Raises:
        NonFiniteUpdateError: The update holds NaN or infinity.
        PrivacyError: The bound is not a positive number.
    """
    if not (norm > 0 and np.isfinite(norm)):
        raise PrivacyError("the bound must be a positive number", where="norm", value=norm)
    length = l2_norm(update)
    if not np.isfinite(length):
        raise NonFiniteUpdateError("the update is not finite")
    if length <= norm:
        return Contribution(update, length, False)
    factor = norm / length
    if min(norm, factor) > _FAR_FROM_UNDERFLOW:
        # Room for two roundings to float32, of the factor and of each product.
        return Contribution(update * np.float32(factor * (1 - 2.0**-22)), length, True)
    exact = update.astype(np.float64)
    clipped = (exact * factor).astype(np.float32)
    while l2_norm(clipped) > norm:  # rounding to float32 lengthened it
        factor *= 1 - 2.0**-24
        clipped = (exact * factor).astype(np.float32)
    return Contribution(clipped, length, True)


def l2_norm(update: NDArray[np.float32] | NDArray[np.float64]) -> float:
    """L2 norm in float64, block by block so that no copy of it all is made."""
    squared, block = 0.0, np.empty(min(_BLOCK, len(update)))
    for start in range(0, len(update), _BLOCK):
        part = update[start : start + _BLOCK]
        exact = block[: len(part)]
        exact[...] = part
        squared += float(np.dot(exact, exact))
    return math.sqrt(squared)
