"""A dataset as its source gives it: training and test arrays, not yet spread over clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.population import Features, Labels, Offsets
from privfed.errors import DataError, SettingError

_HELD_OUT_SEED = 20170221
"""Fixed, so that a dataset's test set is the same in every experiment, whatever the experiment's seeds."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples in file order; what is wrong with their values is found when a population is built.

    Attributes:
        train_features: ``[n, H, W, C]``, uint8 or float32 in [0, 1].
        train_labels: ``[n]``, int32.
        test_features: As ``train_features``.
        test_labels: As ``train_labels``.
        name: For reports.
        classes: Number of labels.
        train_offsets: Of data that come by client, ``[clients + 1]``: client ``c`` owns the training examples
            ``train_offsets[c]:train_offsets[c + 1]``. ``None`` for examples that belong to nobody yet.
        tokens: Of text, where features are token ids ``[n, length]`` in uint8: how many ids there are.
    """

    train_features: Features
    train_labels: Labels
    test_features: Features
    test_labels: Labels
    name: str
    classes: int
    train_offsets: Offsets | None = None
    tokens: int | None = None

    def __repr__(self) -> str:
        owned = "" if self.train_offsets is None else f" of {len(self.train_offsets) - 1} clients"
        return (
            f"Dataset({self.name!r}, {len(self.train_labels)} training{owned} and {len(self.test_labels)} test "
            f"examples, {self.classes} classes)"
        )


def as_images(array: NDArray[Any], where: str) -> Features:
    """Images as ``[n, H, W, C]``, uint8 or float32; the population judges values that are not finite.

    Raises:
        DataError: Not three or four axes, or integers outside 0…255.
    """
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4:
        raise DataError(
            "images have 3 axes (n, height, width) or 4 (with channels)", where=where, value=array.shape
        )
    return as_pixels(array, where)


def as_pixels(array: NDArray[Any], where: str) -> Features:
    """Features of any shape as uint8 or float32; the population judges values that are not finite.

    Raises:
        DataError: No numbers, or integers outside 0…255.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows becomes infinite, which the population refuses
            return array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise DataError("pixels are numbers", where=where, value=str(array.dtype))
    if array.size and (array.min() < 0 or array.max() > 255):
        worst = array.min() if array.min() < 0 else array.max()
        raise DataError("integer pixels are 0 to 255", where=where, value=int(worst))
    return array.astype(np.uint8)


def as_labels(array: NDArray[Any], where: str) -> Labels:
    """Labels as int32 ``[n]``.

    Raises:
        DataError: Not one whole number that fits for each example.
    """
    if array.ndim != 1:
        raise DataError("labels are one number for each example", where=where, value=array.shape)
    if array.dtype.kind not in "biuf":
        raise DataError("labels are whole numbers", where=where, value=str(array.dtype))
    limits = np.iinfo(np.int32)
    # Written so that NaN fails as well.
    whole = (array >= limits.min) & (array <= limits.max) & (np.floor(array) == array)
    if not whole.all():
        raise DataError("labels are whole numbers", where=where, value=array[~whole][0].item())
    return array.astype(np.int32)


def hold_out(labels: Labels, fraction: float, where: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on and rows to test on, in file order: ``fraction`` of every class, the same at each call.

    Raises:
        SettingError: ``fraction`` is not between 0 and 1.
        DataError: Too few examples to leave some on both sides.
    """
    if not 0 < fraction < 1:
        raise SettingError("the fraction held out for testing lies between 0 and 1", value=fraction)
    rng = np.random.default_rng(_HELD_OUT_SEED)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: round(fraction * len(rows))]] = True
    if held.all() or not held.any():
        raise DataError(f"{len(labels)} examples are too few to hold out {fraction:g} of each class", where=where)
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_dataset(features: Features, labels: Labels, fraction: float, name: str, classes: int) -> Dataset:
    """A dataset that came without a test set, with one held out."""
    train, test = hold_out(labels, fraction, name)
    return Dataset(features[train], labels[train], features[test], labels[test], name, classes)
