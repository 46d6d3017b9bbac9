"""Examples with a client column, from one NumPy archive or one Parquet file; the split over clients is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset, as_images, as_labels, as_pixels, hold_out
from privfed.data.population import Features, Labels
from privfed.errors import DataError

LABEL_COLUMN, CLIENT_COLUMN, SPLIT_COLUMN = "label", "client", "split"
"""Of a Parquet file, where the settings name no others; ``split`` is optional."""

_ARRAYS = ("x", "y", "client", "x_test", "y_test")
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class Table:
    """Rows in the order of the file.

    Attributes:
        features: ``[n, H, W, C]`` or ``[n, d]``.
        labels: ``[n]``.
        owners: Whose each row is, ``[n]``, whole numbers or text.
    """

    features: Features
    labels: Labels
    owners: NDArray[Any]


def load_npz(path: Path, test_fraction: float = 0.2) -> Dataset:
    """A NumPy archive of the arrays ``x``, ``y``, ``client`` and, both or none, ``x_test``, ``y_test``.

    ``x`` is ``[n, d]``, ``[n, H, W]`` or ``[n, H, W, C]``, of bytes or of floats in [0, 1]; ``y`` ``[n]`` whole
    numbers from 0; ``client`` ``[n]`` whole numbers or text. Client ``c`` of the population is the one whose id is
    at place ``c`` in sorted order. Without a test set, ``test_fraction`` of each class is held out. Pickled
    objects are never loaded.

    Raises:
        DataError: Missing or damaged; arrays missing, too many, or not fitting together; a value that is not
            finite or out of range, with row and client.
    """
    arrays = _read_npz(path)
    table = _table(arrays["x"], arrays["y"], arrays["client"], path)
    if "x_test" not in arrays:
        return by_client(table, None, test_fraction, path.stem, str(path))
    features, labels = (
        _features(arrays["x_test"], f"{path}, x_test"),
        as_labels(arrays["y_test"], f"{path}, y_test"),
    )
    _require_rows(len(features), {"y_test": labels}, path, "x_test")
    return by_client(table, (features, labels), test_fraction, path.stem, str(path))


def load_parquet(
    path: Path, label: str = LABEL_COLUMN, client: str = CLIENT_COLUMN, test_fraction: float = 0.2
) -> Dataset:
    """A Parquet file with a label column, a client column, and all other columns features.

    Features are one column of lists, all of one length (lists of lists are images), or many numeric columns, in
    the file's order: bytes, or floats in [0, 1]. A column ``split`` of the words ``train`` and ``test`` marks the
    test set; without it, ``test_fraction`` of each class is held out.

    Raises:
        DataError: As ``load_npz``; empty cells, or columns of another type.
    """
    from pyarrow import ArrowException, parquet

    _require_file(path)
    try:
        file = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet file", error) from None
    for key, column in (("label_column", label), ("client_column", client)):
        if column not in file.column_names:
            raise DataError(
                f"there is no column {column!r}",
                where=str(path),
                value=file.column_names,
                remedy=f"Name it in data.{key}",
            )
    columns = {name: _column(file.column(name), name, path) for name in file.column_names}
    labels, owners = columns.pop(label), columns.pop(client)
    split = columns.pop(SPLIT_COLUMN, None)
    table = _table(_joined(columns, path), labels, owners, path)
    if split is None:
        return by_client(table, None, test_fraction, path.stem, str(path))
    if not np.isin(split, ("train", "test")).all():
        wrong = split[~np.isin(split, ("train", "test"))][0]
        raise DataError(f"column {SPLIT_COLUMN!r} holds 'train' or 'test'", where=str(path), value=str(wrong))
    train, test = split == "train", split == "test"
    kept = Table(table.features[train], table.labels[train], table.owners[train])
    return by_client(kept, (table.features[test], table.labels[test]), test_fraction, path.stem, str(path))


def by_client(
    table: Table, test: tuple[Features, Labels] | None, test_fraction: float, name: str, where: str
) -> Dataset:
    """Rows grouped by client, clients in sorted order of their ids, rows of a client in the file's order.

    A client whose rows were all held out for testing stays, without examples.

    Raises:
        DataError: No row; classes that cannot be numbers of classes.
    """
    if len(table.labels) == 0:
        raise DataError("the dataset is empty: it holds no training example", where=where)
    ids, owner = np.unique(table.owners, return_inverse=True)
    keep = np.arange(len(owner))
    features, labels = table.features, table.labels
    if test is None:
        keep, held = hold_out(labels, test_fraction, where)
        test = features[held], labels[held]
    order = keep[np.argsort(owner[keep], kind="stable")]
    sizes = np.bincount(owner[keep], minlength=len(ids))
    return Dataset(
        train_features=features[order],
        train_labels=labels[order],
        test_features=test[0],
        test_labels=test[1],
        name=name,
        classes=_classes(labels, test[1], where),
        train_offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)]),
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    _require_file(path)
    try:
        # Opened here, because NumPy forgets to close a file that is no archive.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError("is one array, not an archive", where=str(path), remedy="Write it by numpy.savez")
            missing = [name for name in _ARRAYS[:3] if name not in archive.files]
            unknown = [name for name in archive.files if name not in _ARRAYS]
            if missing or unknown or ("x_test" in archive.files) != ("y_test" in archive.files):
                raise DataError(
                    "the archive holds x, y and client, and x_test and y_test or neither of them",
                    where=str(path),
                    value=archive.files,
                )
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever NumPy and zipfile make of a damaged file
        raise _unreadable(path, "NumPy archive without pickled objects", error) from None


def _table(features: NDArray[Any], labels: NDArray[Any], owners: NDArray[Any], path: Path) -> Table:
    """The arrays in the types of a population, every value checked while rows and ids are still at hand."""
    if owners.dtype.kind not in "iuUS" or owners.ndim != 1:
        raise DataError(
            "client ids are one whole number or text for each row",
            where=str(path),
            value=f"{owners.dtype} of shape {owners.shape}",
        )
    kept, numbers = _features(features, str(path)), as_labels(labels, str(path))
    _require_rows(len(kept), {"label": numbers, "client": owners}, path, "features")
    negative = np.flatnonzero(numbers < 0)
    if negative.size:
        raise DataError(
            f"labels are class numbers from 0, and {_row(negative[0], owners)} is below",
            where=str(path),
            value=int(numbers[negative[0]]),
        )
    if kept.dtype == np.float32:
        _check_values(kept, owners, path)
    return Table(kept, numbers, owners)


def _features(array: NDArray[Any], where: str) -> Features:
    if array.dtype.kind == "b":
        array = array.astype(np.float32)
    # Whether 1 is a whole or 1/255 cannot be told from wider integers.
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        raise DataError(
            "features are bytes (uint8, which stand for 0 to 1 in steps of 1/255) or floats in [0, 1]",
            where=where,
            value=str(array.dtype),
            remedy="Convert them to the one that is meant",
        )
    if array.ndim == 2:
        return as_pixels(array, where)
    if array.ndim in (3, 4):
        return as_images(array, where)
    raise DataError("features are [n, d], or images [n, H, W] or [n, H, W, C]", where=where, value=array.shape)


def _check_values(features: Features, owners: NDArray[Any], path: Path) -> None:
    for start in range(0, len(features), _ROWS_AT_ONCE):
        rows = features[start : start + _ROWS_AT_ONCE].reshape(len(features[start : start + _ROWS_AT_ONCE]), -1)
        finite = np.isfinite(rows).all(axis=1)
        with np.errstate(invalid="ignore"):
            fits = finite & ((rows >= 0) & (rows <= 1)).all(axis=1)
        if fits.all():
            continue
        row = int(np.argmin(fits))
        values = rows[row]
        if not finite[row]:
            raise DataError(
                f"{_row(start + row, owners)} has a feature that is not finite",
                where=str(path),
                value=float(values[~np.isfinite(values)][0]),
                remedy="Repair or remove the row",
            )
        raise DataError(
            f"{_row(start + row, owners)} has a feature outside [0, 1]",
            where=str(path),
            value=float(values[(values < 0) | (values > 1)][0]),
            remedy="Scale features to [0, 1] by bounds that are public, not by those of the private data",
        )


def _classes(train: Labels, test: Labels, where: str) -> int:
    classes = 1 + int(max(train.max(initial=0), test.max(initial=0)))
    if classes > len(train) + len(test):
        raise DataError(
            f"labels are class numbers from 0, and there are only {len(train) + len(test)} examples",
            where=where,
            value=classes - 1,
            remedy="Number the classes 0, 1, 2, …",
        )
    return classes


def _column(column: Any, name: str, path: Path) -> NDArray[Any]:
    """One column as an array ``[n, …]``: lists of one length become axes."""
    import pyarrow as pa

    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # what combining leaves of a column without rows
        values = pa.array([], column.type)
    shape = [len(values)]
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or _fixed(values):
        _require_no_nulls(values, shape, name, path)
        lengths = values.value_lengths().to_numpy(zero_copy_only=False) if not _fixed(values) else None
        length = values.type.list_size if lengths is None else int(lengths[0]) if len(lengths) else 0
        if lengths is not None and (lengths != length).any():
            wrong = int(np.argmax(lengths != length))
            raise DataError(
                f"column {name!r} holds lists of one length, and row {wrong // int(np.prod(shape[1:]))} differs",
                where=str(path),
                value=int(lengths[wrong]),
            )
        shape.append(length)
        values = values.flatten()
    _require_no_nulls(values, shape, name, path)
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(values.to_pylist(), dtype=np.str_).reshape(shape)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return numbers.reshape(shape)
    raise DataError(f"column {name!r} holds numbers, lists of them, or text", where=str(path), value=str(kind))


def _fixed(values: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(values.type))


def _require_no_nulls(values: Any, shape: list[int], name: str, path: Path) -> None:
    if values.null_count:
        first = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(
            f"column {name!r} has an empty cell in row {first // max(1, int(np.prod(shape[1:])))}",
            where=str(path),
            remedy="Fill or remove it",
        )


def _joined(columns: dict[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    """One array of lists as it is, or numeric columns side by side."""
    if not columns:
        raise DataError("there is no feature column beside label and client", where=str(path))
    text = [name for name, values in columns.items() if values.dtype.kind not in "biuf"]
    if text:
        raise DataError(f"feature column {text[0]!r} holds numbers", where=str(path), value="text")
    lists = [name for name, values in columns.items() if values.ndim > 1]
    if not lists:
        whole = [name for name, values in columns.items() if values.dtype.kind in "iu"]
        # Bytes are divided by 255, and floats beside them would not be.
        if 0 < len(whole) < len(columns):
            raise DataError(
                f"feature columns are all bytes, or all floats in [0, 1] and booleans; {whole[0]!r} differs",
                where=str(path),
                value=str(columns[whole[0]].dtype),
            )
        joined: NDArray[Any] = np.stack(list(columns.values()), axis=1)
        return joined
    if len(columns) > 1:
        raise DataError(
            "features are one column of lists, or many columns of numbers", where=str(path), value=list(columns)
        )
    return columns[lists[0]]


def _require_rows(rows: int, others: dict[str, NDArray[Any]], path: Path, what: str) -> None:
    for name, values in others.items():
        if len(values) != rows:
            raise DataError(f"there are {rows} rows of {what} and {len(values)} of {name}", where=str(path))


def _row(row: int, owners: NDArray[Any]) -> str:
    owner = owners[row]
    shown = owner.decode("utf-8", "replace") if isinstance(owner, bytes) else str(owner)
    return f"row {row} (client {shown})"


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError("no such file", where="data.source", value=str(path))


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    said = str(error).strip().splitlines() or ["no reason given"]
    return DataError(f"cannot be read as a {kind}: {type(error).__name__}: {said[0][:200]}", where=str(path))
