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
from privfed.data.stored import load_npy
from privfed.data.tables import CLIENT_COLUMN, LABEL_COLUMN, load_npz, load_parquet
from privfed.data.text import SEQUENCE_LENGTH
from privfed.data.tfds import load_tfds, prepared_datasets, usual_folder
from privfed.data.tff_sets import SYNTHETIC, describe_tff, load_tff
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
        sequence_length: ``data.sequence_length``.
        label_column: ``data.label_column``.
        client_column: ``data.client_column``.
        natural_clients: How many clients of the data will be used; a source may read no others.
        seed: ``data.seed``, by which they are drawn.
    """

    argument: str
    folder: Path | None
    data_dir: Path | None
    manual_dir: Path | None
    test_fraction: float
    sequence_length: int | None = None
    label_column: str | None = None
    client_column: str | None = None
    natural_clients: int | None = None
    seed: int = 0

    def path(self, kind: str, what: str) -> Path:
        """The argument as a path.

        Raises:
            SettingError: There is none.
        """
        if not self.argument:
            raise SettingError(
                f"{kind} needs a {what}", where="data.source", remedy=f"Write {kind}:{what.upper()}"
            )
        return Path(self.argument).expanduser()


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


def _tff(request: Request) -> Dataset:
    return load_tff(
        request.argument,
        request.data_dir,
        clients=request.natural_clients,
        seed=request.seed,
        sequence_length=SEQUENCE_LENGTH if request.sequence_length is None else request.sequence_length,
    )


def _npz(request: Request) -> Dataset:
    return load_npz(request.path("npz", "file"), request.test_fraction)


def _parquet(request: Request) -> Dataset:
    label, client = request.label_column or LABEL_COLUMN, request.client_column or CLIENT_COLUMN
    return load_parquet(request.path("parquet", "file"), label, client, request.test_fraction)


def _npy(request: Request) -> Dataset:
    return load_npy(request.path("npy", "folder"))


SOURCES: dict[str, Source] = {
    "digits": Source(_digits, "digits"),
    "idx": Source(_idx, "idx (with data.folder) or idx:FOLDER", frozenset({"folder"})),
    "tfds": Source(_tfds, "tfds:NAME", frozenset({"data_dir", "manual_dir"})),
    "tff": Source(_tff, "tff:NAME", frozenset({"data_dir", "sequence_length"})),
    "npz": Source(_npz, "npz:FILE"),
    "parquet": Source(_parquet, "parquet:FILE", frozenset({"label_column", "client_column"})),
    "npy": Source(_npy, "npy:FOLDER"),
}


def load_dataset(
    source: str,
    *,
    folder: str | Path | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    test_fraction: float = 0.2,
    sequence_length: int | None = None,
    label_column: str | None = None,
    client_column: str | None = None,
    natural_clients: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load the examples of a source: ``SOURCES`` lists them, and how they are named.

    ``tff``, ``npz``, ``parquet`` and ``npy`` know whose each example is, and give datasets for the partition
    ``natural``.

    Args:
        source: As in ``data.source``.
        folder: Of ``idx``.
        data_dir: TensorFlow Datasets' folder, or TensorFlow Federated's cache; the usual one when not given.
        manual_dir: Where TensorFlow Datasets looks for files downloaded by hand.
        test_fraction: To hold out of a set that comes without a test set.
        sequence_length: Tokens before the one to predict, for the texts of ``tff``.
        label_column: Of ``parquet``.
        client_column: Of ``parquet``.
        natural_clients: How many clients the partition ``natural`` will draw, so that ``tff`` reads those only.
            The partition, given the same number and seed, takes the same ones of a dataset that holds all.
        seed: Of that draw.

    Raises:
        SettingError: The source is unknown or malformed, or a key does not go with it.
        DataError: The data are missing, damaged, or not what the source expects.
    """
    kind, _, argument = source.partition(":")
    if kind not in SOURCES:
        known = ", ".join(known.usage for known in SOURCES.values())
        raise SettingError("unknown source", where="data.source", value=source, remedy=f"Known: {known}")
    paths: dict[str, str | Path | None] = {"folder": folder, "data_dir": data_dir, "manual_dir": manual_dir}
    others = {"sequence_length": sequence_length, "label_column": label_column, "client_column": client_column}
    for key, value in {**paths, **others}.items():
        if value is not None and key not in SOURCES[kind].keys:
            raise SettingError(
                f"does not go with the source {kind}", where=f"data.{key}", value=str(value), remedy="Remove it"
            )
    if not 0 < test_fraction < 1:
        raise SettingError("must lie between 0 and 1", where="test_fraction", value=test_fraction)
    folder, data_dir, manual_dir = (None if value is None else Path(value) for value in paths.values())
    request = Request(
        argument,
        folder,
        data_dir,
        manual_dir,
        test_fraction,
        sequence_length=sequence_length,
        label_column=label_column,
        client_column=client_column,
        natural_clients=natural_clients,
        seed=seed,
    )
    return SOURCES[kind].load(request)


def describe(*, folder: Path | None = None, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """One row for each source and each prepared set: ``source`` (how to name it), ``holds``, ``here``.

    ``here`` is ``None`` where it depends on a folder or a name that is not given. Looks at names of files only.
    """
    root = usual_folder(data_dir)
    installed = importlib.util.find_spec("tensorflow_datasets") is not None
    federated = importlib.util.find_spec("tensorflow_federated") is not None
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
        *describe_tff(None, federated),
        {
            "source": f"tff:NAME{SYNTHETIC}",
            "holds": "a few examples that TensorFlow Federated bundles for each of its sets, without a download",
            "here": federated,
        },
        {"source": "npz:FILE", "holds": "arrays x, y, client, and x_test, y_test if any", "here": None},
        {"source": "parquet:FILE", "holds": "a label, a client and feature columns", "here": None},
        {"source": "npy:FOLDER", "holds": "a saved population, whose features stay on disk", "here": None},
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
