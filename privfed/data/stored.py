"""Populations in a folder of ``.npy`` files, features mapped from disk: a million clients cost their offsets.

::

    features.npy       [n, H, W, C] or [n, d], uint8 or float32 in [0, 1]; rows grouped by client
    labels.npy         [n], int32
    offsets.npy        [clients + 1], int64: client c owns the rows offsets[c]:offsets[c + 1]
    test_features.npy  as features
    test_labels.npy    as labels
    population.json    {"format": "privfed.Population/1", "name": "…", "classes": 10}, and "tokens" for text

``save_population`` writes them; so can any program, row by row. A population holds views of the mapped files:
changing them while it is in use changes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset
from privfed.data.population import Population, row_slices
from privfed.errors import DataError, OutputError
from privfed.files import replacing, write_text

FORMAT = "privfed.Population/1"

_MAPPED = ("features", "labels", "test_features", "test_labels")
_DESCRIPTION = "population.json"


def save_population(population: Population, folder: Path) -> None:
    """Write a population into a new or empty folder; ``population.json`` last, so that a part is none.

    Raises:
        OutputError: The folder holds something already, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise OutputError("the folder is not empty", where=str(folder), remedy="Name another, or empty it")
        for name in (*_MAPPED, "offsets"):
            _write(folder / f"{name}.npy", getattr(population, name))
        described: dict[str, Any] = {"format": FORMAT, "name": population.name, "classes": population.classes}
        if population.tokens is not None:
            described["tokens"] = population.tokens
        write_text(folder / _DESCRIPTION, json.dumps(described, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(folder)) from None


def open_population(folder: Path) -> Population:
    """The population of a folder. Its values are read once, to be checked, and none of them stays in memory.

    Raises:
        DataError: Missing or damaged files, and all that ``Population`` refuses.
    """
    data = load_npy(folder)
    assert data.train_offsets is not None  # that is what the folder holds
    return Population(
        features=data.train_features,
        labels=data.train_labels,
        offsets=data.train_offsets,
        test_features=data.test_features,
        test_labels=data.test_labels,
        name=data.name,
        classes=data.classes,
        tokens=data.tokens,
    )


def load_npy(folder: Path) -> Dataset:
    """The same as a dataset that came by client, whose arrays are mapped from disk.

    Raises:
        DataError: Missing or damaged files.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where="data.source", value=str(folder))
    described = _described(folder / _DESCRIPTION)
    arrays = {name: _mapped(folder / f"{name}.npy") for name in (*_MAPPED, "offsets")}
    return Dataset(
        train_features=arrays["features"],
        train_labels=arrays["labels"],
        test_features=arrays["test_features"],
        test_labels=arrays["test_labels"],
        name=described["name"],
        classes=described["classes"],
        train_offsets=np.array(arrays["offsets"]),
        tokens=described.get("tokens"),
    )


def _described(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read: {error}", where=str(path), remedy="Write the folder by save_population"
        ) from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise DataError(f"is not of the format {FORMAT}", where=str(path))
    kinds = {"format": str, "name": str, "classes": int, "tokens": int}
    wrong = [key for key, value in described.items() if key not in kinds or type(value) is not kinds[key]]
    wrong += [key for key in ("name", "classes") if key not in described]
    if wrong:
        raise DataError(f"{wrong[0]!r} is missing, unknown, or of the wrong type", where=str(path))
    return described


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - whatever NumPy makes of a damaged file
        raise DataError(f"cannot be read as a NumPy array: {error}", where=str(path)) from None
    if not isinstance(array, np.memmap):
        raise DataError("is an archive, not one array", where=str(path))
    if not array.flags.c_contiguous:
        raise DataError("rows lie side by side (Fortran order)", where=str(path), remedy="Store it in C order")
    # A view: NumPy's subclass would follow every slice, for nothing.
    return array.view(np.ndarray)


def _write(path: Path, array: NDArray[Any]) -> None:
    with replacing(path) as file:
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]  # NumPy has no types here
        for rows in row_slices(array):
            file.write(np.ascontiguousarray(rows).data)
