"""What an attacker knows of pixels: cameras and files give them as bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.base import Images

LEVELS = 255
"""Steps between black and white in an image of 8 bits a channel."""
ON_GRID = 0.15
"""Root mean square distance to the nearest level, in steps, below which an image is taken to have been made of
bytes; pixels of any other origin are 0.29 steps away from it."""

SHADES = 32
"""So many pixels between black and white are enough: those of no bytes lie that near their levels once in 10⁷."""


def snap(images: Images) -> Images:
    """Images ``[k, ...]`` clipped to [0, 1], and to the levels of bytes where they lie by them already.

    It removes the rounding of single-precision clients from images that are exact but for it, and leaves
    everything else as it is.
    """
    levels = np.round(np.clip(images, 0.0, 1.0) * LEVELS) / LEVELS
    bytes_ = on_grid(images).reshape(-1, *[1] * (images.ndim - 1))
    return np.where(bytes_, levels, np.clip(images, 0.0, 1.0))


def on_grid(images: Images) -> NDArray[np.bool_]:
    """Which of ``images`` ``[k, ...]`` consist of levels of bytes, but for an error far below one level.

    What lies a level or more outside of black and white is none.
    """
    beyond = images.reshape(len(images), -1) * LEVELS
    steps = np.clip(beyond, 0, LEVELS)
    levels = np.round(steps)
    # Black and white are at hand for any image: only what lies between can tell.
    between = (levels > 0) & (levels < LEVELS)
    distance = np.sum(np.where(between, steps - levels, 0.0) ** 2, axis=1) / np.maximum(between.sum(axis=1), 1)
    return np.asarray((np.sqrt(distance) < ON_GRID) & (np.abs(beyond - steps) < 1).all(axis=1))


def made_of_bytes(images: Images) -> bool:
    """Whether all of ``images`` ``[k, ...]`` are bytes, each with too many grey pixels for an accident."""
    grey = np.count_nonzero((images > 1 / LEVELS) & (images < 1 - 1 / LEVELS), axis=tuple(range(1, images.ndim)))
    return bool((grey >= SHADES).all() and on_grid(images).all())
