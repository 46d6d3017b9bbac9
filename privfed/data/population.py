"""The population: every client's examples in packed arrays, with offsets instead of an object per client."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.errors import DataError

Features = NDArray[np.uint8] | NDArray[np.float32]
Labels = NDArray[np.int32]
Offsets = NDArray[np.int64]

_ELEMENTS_AT_ONCE = 1 << 22
"""Checks go through features in slices of this size, so that their memory does not grow with the dataset."""


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """Clients and the test set; arrays are read-only views.

    Attributes:
        features: ``[n, H, W, C]`` for images, ``[n, d]`` else; uint8 in 0…255 or float32 in [0, 1]. Client ``c``
            owns rows ``offsets[c]:offsets[c + 1]``.
        labels: ``[n]``, int32 in 0…classes-1.
        offsets: ``[clients + 1]``, int64. A client without examples is allowed: it sits out.
        test_features: As ``features``, held by nobody.
        test_labels: As ``labels``.
        name: The dataset's.
        classes: Number of labels.
        tokens: Of text, whose features are token ids ``[n, length]`` in uint8: how many ids there are.

    Features may be a file mapped into memory (``privfed.data.stored``): then checks and fingerprint read it once
    and leave none of it resident.

    Raises:
        DataError: No example; pixels that are not finite or outside [0, 1]; labels out of range; arrays that do
            not fit together. Faults in examples name the client and count them.
    """

    features: Features
    labels: Labels
    offsets: Offsets
    test_features: Features
    test_labels: Labels
    name: str
    classes: int
    tokens: int | None = None

    def __post_init__(self) -> None:
        _require(self.classes >= 1, self.name, "a dataset has at least one class", self.classes)
        require_examples(self.name, "training", self.features, self.labels)
        require_examples(self.name, "test", self.test_features, self.test_labels)
        _check_offsets(self.name, self.offsets, len(self.labels))
        _require(
            self.features.shape[1:] == self.test_features.shape[1:],
            self.name,
            f"training shape {self.features.shape[1:]} is not the test shape {self.test_features.shape[1:]}",
        )
        for split, features, labels, offsets in (
            ("training", self.features, self.labels, self.offsets),
            ("test", self.test_features, self.test_labels, None),
        ):
            _check_types(self.name, split, features, labels)
            _check_labels(self.name, labels, offsets, self.classes)
            if self.tokens is not None:
                _check_tokens(self.name, split, features, self.tokens)
            elif features.dtype == np.float32:
                _check_pixels(self.name, features, offsets)
        for field in ("features", "labels", "offsets", "test_features", "test_labels"):
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.input_shape))
        return (
            f"Population({self.name!r}, {self.clients} clients, {len(self.labels)} examples of {shape}, "
            f"{self.classes} classes, {len(self.test_labels)} test examples)"
        )

    @property
    def clients(self) -> int:
        """Number of clients, those without examples included."""
        return len(self.offsets) - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (height, width, channels) for images."""
        return tuple(self.features.shape[1:])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each client, ``[clients]``."""
        return np.diff(self.offsets)

    def client(self, c: int) -> tuple[NDArray[np.float32], Labels]:
        """Features in [0, 1] and labels of client ``c``.

        Raises:
            IndexError: There is no such client.
        """
        if not 0 <= c < self.clients:
            raise IndexError(f"there is no client {c}: the population has {self.clients}")
        rows = slice(int(self.offsets[c]), int(self.offsets[c + 1]))
        return self.as_float(self.features[rows]), self.labels[rows]

    def as_float(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Features of this population as float32 in [0, 1]."""
        return as_float(features)

    def mean_image(self) -> NDArray[np.float64]:
        """Mean of the test examples, in [0, 1], of ``input_shape``: what anybody may know of such data."""
        mean: NDArray[np.float64] = self.test_features.mean(axis=0, dtype=np.float64)
        return mean / 255.0 if self.test_features.dtype == np.uint8 else mean

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, classes, and every array's type, shape and bytes."""
        digest = hashlib.sha256(f"privfed.Population/1\0{self.name}\0{self.classes}\0".encode())
        for array in (self.features, self.labels, self.offsets, self.test_features, self.test_labels):
            digest.update(f"{array.dtype.str}{array.shape}\0".encode())
            for rows in row_slices(array):
                digest.update(np.ascontiguousarray(rows).data)
        if self.tokens is not None:
            digest.update(f"tokens {self.tokens}".encode())
        return digest.hexdigest()


def as_float(features: NDArray[Any]) -> NDArray[np.float32]:
    """Stored features as float32 in [0, 1]: uint8 is divided by 255, float32 is returned as it is.

    Raises:
        DataError: Another type, whose scale nobody knows.
    """
    if features.dtype == np.uint8:
        return features.astype(np.float32) / np.float32(255)
    if features.dtype == np.float32:
        return features
    raise DataError("features are uint8 or float32", value=str(features.dtype))


def require_examples(name: str, split: str, features: NDArray[Any], labels: NDArray[Any]) -> None:
    """Refuse a split without examples, or with another number of labels than of features."""
    _require(features.ndim >= 1 and labels.ndim == 1, name, f"{split} labels are one number for each example")
    _require(
        len(features) == len(labels),
        name,
        f"there are {len(features)} {split} examples and {len(labels)} {split} labels",
    )
    if len(labels) == 0:
        raise DataError(f"the dataset is empty: it holds no {split} example", where=name)


def _check_types(name: str, split: str, features: NDArray[Any], labels: NDArray[Any]) -> None:
    _require(
        features.dtype in (np.uint8, np.float32),
        name,
        f"{split} features are uint8 or float32",
        str(features.dtype),
    )
    _require(labels.dtype == np.int32, name, f"{split} labels are int32", str(labels.dtype))
    _require(
        features.ndim in (2, 4) and 0 not in features.shape,
        name,
        f"{split} features have shape [n, height, width, channels] or [n, d]",
        features.shape,
    )


def _check_offsets(name: str, offsets: NDArray[Any], examples: int) -> None:
    _require(offsets.dtype == np.int64, name, "offsets are int64", str(offsets.dtype))
    _require(offsets.ndim == 1 and len(offsets) >= 2, name, "there is no client: offsets are [clients + 1]")
    _require(int(offsets[0]) == 0, name, "offsets start at 0", int(offsets[0]))
    _require(
        int(offsets[-1]) == examples, name, f"offsets end at {examples}, the number of examples", int(offsets[-1])
    )
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if falls.size:
        raise DataError(f"offsets fall after client {falls[0]}", where=name)


def _check_labels(name: str, labels: Labels, offsets: Offsets | None, classes: int) -> None:
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise DataError(
            f"{_whose(bad, offsets)} with labels outside 0…{classes - 1}", where=name, value=int(labels[bad[0]])
        )


def _check_pixels(name: str, features: Features, offsets: Offsets | None) -> None:
    not_finite, outside, start = [], [], 0
    worst = 0.0
    for rows in row_slices(features):
        flat = rows.reshape(len(rows), -1)
        with np.errstate(invalid="ignore"):
            low, high = flat.min(axis=1), flat.max(axis=1)
        finite = np.isfinite(low) & np.isfinite(high)
        strays = finite & ((low < 0) | (high > 1))
        not_finite.append(start + np.flatnonzero(~finite))
        outside.append(start + np.flatnonzero(strays))
        if strays.any() and not worst:
            first = int(np.argmax(strays))
            worst = float(low[first] if low[first] < 0 else high[first])
        start += len(rows)
    bad = np.concatenate(not_finite)
    if bad.size:
        raise DataError(
            f"{_whose(bad, offsets)} with pixels that are not finite (NaN or infinite)",
            where=name,
            remedy="Repair or remove them",
        )
    bad = np.concatenate(outside)
    if bad.size:
        raise DataError(
            f"{_whose(bad, offsets)} with pixels outside [0, 1]",
            where=name,
            value=worst,
            remedy="Scale floating-point features to [0, 1], or store them as uint8",
        )


def _check_tokens(name: str, split: str, features: Features, tokens: int) -> None:
    _require(
        features.dtype == np.uint8 and features.ndim == 2 and 1 <= tokens <= 256,
        name,
        f"{split} features are token ids [n, length] in uint8, of 256 tokens at most",
        (features.shape, str(features.dtype), tokens),
    )
    highest = max(int(rows.max()) for rows in row_slices(features))
    _require(highest < tokens, name, f"{split} token ids lie in 0…{tokens - 1}", highest)


def _whose(rows: NDArray[np.intp], offsets: Offsets | None) -> str:
    """Whose the bad examples are: the first client by number, the others by count."""
    if offsets is None:
        return f"the test set has {_counted(rows.size, 'example')}"
    owners = np.searchsorted(offsets, rows, side="right") - 1
    first = int(owners[0])
    others = np.unique(owners).size - 1
    also = f" (and {_counted(others, 'other client')} as well)" if others else ""
    return f"client {first} has {_counted(int((owners == first).sum()), 'example')}{also}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def row_slices(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Consecutive slices of bounded size; what is mapped from a file leaves memory behind the reader."""
    row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)))
    step = max(1, _ELEMENTS_AT_ONCE // row)
    for start in range(0, len(array), step):
        yield array[start : start + step]
        release_pages(array)


def release_pages(array: NDArray[Any]) -> None:
    """Let go of what was read of a file that is mapped into memory; anything else stays as it is."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def _require(holds: bool, where: str, what: str, value: object = None) -> None:
    if not holds:
        raise DataError(what, where=where, value=value)
