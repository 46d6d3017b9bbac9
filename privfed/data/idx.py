"""The MNIST family's IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST, and anything else written in that format.

The format is the one of http://yann.lecun.com/exdb/mnist/: two zero bytes, a type code, the number of axes, each
axis's length as a big-endian 32-bit integer, then the elements, big-endian, in C order.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset, as_images, as_labels
from privfed.errors import DataError

ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_LIMIT = 1032
"""No DEFLATE stream expands further (zlib's technical notes, "Maximum Compression Factor")."""
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-\w+(?P<gz>\.gz)?", re.IGNORECASE
)
_PARTS = {
    ("train", "images"): "*train-images-idx3-ubyte[.gz]",
    ("train", "labels"): "*train-labels-idx1-ubyte[.gz]",
    ("test", "images"): "*t10k-images-idx3-ubyte[.gz] (or *test-…)",
    ("test", "labels"): "*t10k-labels-idx1-ubyte[.gz] (or *test-…)",
}


@dataclass(frozen=True)
class IdxFiles:
    """The four files of one dataset."""

    name: str
    train_images: Path
    train_labels: Path
    test_images: Path
    test_labels: Path


def load_idx(folder: Path) -> Dataset:
    """Training and test set of one folder of IDX files, gzipped or not.

    Args:
        folder: Of the four files; or, where several sets share one, the folder and what the names of one set start
            with, such as ``emnist/emnist-letters``.

    Raises:
        DataError: The folder or a file is missing, or a file is not what its header says.
    """
    files = find_files(folder)
    train_features, train_labels = _read_split(files.train_images, files.train_labels)
    test_features, test_labels = _read_split(files.test_images, files.test_labels)
    classes = 1 + max(int(train_labels.max(initial=0)), int(test_labels.max(initial=0)))
    return Dataset(train_features, train_labels, test_features, test_labels, files.name, classes)


def find_files(folder: Path) -> IdxFiles:
    """The four files of a dataset, without reading them.

    Raises:
        DataError: The folder or a file is missing, or there is more than one candidate for it.
    """
    folder, prefix = folder.expanduser(), ""
    if not folder.is_dir() and folder.parent.is_dir() and not folder.exists():
        folder, prefix = folder.parent, folder.name
    wanted = ", ".join(_PARTS.values())
    if not folder.is_dir():
        raise DataError(f"no such folder of IDX files; looked for {wanted}", where=str(folder))
    found: dict[tuple[str, str], dict[str, Path]] = {part: {} for part in _PARTS}
    # Sorted, the plain file comes before its gzipped copy and wins.
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and path.name.startswith(prefix):
            split = "train" if match["split"].lower() == "train" else "test"
            found[split, match["kind"].lower()].setdefault(path.name.removesuffix(".gz"), path)
    chosen = {}
    for part, candidates in found.items():
        if not candidates:
            missing = folder / prefix if prefix else folder
            raise DataError(
                f"no file of {part[0]} {part[1]} here; looked for {_PARTS[part]}",
                where=str(missing),
                remedy="Give the folder of a dataset's four IDX files",
            )
        if len(candidates) > 1:
            raise DataError(
                f"several files of {part[0]} {part[1]} are here: {', '.join(sorted(candidates))}",
                where=str(folder),
                remedy="Name one set by folder and what its files' names start with: FOLDER/emnist-letters",
            )
        (chosen[part],) = candidates.values()
    return IdxFiles(
        prefix.strip("-_.") or folder.resolve().name,
        chosen["train", "images"],
        chosen["train", "labels"],
        chosen["test", "images"],
        chosen["test", "labels"],
    )


def read_idx(path: Path) -> NDArray[Any]:
    """One IDX file as an array of its own type, in native byte order.

    Raises:
        DataError: Unreadable; not IDX; corrupt gzip; truncated; trailing bytes; a header that claims more elements
            than the file can hold (seen before anything of that size is allocated).
    """
    try:
        stored = path.stat().st_size
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if path.suffix == ".gz" and not zipped:
                raise DataError("is not a gzip file, whatever its name says", where=str(path))
            if not zipped:
                return _parse(raw, path, most=stored)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(stream, path, most=stored * _DEFLATE_LIMIT)
    except EOFError:
        raise DataError(
            "is truncated: the gzip stream ends early", where=str(path), remedy="Download it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"is corrupt gzip: {error}", where=str(path), remedy="Download it again") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _parse(stream: IO[bytes] | gzip.GzipFile, path: Path, most: int) -> NDArray[Any]:
    where = str(path)
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError("is truncated: an IDX file starts with 4 bytes of magic", where=where, value=magic)
    if magic[:2] != b"\0\0" or magic[2] not in ELEMENT_TYPES or magic[3] == 0:
        raise DataError(
            "is not an IDX file: wrong magic number",
            where=where,
            value=magic.hex(),
            remedy="Name IDX files, or download it again",
        )
    axes = magic[3]
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"is truncated: the header of {axes} axes ends early", where=where)
    shape = struct.unpack(f">{axes}I", lengths)
    dtype = np.dtype(ELEMENT_TYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    header = 4 + 4 * axes
    if header + expected > most:
        raise DataError(
            f"is truncated or its header is corrupt: it claims {expected:,} bytes of elements, shape {shape}, "
            f"and the file can hold at most {max(0, most - header):,}",
            where=where,
        )
    data = bytearray(expected)
    got = _fill(stream, data)
    if got < expected:
        raise DataError(f"is truncated: shape {shape} needs {expected:,} bytes, {got:,} are there", where=where)
    if stream.read(1):
        raise DataError(f"has trailing bytes after the {expected:,} that shape {shape} needs", where=where)
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _fill(stream: IO[bytes] | gzip.GzipFile, data: bytearray) -> int:
    view, got = memoryview(data), 0
    while got < len(data):
        part = stream.read(min(len(data) - got, 1 << 20))
        if not part:
            break
        view[got : got + len(part)] = part
        got += len(part)
    return got


def _read_split(images_path: Path, labels_path: Path) -> tuple[Any, Any]:
    images = as_images(read_idx(images_path), str(images_path))
    labels = as_labels(read_idx(labels_path), str(labels_path))
    if len(images) != len(labels):
        raise DataError(
            f"holds {len(labels)} labels for the {len(images)} images of {images_path.name}",
            where=str(labels_path),
        )
    if not len(labels):
        raise DataError(
            "the dataset is empty: the file holds no image",
            where=str(images_path),
            remedy="Put in files with examples, or name another folder",
        )
    return images, labels
