"""Where examples come from. A new source is one loader and one line in ``SOURCES``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfed.data.dataset import Dataset
from privfed.data.digits import load_digits
from privfed.data.idx import find_files, load_idx
from privfed.data.tfds import load_tfds, prepared_datasets, usual_folder
from privfed.errors import DataError, SettingError


@dataclass(frozen=True)
class Request:
    """What the settings say about a source.

    Attributes:
        argument: What follows the colon in ``data.source``.
        folder: ``data.folder``.
        data_dir: ``data.data_dir``.
        manual_dir: ``data.manual_dir``.
        test_fraction: To hold out of a set that comes without a test set.
    """

    argument: str
    folder: Path | None
    data_dir: Path | None
    manual_dir: Path | None
    test_fraction: float


@dataclass(frozen=True)
class Source:
    """One kind of source.

    Attributes:
        load: Gives the dataset.
        usage: How to name it in ``data.source``.
        keys: The keys of ``[data]`` that it reads.
    """

    load: Callable[[Request], Dataset]
    usage: str
    keys: frozenset[str] = frozenset()


def _digits(request: Request) -> Dataset:
    if request.argument:
        raise SettingError("digits takes no name", where="data.source", value=f"digits:{request.argument}")
    return load_digits(request.test_fraction)


def _idx(request: Request) -> Dataset:
    if request.argument and request.folder is not None and Path(request.argument) != request.folder:
        raise SettingError(
            f"contradicts data.source, which names {request.argument}",
            where="data.folder",
            value=str(request.folder),
            remedy="Keep one of them",
        )
    folder = Path(request.argument) if request.argument else request.folder
    if folder is None:
        raise SettingError(
            "is missing: idx needs the folder of the IDX files",
            where="data.folder",
            remedy='Set it, or write data.source = "idx:FOLDER"',
        )
    return load_idx(folder)


def _tfds(request: Request) -> Dataset:
    return load_tfds(request.argument, request.data_dir, request.manual_dir, request.test_fraction)


SOURCES: dict[str, Source] = {
    "digits": Source(_digits, "digits"),
    "idx": Source(_idx, "idx (with data.folder) or idx:FOLDER", frozenset({"folder"})),
    "tfds": Source(_tfds, "tfds:NAME", frozenset({"data_dir", "manual_dir"})),
}


def load_dataset(
    source: str,
    *,
    folder: str | Path | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    test_fraction: float = 0.2,
) -> Dataset:
    """Load ``digits``, ``idx`` (with ``folder``), ``idx:FOLDER``, or ``tfds:NAME[/CONFIG][:VERSION]``.

    Args:
        source: As in ``data.source``.
        folder: Of ``idx``.
        data_dir: TensorFlow Datasets' folder; its usual one when not given.
        manual_dir: Where TensorFlow Datasets looks for files downloaded by hand.
        test_fraction: To hold out of a set that comes without a test set.

    Raises:
        SettingError: The source is unknown or malformed, or a key does not go with it.
        DataError: The data are missing, damaged, or not what the source expects.
    """
    kind, _, argument = source.partition(":")
    if kind not in SOURCES:
        known = ", ".join(known.usage for known in SOURCES.values())
        raise SettingError("unknown source", where="data.source", value=source, remedy=f"Known: {known}")
    given = {"folder": folder, "data_dir": data_dir, "manual_dir": manual_dir}
    for key, value in given.items():
        if value is not None and key not in SOURCES[kind].keys:
            raise SettingError(
                f"does not go with the source {kind}", where=f"data.{key}", value=str(value), remedy="Remove it"
            )
    if not 0 < test_fraction < 1:
        raise SettingError("must lie between 0 and 1", where="test_fraction", value=test_fraction)
    paths = {key: None if value is None else Path(value) for key, value in given.items()}
    return SOURCES[kind].load(
        Request(argument, paths["folder"], paths["data_dir"], paths["manual_dir"], test_fraction)
    )


def describe(*, folder: Path | None = None, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """One row for each source and each prepared set: ``source`` (how to name it), ``holds``, ``here``.

    ``here`` is ``None`` where it depends on a folder or a name that is not given. Looks at names of files only.
    """
    root = usual_folder(data_dir)
    installed = importlib.util.find_spec("tensorflow_datasets") is not None
    return [
        {"source": "digits", "holds": "1,797 handwritten digits, 8×8, bundled with scikit-learn", "here": True},
        _describe_idx(folder),
        *(
            {"source": f"tfds:{prepared}", "holds": f"prepared in {prepared.folder}", "here": installed}
            for prepared in prepared_datasets(root)
        ),
        {
            "source": "tfds:NAME",
            "holds": f"image classification sets of TensorFlow Datasets; prepared ones are kept in {root}",
            "here": None if installed else False,
        },
    ]


def _describe_idx(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {"source": "idx:FOLDER", "holds": "IDX files of the MNIST family, gzipped or not", "here": None}
    try:
        files = find_files(folder)
    except DataError as error:
        return {"source": f"idx:{folder}", "holds": str(error), "here": False}
    names = (files.train_images, files.train_labels, files.test_images, files.test_labels)
    return {"source": f"idx:{folder}", "holds": ", ".join(path.name for path in names), "here": True}
