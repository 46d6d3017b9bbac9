"""Adam on the signs of the slope, with pixels kept in [0, 1]: for models whose loss has kinks everywhere.

Inverting Gradients (Geiping et al. 2020, arXiv:2003.14053, section 4): ReLU, pooling and batch statistics make the
slope's length tell little, and a search by curvature gives up early. The step falls to nothing along a cosine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

STEP = 0.1
DECAYS = (0.9, 0.999)
"""Of Adam's means of the slope and of its square (Kingma & Ba 2015)."""
SMALL = 1e-8


def descend(loss: Callable[[Vector], tuple[float, Vector]], start: Vector, steps: int) -> tuple[Vector, int]:
    """The point of the lowest loss met from ``start`` ``[n]`` in [0, 1], and the evaluations taken.

    Ends before ``steps`` where loss or slope is not finite, or the slope is zero.
    """
    x, lowest, best = start.copy(), np.inf, start.copy()
    mean, square = np.zeros_like(x), np.zeros_like(x)
    for step in range(1, steps + 1):
        value, slope = loss(x)
        if not (np.isfinite(value) and np.isfinite(slope).all() and slope.any()):
            return best, step
        if value < lowest:
            lowest, best = value, x.copy()
        sign = np.sign(slope)
        mean = DECAYS[0] * mean + (1 - DECAYS[0]) * sign
        square = DECAYS[1] * square + (1 - DECAYS[1]) * sign**2
        unbiased = mean / (1 - DECAYS[0] ** step), square / (1 - DECAYS[1] ** step)
        rate = STEP * (1 + np.cos(np.pi * step / steps)) / 2
        x = np.clip(x - rate * unbiased[0] / (np.sqrt(unbiased[1]) + SMALL), 0, 1)
    return best, steps
