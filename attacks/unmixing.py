"""Takes an image out of a mixture with another one, by pixels that are black or white in it.

Where one example's direction is open by a multiple of another's, a decomposition that fits the zeros of ReLU has
``(1 − t) x + t y`` in the place of ``x``, and ``y`` as it is. Where ``x`` is black the mixture is ``t y``, so that
``t`` is the ratio of the two, and as ``x`` is nowhere below zero it is the lowest of all ratios, or the highest
for ``t > 1``. White pixels say the same of what is missing to one. The levels of bytes decide which is right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.pixels import on_grid

Matrix = NDArray[np.float64]

BRIGHT = 0.05
"""Pixels of the other image below this are too faint to divide by."""
LEAST = 10
"""So many brighter ones are needed."""
ALIKE = 1e-5
"""Ratios this close together are equal."""
CLUSTERS = 5
"""Shares that most pixels agree on, beside the lowest and the highest ratio."""
OUTSIDE = 1e-3
"""By so much an unmixed image may leave [0, 1]."""


def unmix(inputs: Matrix) -> Matrix | None:
    """``inputs`` ``[b, n]`` with images that are none of bytes taken out of mixtures with one that is.

    Returns:
        ``None`` when there is nothing to be taken apart: all are of bytes, none is, or no share makes them so.
    """
    clean = on_grid(inputs)
    if clean.all() or not clean.any():
        return None
    result, changed = inputs.copy(), False
    for i in np.flatnonzero(~clean):
        for j in np.flatnonzero(clean):
            shares = _shares(inputs[i], inputs[j])
            images = (inputs[i] - shares[:, None] * inputs[j]) / (1 - shares[:, None])
            inside = (images.min(axis=1) > -OUTSIDE) & (images.max(axis=1) < 1 + OUTSIDE)
            right = np.flatnonzero(inside & on_grid(images))
            if len(right):
                result[i], changed = images[right[0]], True
                break
    return result if changed else None


def _shares(mixture: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """What may be the share of ``other`` in ``mixture``, ``[m]``, neither nothing nor all."""
    found: list[float] = []
    for top, bottom in ((mixture, other), (1 - mixture, 1 - other)):
        bright = bottom > BRIGHT
        if bright.sum() < LEAST:
            continue
        ratios = np.sort(top[bright] / bottom[bright])
        alike = np.searchsorted(ratios, ratios + ALIKE) - np.arange(len(ratios))
        # The middle of the most, then of the most among those that are not next to it.
        for _ in range(CLUSTERS):
            first = int(alike.argmax())
            if alike[first] < 2:
                break
            found.append(float(np.median(ratios[first : first + alike[first]])))
            alike[np.abs(ratios - ratios[first]) <= ALIKE] = 0
        found += [float(ratios[0]), float(ratios[-1])]
    shares = np.array(found)
    return np.asarray(shares[(np.abs(shares) > 10 * ALIKE) & (np.abs(shares - 1) > 10 * ALIKE)])
