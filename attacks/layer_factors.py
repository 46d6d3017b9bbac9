"""The rank of a layer's gradient: how many examples are in it, and what spans them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

FLOOR = 1e-13
"""Singular values below this share of the largest are rounding, whatever their own gaps."""
GAP = 20.0
"""The singular values of the examples end where one is this many times the next."""


@dataclass(frozen=True, eq=False)
class Factors:
    """``[dW; db] = left · diag(values) · rightᵀ`` of rank ``b``, and how much noise there is in it.

    Attributes:
        left: ``[inputs + 1, b]``, orthonormal.
        values: ``[b]``, descending.
        right: ``[units, b]``, orthonormal.
        noise: Standard deviation of what is left over, per entry of the gradient.
        residual: Share of the gradient's norm left over.
    """

    left: Matrix
    values: NDArray[np.float64]
    right: Matrix
    noise: float
    residual: float

    @property
    def rank(self) -> int:
        """How many examples there are, as long as no two are collinear."""
        return len(self.values)


def factorise(gradient: Matrix, known_noise: float = 0.0) -> Factors | None:
    """The rank of ``gradient`` ``[inputs + 1, units]`` by the widest gap of its singular values, or ``None``.

    Args:
        gradient: Finite.
        known_noise: Standard deviation per entry of noise that the observer knows of.
    """
    # Pixels that are black and units that are off in all examples have no noise either: a second, false gap.
    lit, live = gradient.any(axis=1), gradient.any(axis=0)
    left, values, right = np.linalg.svd(gradient[np.ix_(lit, live)], full_matrices=False)
    most = len(values) // 2
    if most < 1:
        return None
    # The largest singular value of pure noise is σ (√rows + √columns): the edge of Marchenko and Pastur.
    edge = float(np.sqrt(lit.sum()) + np.sqrt(live.sum()))
    floored = np.maximum(values, max(FLOOR * values[0], known_noise * edge))
    ratios = floored[:most] / floored[1 : most + 1]
    rank = int(np.argmax(ratios)) + 1
    if ratios[rank - 1] < GAP:
        return None
    full_left, full_right = np.zeros((len(lit), rank)), np.zeros((len(live), rank))
    full_left[lit], full_right[live] = left[:, :rank], right[:rank].T
    residual = float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    return Factors(full_left, values[:rank], full_right, float(floored[rank]) / edge, residual)
