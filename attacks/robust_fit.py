"""Directions that many rows are orthogonal to, by reweighted least squares that bear the rows which are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

RIDGE = 1e-12
"""Of such a fit, relative to the trace of its equations, which an exact fit leaves singular."""
FITS = 12
"""Reweightings of the robust fit; the second half with the weights of an ℓ0 fit."""


def fit_directions(
    unit_rows: Matrix, height: Matrix, share: float, first: float, toward: Matrix | None = None
) -> Matrix:
    """For each row of heights the direction that most of its lowest units are orthogonal to.

    Args:
        unit_rows: Of the right singular vectors, of unit length: ``[units, b]``.
        height: ``[count, units]``; infinite where a unit is left out.
        share: Of the units, how many of the lowest are fitted.
        first: Distance from a direction where a unit loses weight, in the first fit; 1e-3 in the last.
        toward: ``[count, b]``: directions are among those that have the same component along it.
    """
    total, rank = unit_rows.shape
    taken = min(max(int(share * total), 2 * rank), total - 1)
    lowest = np.argpartition(height, taken, axis=1)[:, :taken]
    rows = unit_rows[lowest]
    # Units left out (infinitely high) may be among the lowest when few are left; they get no weight.
    part = np.isfinite(np.take_along_axis(height, lowest, axis=1)).astype(np.float64)
    weights = part
    directions = np.zeros((len(height), rank))
    for step in range(FITS):
        gram = np.matmul((rows * weights[..., None]).transpose(0, 2, 1), rows)
        if toward is None:
            directions = np.linalg.eigh(gram)[1][:, :, 0]
        else:
            gram += RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(rank)
            directions = np.linalg.solve(gram, toward[:, :, None])[:, :, 0]
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        distance = np.einsum("snb,sb->sn", rows, directions)
        width = first * (1e-3 / first) ** (step / (FITS - 1))
        power = -0.5 if step < FITS // 2 else -1.0
        weights = part * (distance**2 + width**2) ** power
    return directions
