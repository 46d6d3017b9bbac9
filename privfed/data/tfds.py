"""Image classification sets through TensorFlow Datasets: prepared ones from its folder, others by download."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset, as_images, as_labels, split_dataset
from privfed.data.network import bounded_network
from privfed.errors import DataError, SettingError

_NAME = re.compile(r"(?P<name>[A-Za-z]\w*)(/(?P<config>[\w.+-]+))?(:(?P<version>(\d+|\*)\.(\d+|\*)\.(\d+|\*)))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_BATCH = 512


@dataclass(frozen=True)
class Prepared:
    """A dataset that a folder holds ready to read.

    Attributes:
        name: The dataset's.
        config: Of datasets that come in several variants.
        version: As in ``3.0.1``.
        folder: Of this version's files.
    """

    name: str
    config: str | None
    version: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name}{f'/{self.config}' if self.config else ''}:{self.version}"

    @property
    def order(self) -> tuple[int, ...]:
        """Sorts versions as numbers."""
        return tuple(int(part) for part in self.version.split("."))


def usual_folder(data_dir: Path | None = None) -> Path:
    """``data_dir``, or where TensorFlow Datasets keeps prepared sets, without importing it."""
    chosen = data_dir or Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return chosen.expanduser()


def prepared_datasets(root: Path) -> list[Prepared]:
    """What ``root`` holds as ``NAME/[CONFIG/]VERSION``, found by listing folders."""
    found = []
    for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for path in root.glob(pattern):
            name, *config, version = path.relative_to(root).parts[:-1]
            # Anything else is a preparation that was cut off, in a folder named incomplete….
            if _VERSION.fullmatch(version):
                found.append(Prepared(name, config[0] if config else None, version, path.parent))
    return sorted(found, key=lambda prepared: (prepared.name, prepared.config or "", prepared.order))


def load_tfds(
    name: str, data_dir: Path | None = None, manual_dir: Path | None = None, test_fraction: float = 0.2
) -> Dataset:
    """The dataset ``NAME[/CONFIG][:VERSION]``, its examples in the order of its files.

    A prepared set is read as it is, without the code that prepared it; of several versions the newest. Any other
    is downloaded and prepared. Its test set is the split ``test``, else ``validation``, else part of ``train``.

    Raises:
        SettingError: The name is malformed.
        DataError: Unknown; neither prepared nor to be downloaded; damaged; no classification set of images of one
            size.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise SettingError(
            "names no dataset of TensorFlow Datasets",
            where="data.source",
            value=f"tfds:{name}",
            remedy="Write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION, as in tfds:kmnist",
        )
    if manual_dir is not None and not manual_dir.expanduser().is_dir():
        raise DataError("no such folder", where="data.manual_dir", value=str(manual_dir))
    root = usual_folder(data_dir)
    builder = _open_prepared(match, root) or _prepare(name, root, manual_dir)
    image, label, classes = _keys(builder, name)
    splits = builder.info.splits
    if "train" not in splits:
        raise DataError("has no split 'train'", where=f"tfds:{name}", value=", ".join(splits) or "no split")
    features, labels = _read(builder, "train", image, label, name)
    test = next((split for split in ("test", "validation") if split in splits), None)
    if test is None:
        known = _classes(classes, labels)
        return split_dataset(features, labels, test_fraction, builder.info.full_name, known)
    test_features, test_labels = _read(builder, test, image, label, name)
    known = _classes(classes, labels, test_labels)
    return Dataset(features, labels, test_features, test_labels, builder.info.full_name, known)


def _open_prepared(match: re.Match[str], root: Path) -> Any | None:
    config = match["config"] or _default_config(root / match["name"])
    version = (match["version"] or "*.*.*").replace(".", r"\.").replace("*", r"\d+")
    candidates = [
        prepared
        for prepared in prepared_datasets(root)
        if (prepared.name, prepared.config) == (match["name"], config) and re.fullmatch(version, prepared.version)
    ]
    if not candidates:
        return None
    folder = candidates[-1].folder
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # noqa: BLE001 - damaged metadata fails in protobuf, JSON or TensorFlow, each in its way
        raise _damaged(match[0], folder, error) from None


def _default_config(folder: Path) -> str | None:
    """Which variant a bare name means: TensorFlow Datasets writes it beside the variants."""
    try:
        stored = json.loads((folder / ".config" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored.get("default_config_name") if isinstance(stored, dict) else None


def _prepare(name: str, root: Path, manual_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        with _quiet(tfds), bounded_network():
            builder = tfds.builder(name, data_dir=str(root), try_gcs=False)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=str(manual_dir.expanduser()) if manual_dir else None, try_download_gcs=False
                )
            )
        return builder
    except tfds.core.DatasetNotFoundError:
        here = ", ".join(map(str, prepared_datasets(root))) or "no prepared dataset"
        raise DataError(
            f"TensorFlow Datasets knows no dataset {name}, and {root} holds {here}",
            where="data.source",
            value=f"tfds:{name}",
            remedy="Check the name, or set data.data_dir to the folder that holds it",
        ) from None
    except Exception as error:  # noqa: BLE001 - a builder is anybody's code and may raise anything
        raise DataError(
            f"the dataset {name} is not prepared in {root} and cannot be downloaded and prepared: {_said(error)}",
            where="data.source",
            value=f"tfds:{name}",
            remedy=f"Two ways out: (1) prepare it on a machine with a network, by tfds.load({name!r}), and copy "
            "its folder from ~/tensorflow_datasets there to the folder here, or to one that data.data_dir names; "
            "(2) get its files by hand and set data.manual_dir to their folder or, when they are IDX files, "
            'data.source = "idx" and data.folder',
        ) from None


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Progress goes to standard error, and only to a terminal: standard output belongs to results."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


def _keys(builder: Any, name: str) -> tuple[str, str, int | None]:
    """Which features are image and label, and the number of classes where the dataset states it."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    known = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    keys = builder.info.supervised_keys or ("image", "label")
    if len(keys) != 2 or not all(isinstance(key, str) and key in known for key in keys):
        raise DataError(
            f"is no set of images and labels; its features are {', '.join(known) or 'not named'}",
            where=f"tfds:{name}",
            remedy="Use a classification set",
        )
    image, label = keys
    shape = known[image].shape
    if len(shape or ()) not in (2, 3) or None in shape:
        raise DataError(
            f"feature {image!r} is no image of one size for all",
            where=f"tfds:{name}",
            value=shape,
            remedy="Use a set whose images all have the same size",
        )
    if known[label].shape != () or not np.issubdtype(known[label].np_dtype, np.integer):
        raise DataError(
            f"feature {label!r} is no class label", where=f"tfds:{name}", remedy="Use a classification set"
        )
    return image, label, getattr(known[label], "num_classes", None)


def _read(builder: Any, split: str, image: str, label: str, name: str) -> tuple[Any, Any]:
    import tensorflow_datasets as tfds

    info, expected = builder.info.features, builder.info.splits[split].num_examples
    pixels = np.empty((expected, *info[image].shape), info[image].np_dtype)
    labels = np.empty(expected, np.int64)
    got = 0
    try:
        batches = builder.as_dataset(
            split=split,
            batch_size=_BATCH,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding({image: True, label: True}),
            # One file after the other: "sequential" clients hold consecutive examples of the files.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        for batch in tfds.as_numpy(batches):
            rows = slice(got, got + len(batch[label]))
            pixels[rows], labels[rows] = batch[image], batch[label]
            got = rows.stop
    except Exception as error:  # noqa: BLE001 - TensorFlow raises its own kinds for records that are cut or altered
        raise _damaged(name, Path(builder.data_dir), error) from None
    if got != expected:
        raise DataError(f"split {split!r} holds {got} of {expected} examples", where=str(builder.data_dir))
    where = f"tfds:{name}, split {split}"
    return as_images(pixels, where), as_labels(labels, where)


def _classes(stated: int | None, *labels: NDArray[np.int32]) -> int:
    return stated or 1 + max(int(part.max(initial=0)) for part in labels)


def _damaged(name: str, folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the prepared dataset is damaged: {_said(error)}",
        where=str(folder),
        remedy=f"Remove the folder and prepare {name} again",
    )


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no reason given"
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:199] + '…'}"
