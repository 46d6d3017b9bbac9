"""Bounding what one client can do: the L2 clip, and the sensitivity that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError

ONE = np.float32(1)

_FAR_FROM_UNDERFLOW = 2.0**-32
"""Above it, what float32 loses of the smallest coordinates, and of their squares, is nothing beside the norm."""

_BLOCK = 1 << 13
"""Coordinates in a block: float64 copies stay in the cache, and BLAS starts no threads for so few."""

_PIECE = 256
"""Squares that are added up in float32."""


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
    """What one client hands to the aggregation: ``factor * unscaled``, the bounded update.

    Attributes:
        unscaled: ``[d]``; a mechanism may put coordinates of its own behind it, or turn it into a ring's integers.
        norm_before: L2 norm of the update before the clip, right to ``2**-16`` of itself.
        was_clipped: Whether the clip shortened it.
        factor: What is still to be multiplied, in float32: whoever passes over the vector anyway may do it then.
        longest: L2 norm that ``factor * unscaled`` does not exceed; ``None`` where nobody measured it.
    """

    unscaled: NDArray[Any]
    norm_before: float
    was_clipped: bool
    factor: np.float32 = ONE
    longest: float | None = None

    @property
    def vector(self) -> NDArray[Any]:
        """The bounded update itself, ``[d]``."""
        return self.unscaled if self.factor == 1 else self.unscaled * self.factor


def clip_by_l2(update: NDArray[np.float32], norm: float) -> Contribution:
    """Scale ``update`` ``[d]`` down to an L2 norm of at most ``norm`` (Abadi et al. 2016, Algorithm 1).

    The bound holds for the float32 result as measured in float64, not only before rounding. Long updates are
    measured faster and a little less exactly, and then clipped to a little less.

    Raises:
        NonFiniteUpdateError: The update holds NaN or infinity.
        PrivacyError: The bound is not a positive number.
    """
    if not (norm > 0 and np.isfinite(norm)):
        raise PrivacyError("the bound must be a positive number", where="norm", value=norm)
    length, error = _estimated_norm(update) if len(update) > _BLOCK else (math.nan, 0.0)
    if not (_FAR_FROM_UNDERFLOW < length < math.inf and abs(length - norm) > error * norm):
        length, error = l2_norm(update), 0.0
    if not np.isfinite(length):
        raise NonFiniteUpdateError("the update is not finite")
    if length <= norm:
        return Contribution(update, length, False, longest=length * (1 + error))
    factor = norm / length
    if min(norm, factor) > _FAR_FROM_UNDERFLOW:
        # Room for two roundings to float32, of the factor and of each product.
        return Contribution(update, length, True, np.float32(factor * (1 - error - 2.0**-22)), norm)
    exact = update.astype(np.float64)
    clipped = (exact * factor).astype(np.float32)
    while l2_norm(clipped) > norm:  # rounding to float32 lengthened it
        factor *= 1 - 2.0**-24
        clipped = (exact * factor).astype(np.float32)
    return Contribution(clipped, length, True, longest=norm)


def _estimated_norm(update: NDArray[np.float32]) -> tuple[float, float]:
    """L2 norm and the share of it by which it may be off; infinite or NaN where float32 has no room for squares.

    A float32 sum of 256 squares is off by less than ``256 * 2**-24`` of itself (Higham 2002, section 4.2), and its
    root by half of that. Squares that underflow are nothing beside what is ``_FAR_FROM_UNDERFLOW``.
    """
    whole = len(update) // _PIECE * _PIECE
    pieces = update[:whole].reshape(-1, _PIECE)
    with np.errstate(over="ignore", invalid="ignore"):
        squared = float(np.einsum("ij,ij->i", pieces, pieces).sum(dtype=np.float64))
    return math.hypot(math.sqrt(squared), l2_norm(update[whole:])), 2.0**-16


def l2_norm(update: NDArray[np.float32] | NDArray[np.float64]) -> float:
    """L2 norm in float64, block by block so that no copy of it all is made."""
    squared, block = 0.0, np.empty(min(_BLOCK, len(update)))
    for start in range(0, len(update), _BLOCK):
        part = update[start : start + _BLOCK]
        exact = block[: len(part)]
        exact[...] = part
        squared += float(np.dot(exact, exact))
    return math.sqrt(squared)
