"""Gauss-Newton steps from far away: what images mostly look like holds them until the gradient takes over.

The search's own error is taken for noise: each step finds the most probable images for a Gaussian prior of smooth
brightness and equations that are off by about as much as they are now, and as that falls the prior fades. Damping
by Levenberg (1944) holds a step near the last one, wherever that strayed to; the prior holds it near images. It is
the iterated Kalman smoother of Bell (1994), with the noise brought down from outside as in simulated annealing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from attacks.gauss_newton import Equations, Matching, Solution, bounded

Vector = NDArray[np.float64]

BRIGHTNESS, VARIANCE = 0.3, 0.1
"""Of a pixel before anything is known: mean and variance."""
REACH = 4.0
"""Distance in pixels over which brightness is alike: covariance falls by e."""
ROUGHNESS = 1e-3
"""Variance of each pixel by itself."""
FADING, FASTEST = (0.03, 1.0), 0.1
"""The noise of a step's equations, over what they are off by before it: variances, least and most. It is halved
after a step that leaves more than half of the loss, and doubled after one that leaves less than ``FASTEST``."""
LENGTHS = (1.0, 0.5, 0.25, 0.1)
"""Of a step, tried in turn."""
REFITS = 4
"""As in ``attacks.gauss_newton``."""
TRIES = 6
"""Times that more noise is tried where no length helps."""
PATIENCE, PROGRESS = 5, 0.7
"""The search is given up when so many steps have not brought the loss below this share of what it was."""


def search(matching: Matching, start: Vector, *, enough: float, jacobians: int) -> Solution:
    """Steps from ``start`` ``[batch · pixels]`` in [0, 1] to one beyond a loss of ``enough``, or to nowhere.

    Args:
        matching: The equations.
        start: Anything; ``draw`` has starts that suit the prior.
        enough: Loss at which the equations are met.
        jacobians: At most so many.
    """
    equations, batch = Equations(matching), len(matching.labels)
    precision = _precision(matching.model.input_shape)
    x, at, taken, met = start, equations.at(start), 0, False
    losses, fading = [at.loss], FADING[1]

    def pull(point: Vector) -> Vector:
        return np.asarray(((point - BRIGHTNESS).reshape(batch, -1) @ precision).ravel())

    while taken < jacobians and not met and 0 < at.loss < np.inf:
        met = at.loss <= enough
        noise = fading * 2 * at.loss / matching.model.dimension
        slope = at.slope + noise * pull(x)
        free = np.flatnonzero(~(((x <= 0) & (slope >= 0)) | ((x >= 1) & (slope <= 0))))
        if not len(free):
            break
        normal, taken = equations.normal(x, free).astype(np.float64), taken + 1
        _add_blocks(normal, noise * precision, free)
        for _ in range(TRIES):
            step = np.zeros(len(x))
            step[free] = bounded(normal, slope[free], x[free], 0.0, refits=REFITS) - x[free]
            objective = at.loss + 0.5 * noise * float(pull(x) @ (x - BRIGHTNESS))
            for length in LENGTHS:
                there = x + length * step
                found = equations.at(there)
                if found.loss + 0.5 * noise * float(pull(there) @ (there - BRIGHTNESS)) < objective:
                    break
            else:
                _add_blocks(normal, 3 * noise * precision, free)
                slope, noise = slope + 3 * noise * pull(x), 4 * noise
                continue
            x, at = there, found
            break
        else:
            break
        losses.append(at.loss)
        share = losses[-1] / losses[-2]
        fading = float(np.clip(fading * (0.5 if share > 0.5 else 2 if share < FASTEST else 1), *FADING))
        if len(losses) > PATIENCE and at.loss > PROGRESS * losses[-1 - PATIENCE]:
            break
    return Solution(x, at.loss, equations.evaluations, taken)


def draw(shape: tuple[int, ...], batch: int, rng: np.random.Generator) -> Vector:
    """Images of the prior with a third of its spread, ``[batch · pixels]`` in (0, 1)."""
    root = np.linalg.cholesky(np.linalg.inv(_precision(shape)))
    images = BRIGHTNESS + 0.3 * rng.normal(size=(batch, len(root))) @ root.T
    return np.asarray(np.clip(images, 0.02, 0.98).ravel())


def _add_blocks(normal: Vector, block: Vector, free: NDArray[np.int64]) -> None:
    """Add ``block`` ``[pixels, pixels]`` for each image to ``normal``, whose rows are ``free`` pixels of all."""
    for image in np.unique(free // len(block)):
        rows = np.flatnonzero(free // len(block) == image)
        mine, these = free[rows] % len(block), slice(rows[0], rows[-1] + 1)
        normal[these, these] += block[np.ix_(mine, mine)]


@lru_cache(maxsize=8)
def _precision(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The prior's inverse covariance for one input, ``[pixels, pixels]``; nothing but images is smooth."""
    size = int(np.prod(shape))
    covariance = VARIANCE * np.eye(size)
    if len(shape) >= 2:
        rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        apart = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
        covariance = np.kron(VARIANCE * np.exp(-apart / REACH), np.eye(size // (shape[0] * shape[1])))
    precision = np.asarray(scipy.linalg.inv(covariance + ROUGHNESS * np.eye(size)))
    precision.setflags(write=False)
    return precision
