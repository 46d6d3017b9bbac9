"""Fixed features: functions of one example alone, that let small models learn under differential privacy.

A transform here is public and looks at one example at a time: no mean, scale or vocabulary of the data enters, so
it has no sensitivity to account for. Whatever a mechanism guarantees for the examples it guarantees for their
features, since neighbouring populations stay neighbours. Statistics of private data (standardising by the mean,
principal components) would have to be paid for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset
from privfed.data.population import Population, as_float
from privfed.errors import SettingError

ORIENTATIONS = 12
FINE_CELLS, COARSE_CELLS, POOLS = 7, 4, 14
"""At most so many on a side."""
FAINT = 0.01
"""Energy of gradients around a cell below which contrast is not evened out: else noise would be blown up."""

_PIXELS_AT_ONCE = 1 << 20
_SMALLEST_SIDE = 8

Examples = TypeVar("Examples", Dataset, Population)


def hog(images: NDArray[Any]) -> NDArray[np.float32]:
    """Histograms of oriented gradients at two scales beside pooled pixels, of unit length, ``[n, F]``.

    After Dalal & Triggs (2005, section 6): at each pixel the channel with the largest gradient votes, for the two
    nearest of 12 signed orientations by their distance. Fine cells are normalised by the energy of the 3 × 3 cells
    around them, coarse ones are not; of both the square root is taken. Cells are as large as makes at most 7 × 7
    and 4 × 4 of them, pools at most 14 × 14 (4, 7 and 2 pixels for 28 × 28, where F = 976); what is left over at
    the right and at the bottom is dropped. Each of the three parts has length 1, and so has the result, which
    bounds a linear model's gradient by √2: Tramèr & Boneh (2021, https://arxiv.org/abs/2011.11660) is the case for
    such features under differential privacy.

    Args:
        images: ``[n, H, W, C]``, uint8 or float32 in [0, 1]. A black image has the features 0.
    """
    n, height, width, channels = images.shape
    step = max(1, _PIXELS_AT_ONCE // (height * width * channels))
    parts = [_hog_of(as_float(images[start : start + step])) for start in range(0, max(n, 1), step)]
    return np.concatenate(parts)


def one_hot(tokens: NDArray[np.uint8], vocabulary: int) -> NDArray[np.uint8]:
    """Token ids ``[n, length]`` as 255 in the token's place, ``[n, length * vocabulary]``: input for dense layers.

    A softmax on them is a log-linear model of the next token by the tokens before it.
    """
    n, length = tokens.shape
    places = np.arange(length) * vocabulary + tokens
    encoded = np.zeros((n, length * vocabulary), np.uint8)
    np.put_along_axis(encoded, places, 255, axis=1)
    return encoded


def transform(data: Examples, name: str) -> Examples:
    """A dataset or a population with ``FEATURES[name]`` of its examples, training and test alike.

    Of a population it costs memory for the examples that clients hold only.

    Raises:
        SettingError: An unknown name, or features of other data than these.
    """
    if name not in FEATURES:
        raise SettingError(
            "unknown features", where="model.features", value=name, remedy=f"Known: {', '.join(FEATURES)}"
        )
    function = FEATURES[name](data)
    changes: dict[str, Any] = {"tokens": None, "test_features": function(data.test_features)}
    changes["name"] = f"{data.name}, {name}"
    training = "features" if isinstance(data, Population) else "train_features"
    changes[training] = function(getattr(data, training))
    return replace(data, **changes)


def _for_images(data: Dataset | Population) -> Callable[[NDArray[Any]], NDArray[Any]]:
    shape = data.test_features.shape[1:]
    if len(shape) != 3 or min(shape[:2]) < _SMALLEST_SIDE:
        raise SettingError(
            f"hog is of images of at least {_SMALLEST_SIDE}×{_SMALLEST_SIDE} pixels, and the examples of "
            f"{data.name} have shape {shape}",
            where="model.features",
            value="hog",
            remedy="Remove it",
        )
    return hog


def _for_tokens(data: Dataset | Population) -> Callable[[NDArray[Any]], NDArray[Any]]:
    vocabulary = data.tokens
    if vocabulary is None:
        raise SettingError(
            f"one_hot is of text, and the examples of {data.name} are numbers",
            where="model.features",
            value="one_hot",
            remedy="Remove it",
        )
    return lambda tokens: one_hot(tokens, vocabulary)


FEATURES: dict[str, Callable[[Dataset | Population], Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "hog": _for_images,
    "one_hot": _for_tokens,
}
"""By name in ``model.features``: what checks the data and gives the function."""


def _hog_of(images: NDArray[np.float32]) -> NDArray[np.float32]:
    votes = _votes(images)
    fine, coarse = (_histograms(votes, cells) for cells in (FINE_CELLS, COARSE_CELLS))
    parts = [np.sqrt(_evened(fine)), np.sqrt(coarse), _pooled(images)]
    flat = [_unit(part.reshape(len(images), math.prod(part.shape[1:]))) for part in parts]
    return _unit(np.concatenate(flat, axis=1))


def _votes(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gradient of each pixel by orientation, ``[n, H, W, ORIENTATIONS]``; the border has none across it."""
    down, right = np.zeros_like(images), np.zeros_like(images)
    down[:, 1:-1] = images[:, 2:] - images[:, :-2]
    right[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    magnitude = np.hypot(down, right)
    if images.shape[-1] > 1:
        strongest = magnitude.argmax(axis=-1)[..., np.newaxis]
        down, right, magnitude = (np.take_along_axis(array, strongest, -1) for array in (down, right, magnitude))
    place = np.arctan2(down, right).ravel() / np.float32(2 * np.pi) % 1 * ORIENTATIONS
    below = np.floor(place)
    share = place - below
    votes = np.zeros((len(place), ORIENTATIONS), np.float32)
    pixels = np.arange(len(place))
    for bins, vote in ((below, 1 - share), (below + 1, share)):
        votes[pixels, bins.astype(np.int64) % ORIENTATIONS] = magnitude.ravel() * vote
    return votes.reshape(*images.shape[:3], ORIENTATIONS)


def _histograms(votes: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Sums of votes by cell, ``[n, rows, columns, ORIENTATIONS]``."""
    n, height, width, orientations = votes.shape
    tall, wide = _span(height, cells), _span(width, cells)
    rows, columns = height // tall, width // wide
    kept = votes[:, : rows * tall, : columns * wide].reshape(n, rows, tall, columns, wide, orientations)
    sums: NDArray[np.float32] = kept.sum(axis=2).sum(axis=3)
    return sums


def _evened(histograms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each cell over the length of what the 3 × 3 cells around it hold."""
    _, rows, columns, _ = histograms.shape
    energy = np.pad(np.square(histograms).sum(axis=-1), ((0, 0), (1, 1), (1, 1)))
    around = sum(energy[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    evened: NDArray[np.float32] = histograms / np.sqrt(around + np.float32(FAINT))[..., np.newaxis]
    return evened


def _pooled(images: NDArray[np.float32]) -> NDArray[np.float32]:
    n, height, width, channels = images.shape
    tall, wide = _span(height, POOLS), _span(width, POOLS)
    rows, columns = height // tall, width // wide
    kept = images[:, : rows * tall, : columns * wide]
    means: NDArray[np.float32] = kept.reshape(n, rows, tall, columns, wide, channels).mean(axis=(2, 4))
    return means


def _span(side: int, parts: int) -> int:
    """Pixels of the smallest span of which at most ``parts`` fit on a side."""
    return -(-side // parts)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, and never above it by rounding of one value; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = rows / np.where(length > 0, length, np.float32(1))
    return np.minimum(scaled, np.float32(1), out=scaled)
