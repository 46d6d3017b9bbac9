"""TensorFlow Datasets without a network: sets that the tests prepare in its format, and the one error else."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_data_sources import check_contract

from privfed.data import Dataset, build_population, describe, load_dataset
from privfed.errors import DataError

TRAIN = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 1), dtype=np.uint8)
TEST = np.random.default_rng(1).integers(0, 256, (12, 4, 5, 1), dtype=np.uint8)


class Thirds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images whose label is their number modulo 3, in splits that subclasses choose."""

    VERSION = tfds.core.Version("1.2.0")
    SPLITS = {"train": TRAIN, "test": TEST}  # noqa: RUF012 - a constant of the class, as VERSION is
    FEATURES: dict[str, Any] = {  # noqa: RUF012 - the same
        "image": tfds.features.Image(shape=(4, 5, 1)),
        "label": tfds.features.ClassLabel(num_classes=3),
        "note": tfds.features.Text(),
    }
    KEYS: tuple[str, ...] | None = ("image", "label")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=self.KEYS)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(images) for split, images in self.SPLITS.items()}

    def _generate_examples(self, images: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, image in enumerate(images):
            yield number, {"image": image, "label": number % 3, "note": "not read"}


def prepare(root: Path, builder: type[Thirds], name: str, **arguments: Any) -> Any:
    """Write a dataset that no code is registered for."""
    made = type(name, (builder,), {"name": name, "__module__": __name__}, skip_registration=True)(
        data_dir=str(root), **arguments
    )
    made.download_and_prepare()
    return made


@pytest.fixture(autouse=True)
def quiet() -> None:
    tfds.disable_progress_bar()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, Thirds, "blobs")
    return folder


def images_of(features: Any) -> set[bytes]:
    return {image.tobytes() for image in features}


def test_reads_a_prepared_set_that_nobody_registered(root: Path) -> None:
    dataset = load_dataset("tfds:blobs", data_dir=root)
    check_contract(dataset)
    assert (dataset.name, dataset.classes) == ("blobs/1.2.0", 3)
    assert dataset.train_features.dtype == np.uint8
    assert images_of(dataset.train_features) == images_of(TRAIN)
    assert images_of(dataset.test_features) == images_of(TEST)
    number = {image.tobytes(): index for index, image in enumerate(TRAIN)}
    assert [number[image.tobytes()] % 3 for image in dataset.train_features] == dataset.train_labels.tolist()
    population = build_population(dataset, "sequential", 3)
    np.testing.assert_array_equal(population.features[:10], dataset.train_features[:10])


def test_the_order_is_that_of_the_files(root: Path) -> None:
    expected = tfds.as_numpy(tfds.builder_from_directory(str(root / "blobs" / "1.2.0")).as_dataset(split="train"))
    dataset = load_dataset("tfds:blobs", data_dir=root)
    np.testing.assert_array_equal(dataset.train_features, np.stack([example["image"] for example in expected]))


def test_the_usual_folder_is_tensorflow_datasets_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(load_dataset("tfds:blobs").train_labels) == 30
    assert "tfds:blobs:1.2.0" in [row["source"] for row in describe()]


def test_versions(tmp_path: Path) -> None:
    for version in ("1.2.0", "1.10.0", "1.9.0"):
        older = {"VERSION": tfds.core.Version(version), "__module__": __name__}
        prepare(tmp_path, type("Older", (Thirds,), older, skip_registration=True), "blobs")
    names = {
        "blobs": "1.10.0",
        "blobs:1.9.0": "1.9.0",
        "blobs:1.2.*": "1.2.0",
        "blobs:1.*.*": "1.10.0",
    }
    for name, version in names.items():
        assert load_dataset(f"tfds:{name}", data_dir=tmp_path).name == f"blobs/{version}"
    with pytest.raises(
        DataError, match=r"no dataset blobs:2.0.0, and .* holds blobs:1.2.0, blobs:1.9.0, blobs:1.10"
    ):
        load_dataset("tfds:blobs:2.0.0", data_dir=tmp_path)


def test_configurations(tmp_path: Path) -> None:
    class Configured(Thirds, skip_registration=True):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("small", "large")]  # noqa: RUF012 - TFDS'

    for config in ("small", "large"):
        prepare(tmp_path, Configured, "sized", config=config)
    assert load_dataset("tfds:sized/large", data_dir=tmp_path).name == "sized/large/1.2.0"
    assert load_dataset("tfds:sized/large:1.2.0", data_dir=tmp_path).name == "sized/large/1.2.0"
    assert load_dataset("tfds:sized", data_dir=tmp_path).name == "sized/small/1.2.0"  # the default is the first
    with pytest.raises(DataError, match=r"holds sized/large:1.2.0, sized/small:1.2.0"):
        load_dataset("tfds:sized/medium", data_dir=tmp_path)


def with_splits(**splits: Any) -> type[Thirds]:
    return type("Splits", (Thirds,), {"SPLITS": splits, "__module__": __name__}, skip_registration=True)


def test_validation_serves_where_there_is_no_test_split(tmp_path: Path) -> None:
    prepare(tmp_path, with_splits(train=TRAIN, validation=TEST), "two")
    assert images_of(load_dataset("tfds:two", data_dir=tmp_path).test_features) == images_of(TEST)


def test_a_set_without_a_test_set_has_one_held_out(tmp_path: Path) -> None:
    prepare(tmp_path, with_splits(train=TRAIN), "one")
    dataset = load_dataset("tfds:one", data_dir=tmp_path, test_fraction=0.4)
    assert np.bincount(dataset.test_labels).tolist() == [4, 4, 4]
    assert images_of(dataset.train_features) | images_of(dataset.test_features) == images_of(TRAIN)


def test_a_set_without_training_examples_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, with_splits(test=TEST), "none")
    with pytest.raises(DataError, match=r"tfds:none: has no split 'train' \(got 'test'\)"):
        load_dataset("tfds:none", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("features", "keys", "message"),
    [
        (
            {"image": tfds.features.Image(shape=(None, None, 1))},
            ("image", "label"),
            "no image of one size for all",
        ),
        ({"label": tfds.features.Text()}, ("image", "label"), "feature 'label' is no class label"),
        ({}, ("note", "label"), "feature 'note' is no image"),
        ({"picture": tfds.features.Image(shape=(4, 5, 1)), "image": None}, None, "no set of images and labels"),
    ],
)
def test_refuses_what_is_no_classification_set(
    tmp_path: Path, features: dict[str, Any], keys: tuple[str, ...] | None, message: str
) -> None:
    merged = {key: value for key, value in (Thirds.FEATURES | features).items() if value is not None}

    def generate(self: Any, images: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        values = {"image": TRAIN[0], "picture": TRAIN[0], "note": "", "label": 0}
        if isinstance(merged["label"], tfds.features.Text):
            values["label"] = "zero"
        yield 0, {key: values[key] for key in merged}

    made = {"FEATURES": merged, "KEYS": keys, "_generate_examples": generate, "__module__": __name__}
    prepare(tmp_path, type("Odd", (Thirds,), made, skip_registration=True), "odd")
    with pytest.raises(DataError, match=f"tfds:odd: .*{message}"):
        load_dataset("tfds:odd", data_dir=tmp_path)


@pytest.mark.parametrize("values", [(np.uint16, 65535), (np.float32, 1)])
def test_other_types_of_pixels_land_in_the_unit_interval(tmp_path: Path, values: tuple[Any, int]) -> None:
    kind, top = values
    images = (np.random.default_rng(0).random((12, 4, 5, 1)) * top).astype(kind)
    images[0, 0, 0, 0] = top
    image = tfds.features.Image(shape=(4, 5, 1), dtype=kind)
    made = {"FEATURES": Thirds.FEATURES | {"image": image}, "SPLITS": {"train": images, "test": images}}
    prepare(tmp_path, type("Deep", (Thirds,), {**made, "__module__": __name__}, skip_registration=True), "deep")
    dataset = load_dataset("tfds:deep", data_dir=tmp_path)
    check_contract(dataset)
    expected = {tuple(np.round(image.ravel() / top, 5)) for image in images.astype(np.float64)}
    assert {tuple(np.round(image.ravel().astype(np.float64), 5)) for image in dataset.train_features} == expected


def damage(dataset: Path, part: str) -> None:
    path = next(dataset.glob(part))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("part", ["*-train.tfrecord*", "dataset_info.json", "features.json"])
def test_a_damaged_set_is_named(tmp_path: Path, part: str) -> None:
    prepare(tmp_path, Thirds, "blobs")
    damage(tmp_path / "blobs" / "1.2.0", part)
    with pytest.raises(
        DataError, match=r"blobs/1.2.0: the prepared dataset is damaged: .*prepare blobs again"
    ) as caught:
        load_dataset("tfds:blobs", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_split_that_lacks_examples_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path, Thirds, "blobs")
    path = tmp_path / "blobs" / "1.2.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    (train,) = (split for split in info["splits"] if split["name"] == "train")
    train["shardLengths"] = ["31"]
    path.chmod(0o644)
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"damaged|holds 30 of 31 examples"):
        load_dataset("tfds:blobs", data_dir=tmp_path)


class PrivfedTestLocal(Thirds):
    """Registered, and prepared without a download."""

    name = "privfed_test_local"


class PrivfedTestNowhere(Thirds):
    """Registered, with files at a host that RFC 2606 reserves to be nowhere."""

    name = "privfed_test_nowhere"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        dl_manager.download_and_extract({"images": "http://nowhere.invalid/images.gz"})
        raise AssertionError("the download above must have failed: its host is nowhere")


CONTENT = TRAIN.tobytes()


class PrivfedTestByHand(Thirds):
    """Registered, with a file whose checksum is known, as KMNIST's are."""

    name = "privfed_test_by_hand"
    url_infos = {  # noqa: RUF012 - overrides TFDS' own, which reads a file beside the builder
        "http://nowhere.invalid/images.bin": tfds.download.checksums.UrlInfo(
            size=tfds.core.utils.Size(len(CONTENT)),
            checksum=hashlib.sha256(CONTENT).hexdigest(),
            filename="images.bin",
        )
    }

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = dl_manager.download("http://nowhere.invalid/images.bin")
        images = np.frombuffer(Path(path).read_bytes(), np.uint8).reshape(TRAIN.shape)
        return {"train": self._generate_examples(images), "test": self._generate_examples(images[:3])}


class PrivfedTestInstructed(Thirds):
    """Registered, and only to be had by hand, as ImageNet is."""

    name = "privfed_test_instructed"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the author for images.bin."

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        images = np.frombuffer((dl_manager.manual_dir / "images.bin").read_bytes(), np.uint8).reshape(TRAIN.shape)
        return {"train": self._generate_examples(images), "test": self._generate_examples(images[:3])}


def test_prepares_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first: Dataset = load_dataset("tfds:privfed_test_local", data_dir=tmp_path)
    assert (tmp_path / "privfed_test_local" / "1.2.0" / "dataset_info.json").is_file()
    again = load_dataset("tfds:privfed_test_local", data_dir=tmp_path)
    np.testing.assert_array_equal(first.train_features, again.train_features)
    assert capsys.readouterr().out == ""  # standard output is for results


def test_what_cannot_be_downloaded_is_one_error_within_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_dataset("tfds:privfed_test_nowhere", data_dir=tmp_path)
    assert time.monotonic() - started < 10
    message = str(caught.value)
    for part in (
        "data.source: ",
        "the dataset privfed_test_nowhere is not prepared in",
        str(tmp_path),
        "nowhere.invalid cannot be reached",
        "Two ways out: (1) prepare it on a machine with a network",
        "data.data_dir",
        "(2) get its files by hand and set data.manual_dir",
        "data.folder",
    ):
        assert part in message
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")
    assert [row["source"] for row in describe(data_dir=tmp_path) if row["source"].startswith("tfds:p")] == []


@pytest.mark.parametrize("name", ["privfed_test_by_hand", "privfed_test_instructed"])
def test_files_got_by_hand_are_enough(tmp_path: Path, name: str) -> None:
    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    (by_hand / "images.bin").write_bytes(CONTENT)
    dataset = load_dataset(f"tfds:{name}", data_dir=tmp_path / "tfds", manual_dir=by_hand)
    assert images_of(dataset.train_features) == images_of(TRAIN)


def test_without_the_files_to_be_got_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"privfed_test_instructed is not prepared .*data.manual_dir"):
        load_dataset("tfds:privfed_test_instructed", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"data.manual_dir: no such folder \(got '.*/missing'\)"):
        load_dataset("tfds:privfed_test_instructed", data_dir=tmp_path, manual_dir=tmp_path / "missing")


def test_a_version_that_the_code_cannot_make(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"privfed_test_local:9.0.0 is not prepared in"):
        load_dataset("tfds:privfed_test_local:9.0.0", data_dir=tmp_path)


def test_an_unknown_set(root: Path) -> None:
    with pytest.raises(DataError, match=r"knows no dataset no_such_set, and .* holds blobs:1.2.0.*Check the name"):
        load_dataset("tfds:no_such_set", data_dir=root)
