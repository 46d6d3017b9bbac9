"""IDX files: every element type read exactly, every kind of damage refused by the file's name."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from idx_writer import CODES, idx_bytes, small_set, write_folder

from privfed.data import build_population, load_dataset
from privfed.data.idx import find_files, read_idx
from privfed.errors import DataError, SettingError

# How MNIST's training images begin (http://yann.lecun.com/exdb/mnist/, "file formats for the MNIST database").
MNIST_HEADER = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")


def damaged(folder: Path, content: bytes, name: str = "train-images-idx3-ubyte") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_reads_every_element_type(tmp_path: Path, code: str, zipped: bool) -> None:
    array = (np.random.default_rng(1).random((3, 4, 2)) * 100).astype(code)
    if code[0] in "if":
        array[0] = -array[0]
    content = idx_bytes(array)
    read = read_idx(
        damaged(tmp_path, gzip.compress(content, mtime=0) if zipped else content, f"x{'.gz' if zipped else ''}")
    )
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(code)
    assert read.dtype.isnative


@given(
    array=hnp.arrays(
        st.sampled_from([np.dtype(code) for code in CODES]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
    )
)
@settings(deadline=None, max_examples=60)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, array: Any) -> None:
    path = damaged(tmp_path_factory.mktemp("idx"), idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array)


def test_the_header_of_mnist(tmp_path: Path) -> None:
    assert read_idx(damaged(tmp_path, MNIST_HEADER + bytes(60000 * 28 * 28))).shape == (60000, 28, 28)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\0\0", "truncated"),
        (b"\0\1\x08\3" + GOOD[4:], "wrong magic number .*00010803"),
        (b"\0\0\x0a\3" + GOOD[4:], "wrong magic number"),
        (b"\0\0\x08\0" + GOOD[4:], "wrong magic number"),
        (b"GIF89a" + GOOD, "wrong magic number"),
        (GOOD[:9], "truncated: the header of 3 axes"),
        (GOOD[:-1], "truncated or its header is corrupt: it claims 24 bytes"),
        (GOOD + b"\0", "trailing bytes after the 24"),
        (b"\0\0\x08\3" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1) + GOOD[16:], "can hold at most 24"),
    ],
)
def test_refuses_damage(tmp_path: Path, content: bytes, message: str) -> None:
    path = damaged(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD, "is not a gzip file"),
        (b"", "is not a gzip file"),
        (gzip.compress(GOOD, mtime=0)[:-9], "truncated"),
        (gzip.compress(GOOD, mtime=0)[:14], "truncated"),
        (gzip.compress(GOOD[:-1], mtime=0), "truncated: shape .* needs 24 bytes, 23 are there"),
        (gzip.compress(GOOD + b"x", mtime=0), "trailing bytes"),
        (gzip.compress(GOOD, mtime=0) + b"rubbish", "corrupt gzip"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "corrupt gzip: CRC"),
        (b"\x1f\x8b\x08\0" + bytes(6) + b"\xff" * 20, "corrupt gzip"),
    ],
)
def test_refuses_damaged_gzip(tmp_path: Path, content: bytes, message: str) -> None:
    path = damaged(tmp_path, content, "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert caught.value.where == str(path)


@given(position=st.integers(0, 1), data=st.data())
@settings(deadline=None, max_examples=80)
def test_any_flipped_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, data: st.DataObject
) -> None:
    """Nothing but ``DataError`` ever comes out of a damaged file, and it names the file."""
    content = bytearray(GOOD if position else gzip.compress(GOOD, mtime=0))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = damaged(tmp_path_factory.mktemp("idx"), bytes(content))
    refused = None
    try:
        read_idx(path)
    except DataError as error:
        refused = error
    assert refused is None or refused.where == str(path)


def test_an_absurd_header_allocates_nothing(tmp_path: Path) -> None:
    claims = b"\0\0\x08\3" + struct.pack(">III", 60_000, 1_000, 1_000)
    path = damaged(tmp_path, gzip.compress(claims + bytes(100), mtime=0), "x.gz")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="claims 60,000,000,000 bytes"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_refuses_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: cannot be read"):
        read_idx(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_refuses_an_unreadable_file(tmp_path: Path) -> None:
    path = damaged(tmp_path, GOOD)
    path.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        read_idx(path)


@pytest.mark.parametrize("options", [{}, {"zipped": False}, {"test_name": "test"}, {"prefix": "emnist-letters-"}])
def test_loads_a_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    train, test = small_set(0), small_set(1, 12)
    dataset = load_dataset("idx", folder=write_folder(tmp_path / "letters", train, test, **options))
    np.testing.assert_array_equal(dataset.train_features, train[0][..., None])
    np.testing.assert_array_equal(dataset.test_labels, test[1])
    assert dataset.train_features.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32
    assert (dataset.name, dataset.classes) == ("letters", 4)


def test_names_with_a_dot_are_read_as_well(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, small_set(), small_set(), zipped=False)
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load_dataset(f"idx:{folder}").train_labels) == 40


def test_the_plain_file_wins_over_its_copy(tmp_path: Path) -> None:
    write_folder(tmp_path, small_set(), small_set())
    write_folder(tmp_path, small_set(), small_set(), zipped=False)
    assert find_files(tmp_path).train_images.name == "train-images-idx3-ubyte"


def test_one_set_of_several_in_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, small_set(0), small_set(1), prefix="emnist-letters-")
    write_folder(tmp_path, small_set(2), small_set(3), prefix="emnist-digits-")
    with pytest.raises(
        DataError, match=r"several files of train images .*emnist-digits-train.*emnist-letters-train"
    ):
        load_dataset("idx", folder=tmp_path)
    dataset = load_dataset("idx", folder=tmp_path / "emnist-digits")
    assert dataset.name == "emnist-digits"
    np.testing.assert_array_equal(dataset.train_features[..., 0], small_set(2)[0])
    with pytest.raises(DataError, match=r"emnist-balanced: no file of train images"):
        load_dataset("idx", folder=tmp_path / "emnist-balanced")


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no/where: no such folder of IDX files; looked for \*train-images-idx3"):
        load_dataset("idx", folder=tmp_path / "no" / "where")
    write_folder(tmp_path, small_set(), small_set())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"no file of test labels here; looked for \*t10k-labels-idx1-ubyte\[.gz\]"
    ):
        load_dataset("idx", folder=tmp_path)


def test_colour_images_keep_their_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(8, dtype=np.uint8) % 2
    folder = write_folder(tmp_path, (images, labels), (images, labels))
    assert build_population(load_dataset("idx", folder=folder), "iid", 2).input_shape == (4, 4, 3)


@pytest.mark.parametrize("code", ["i2", "i4"])
def test_integers_of_other_widths_are_levels_of_a_byte(tmp_path: Path, code: str) -> None:
    images, labels = small_set()
    folder = write_folder(tmp_path, (images.astype(code), labels), (images, labels))
    dataset = load_dataset("idx", folder=folder)
    assert dataset.train_features.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train_features[..., 0], images)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (small_set()[0].astype("i2") - 1, small_set()[1], r"train-images.*integer pixels are 0 to 255 \(got -1\)"),
        (small_set()[0].astype("i4") * 2, small_set()[1], r"train-images.*integer pixels are 0 to 255 \(got 5"),
        (small_set()[0], small_set()[1][:-1], "train-labels.*39 labels for the 40 images of train-images"),
        (small_set()[0], small_set()[1].astype("f4") + np.float32(0.5), "train-labels.*whole numbers"),
        (small_set()[0], np.full(40, np.nan, "f4"), r"train-labels.*whole numbers \(got nan\)"),
        (small_set()[0][:, 0], small_set()[1], "train-images.*images have 3 axes"),
        (small_set()[0][:0], small_set()[1][:0], "train-images.*the dataset is empty"),
    ],
)
def test_refuses_what_is_no_set_of_images(tmp_path: Path, images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset("idx", folder=write_folder(tmp_path, (images, labels), small_set()))


@pytest.mark.parametrize("code", ["f4", "f8"])
def test_a_client_with_nan_pixels_is_refused(tmp_path: Path, code: str) -> None:
    images, labels = small_set()
    floats = (images / 255).astype(code)
    folder = write_folder(tmp_path / "good", (floats, labels), (images / 255, labels))
    good = build_population(load_dataset("idx", folder=folder), "sequential", 4)
    np.testing.assert_allclose(good.client(0)[0][..., 0], images[:10] / 255, rtol=1e-6)
    floats[12, 0, 0] = floats[17, 1, 1] = np.nan
    folder = write_folder(tmp_path / "bad", (floats, labels), (images / 255, labels))
    with pytest.raises(DataError, match="bad: client 1 has 2 examples with pixels that are not finite"):
        build_population(load_dataset("idx", folder=folder), "sequential", 4)


def test_a_double_beyond_single_precision_is_not_finite_either(tmp_path: Path) -> None:
    images = np.full((4, 2, 2), 0.5)
    images[3, 0, 0] = 1e300
    labels = np.arange(4, dtype=np.uint8)
    folder = write_folder(tmp_path, (images, labels), (images[:2], labels[:2]))
    with pytest.raises(DataError, match="client 1 has 1 example with pixels that are not finite"):
        build_population(load_dataset("idx", folder=folder), "sequential", 2)


def test_the_folder_is_named_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, small_set(), small_set())
    assert load_dataset(f"idx:{folder}", folder=str(folder)).classes == 4
    with pytest.raises(SettingError, match=r"data.folder: contradicts data.source"):
        load_dataset(f"idx:{folder}", folder="/elsewhere")
    with pytest.raises(SettingError, match=r"data.folder: is missing"):
        load_dataset("idx")


@pytest.mark.skipif(
    "FASHION_MNIST" not in os.environ, reason="FASHION_MNIST does not name the folder of its IDX files"
)
def test_fashion_mnist_as_the_article_splits_it() -> None:
    """Sizes and balance after Xiao, Rasul & Vollgraf (2017, https://arxiv.org/abs/1708.07747)."""
    dataset = load_dataset("idx", folder=os.environ["FASHION_MNIST"])
    population = build_population(dataset, "sequential", 10)
    assert population.sizes.tolist() == [6000] * 10
    assert population.input_shape == (28, 28, 1)
    assert np.bincount(population.labels).tolist() == [6000] * 10
    assert np.bincount(population.test_labels).tolist() == [1000] * 10
    np.testing.assert_array_equal(population.client(3)[1], dataset.train_labels[18000:24000])
