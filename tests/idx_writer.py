"""Writes IDX files for the tests, straight from the format's description and independently of the reader."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: NDArray[np.generic]) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_folder(
    folder: Path,
    train: tuple[NDArray[np.generic], NDArray[np.generic]],
    test: tuple[NDArray[np.generic], NDArray[np.generic]],
    *,
    prefix: str = "",
    test_name: str = "t10k",
    zipped: bool = True,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in (("train", train), (test_name, test)):
        for kind, array in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}{split}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    return folder


def small_set(seed: int = 0, examples: int = 40, classes: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    return rng.integers(0, 256, (examples, 3, 5), dtype=np.uint8), rng.permutation(labels).astype(np.uint8)
