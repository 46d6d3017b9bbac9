"""The contract of every source, the names they go by, and what ``privfed datasets`` is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from idx_writer import small_set, write_folder

from privfed.data import PARTITIONERS, SOURCES, Dataset, build_population, describe, load_dataset
from privfed.errors import SettingError


@pytest.fixture(params=["digits", "idx"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """TensorFlow Datasets keeps the same contract in test_data_tfds.py, where TensorFlow is imported."""
    if request.param == "digits":
        return load_dataset("digits")
    return load_dataset("idx", folder=write_folder(tmp_path, small_set(), small_set(1)))


def check_contract(dataset: Dataset) -> None:
    for features, labels in (
        (dataset.train_features, dataset.train_labels),
        (dataset.test_features, dataset.test_labels),
    ):
        assert features.dtype in (np.uint8, np.float32)
        assert features.ndim == 4
        assert labels.dtype == np.int32
        assert len(features) == len(labels) > 0
        assert 0 <= labels.min() <= labels.max() < dataset.classes
        if features.dtype == np.float32:
            assert 0 <= features.min() <= features.max() <= 1
    for partition in PARTITIONERS:
        population = build_population(dataset, partition, 4)
        assert population.sizes.sum() == len(dataset.train_labels)


def test_contract(dataset: Dataset) -> None:
    check_contract(dataset)


def test_digits_are_the_bundled_ones() -> None:
    """1,797 images of 8×8, 16 levels, 174 to 183 of each digit (scikit-learn's description of the set)."""
    dataset = load_dataset("digits")
    assert len(dataset.train_labels) + len(dataset.test_labels) == 1797
    features = np.concatenate([dataset.train_features, dataset.test_features])
    assert features.shape[1:] == (8, 8, 1)
    np.testing.assert_array_equal(np.unique(features), np.arange(17, dtype=np.float32) / 16)
    counts = np.bincount(dataset.train_labels) + np.bincount(dataset.test_labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_fifth_of_every_digit_is_held_out_and_always_the_same() -> None:
    first, again = load_dataset("digits"), load_dataset("digits")
    for field in ("train_features", "train_labels", "test_features", "test_labels"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    held = np.bincount(first.test_labels) / (np.bincount(first.train_labels) + np.bincount(first.test_labels))
    assert (abs(held - 0.2) < 0.003).all()
    train = {image.tobytes() for image in first.train_features}
    assert not any(image.tobytes() in train for image in first.test_features)


def test_another_fraction_can_be_held_out() -> None:
    dataset = load_dataset("digits", test_fraction=0.5)
    assert abs(len(dataset.test_labels) - 1797 / 2) < 6


@pytest.mark.parametrize("fraction", [0, 1, -0.2, float("nan")])
def test_refuses_to_hold_out_everything_or_nothing(fraction: float) -> None:
    with pytest.raises(SettingError, match="test_fraction: must lie between 0 and 1"):
        load_dataset("digits", test_fraction=fraction)


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(
        SettingError, match=r"data.source: unknown source \(got 'mnist'\). Known: digits, idx .*tfds:NAME"
    ):
        load_dataset("mnist")


@pytest.mark.parametrize(
    ("source", "keys", "message"),
    [
        ("digits:8", {}, "data.source: digits takes no name"),
        ("digits", {"folder": "x"}, "data.folder: does not go with the source digits"),
        ("tfds:kmnist", {"folder": "x"}, "data.folder: does not go with the source tfds"),
        ("idx:x", {"data_dir": "x"}, "data.data_dir: does not go with the source idx"),
        ("idx:x", {"manual_dir": "x"}, "data.manual_dir: does not go with the source idx"),
        ("tfds", {}, r"data.source: names no dataset .*Write tfds:NAME"),
        ("tfds:", {}, "names no dataset"),
        ("tfds:../kmnist", {}, "names no dataset"),
        ("tfds:kmnist:3", {}, "names no dataset"),
        ("tfds:huggingface:mnist", {}, "names no dataset"),
        ("tff", {}, "names no simulation set"),
        ("npy", {}, "npy needs a folder. Write npy:FOLDER"),
        ("npz:x", {"client_column": "x"}, "data.client_column: does not go with the source npz"),
        ("digits", {"sequence_length": 3}, "data.sequence_length: does not go with the source digits"),
        ("tff:emnist", {"folder": "x"}, "data.folder: does not go with the source tff"),
    ],
)
def test_refuses_what_contradicts_itself(source: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_dataset(source, **keys)


def test_describes_what_is_here(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "idx", small_set(), small_set())
    root = tmp_path / "tfds"
    for made in (
        "kmnist/3.0.1",
        "kmnist/3.0.10",
        "kmnist/3.0.2",
        "emnist/letters/3.1.0",
        "kmnist/incomplete.A_3.0.1",
    ):
        (root / made).mkdir(parents=True)
        (root / made / "dataset_info.json").write_text("{}")
    (root / "downloads").mkdir()
    rows = {row["source"]: row for row in describe(folder=folder, data_dir=root)}
    assert list(rows) == [
        "digits",
        f"idx:{folder}",
        "tfds:emnist/letters:3.1.0",
        "tfds:kmnist:3.0.1",
        "tfds:kmnist:3.0.2",
        "tfds:kmnist:3.0.10",
        "tfds:NAME",
        *(f"tff:{name}" for name in ("emnist", "emnist_all", "cifar100", "shakespeare", "stackoverflow")),
        "tff:NAME_synthetic",
        "npz:FILE",
        "parquet:FILE",
        "npy:FOLDER",
    ]
    assert {tuple(row) for row in rows.values()} == {("source", "holds", "here")}
    assert [row["here"] for row in rows.values()][:7] == [True] * 6 + [None]
    assert "train-images-idx3-ubyte.gz" in rows[f"idx:{folder}"]["holds"]


def test_describes_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "usual"))
    monkeypatch.setenv("HOME", str(tmp_path))
    digits, idx, tfds, *others = describe(folder=tmp_path)
    assert digits["here"] is True
    assert idx["here"] is False
    assert "looked for *train-images-idx3-ubyte" in idx["holds"]
    assert tfds["here"] is None
    assert str(tmp_path / "usual") in tfds["holds"]
    assert [row["here"] for row in others] == [False] * 5 + [True] + [None] * 3
    assert describe()[1] == {
        "source": "idx:FOLDER",
        "holds": "IDX files of the MNIST family, gzipped or not",
        "here": None,
    }


def test_every_source_says_how_to_name_it() -> None:
    assert all(source.usage.startswith(name) for name, source in SOURCES.items())


def test_importing_and_describing_import_nothing_heavy() -> None:
    """Counted in a process of its own, because other tests here import TensorFlow."""
    heavy = (
        "tensorflow",
        "tensorflow_datasets",
        "tensorflow_federated",
        "sklearn",
        "requests",
        "pyarrow",
        "skimage",
    )
    code = f"import sys, privfed.data; privfed.data.describe(); print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
