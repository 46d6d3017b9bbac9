"""NumPy archives and Parquet files with a client column: what they give and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from privfed.data import build_population, load_dataset
from privfed.data.tables import Table, by_client
from privfed.errors import DataError, SettingError

N, CLASSES = 30, 3
RNG = np.random.default_rng(0)
OWNERS = np.array(["ann", "bob", "cy"])[RNG.integers(0, 3, N)]


def arrays(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "x": np.random.default_rng(1).random((N, 4)),
        "y": np.arange(N) % CLASSES,
        "client": OWNERS,
        "x_test": np.random.default_rng(2).random((5, 4)),
        "y_test": np.arange(5) % CLASSES,
    }
    made |= changes
    return {name: value for name, value in made.items() if value is not None}


def npz(folder: Path, **changes: Any) -> Path:
    path = folder / "people.npz"
    np.savez(path, **arrays(**changes))
    return path


def changed(row: int, value: float) -> np.ndarray[Any, Any]:
    x = arrays()["x"]
    x[row, 2] = value
    return x


def table(folder: Path, **columns: Any) -> Path:
    path = folder / "people.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def lists(values: np.ndarray[Any, Any]) -> pa.Array:
    """Nested lists, of whatever depth the array has."""
    return pa.array(values.tolist())


def test_an_archive_gives_every_client_its_rows_in_order(tmp_path: Path) -> None:
    made = arrays()
    dataset = load_dataset(f"npz:{npz(tmp_path)}")
    people = build_population(dataset, "natural")
    assert (people.clients, people.classes, people.name) == (3, 3, "people")
    for c, name in enumerate(["ann", "bob", "cy"]):
        features, labels = people.client(c)
        np.testing.assert_array_equal(features, made["x"][made["client"] == name].astype(np.float32))
        np.testing.assert_array_equal(labels, made["y"][made["client"] == name])
    np.testing.assert_array_equal(people.test_labels, made["y_test"])


def test_without_a_test_set_part_of_each_class_is_held_out_of_all(tmp_path: Path) -> None:
    x = np.arange(N, dtype=np.uint8)[:, np.newaxis]
    path = npz(tmp_path, x=x, client=np.arange(N) // 5, x_test=None, y_test=None)
    dataset = load_dataset(f"npz:{path}", test_fraction=0.3)
    together = np.concatenate([dataset.train_features, dataset.test_features])[:, 0]
    assert sorted(together.tolist()) == list(range(N))
    assert np.bincount(dataset.test_labels).tolist() == [3, 3, 3]
    people = build_population(dataset, "natural")
    for c in range(6):
        rows = people.features[people.offsets[c] : people.offsets[c + 1], 0]
        assert (rows // 5 == c).all()
        assert (np.diff(rows.astype(int)) > 0).all()


@given(owners=st.lists(st.integers(-3, 3), min_size=4, max_size=25))
@settings(deadline=None, max_examples=50)
def test_groups_like_a_dictionary_of_lists(owners: list[int]) -> None:
    rows = np.arange(len(owners), dtype=np.uint8)[:, np.newaxis]
    labels = np.zeros(len(owners), np.int32)
    made = by_client(Table(rows, labels, np.array(owners)), (rows[:1], labels[:1]), 0.5, "x", "x")
    twin: dict[int, list[int]] = {}
    for row, owner in enumerate(owners):
        twin.setdefault(owner, []).append(row)
    assert made.train_offsets is not None
    got = [part[:, 0].tolist() for part in np.split(made.train_features, made.train_offsets[1:-1])]
    assert got == [twin[owner] for owner in sorted(twin)]


@pytest.mark.parametrize("shape", [(4,), (3, 2), (3, 2, 3)])
def test_bytes_and_images_keep_their_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).integers(0, 256, (N, *shape), dtype=np.uint8)
    expected = (3, 2, 1) if len(shape) == 2 else shape
    from_npz = load_dataset(f"npz:{npz(tmp_path, x=x, x_test=x[:5])}")
    path = table(tmp_path, pixels=lists(x).cast(nested(len(shape))), label=np.arange(N) % 3, client=OWNERS)
    from_parquet = load_dataset(f"parquet:{path}")
    for dataset in (from_npz, from_parquet):
        assert dataset.train_features.dtype == np.uint8
        assert dataset.train_features.shape[1:] == expected
    together = np.concatenate([from_parquet.train_features, from_parquet.test_features]).reshape(N, -1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, x.reshape(N, -1).tolist()))


def nested(depth: int) -> pa.DataType:
    kind = pa.uint8()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def test_numeric_columns_are_features_in_the_files_order(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).random((2, N))
    path = table(
        tmp_path,
        b=b,
        who=OWNERS,
        yes=np.arange(N) % 2 == 0,
        target=np.arange(N) % 3,
        a=a,
        split=["test" if i >= 25 else "train" for i in range(N)],
    )
    dataset = load_dataset(f"parquet:{path}", label_column="target", client_column="who")
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (25, 5)
    expected = np.stack([b, np.arange(N) % 2 == 0, a], axis=1).astype(np.float32)
    np.testing.assert_array_equal(dataset.test_features, expected[25:])
    np.testing.assert_array_equal(dataset.train_features, expected[:25][np.argsort(OWNERS[:25], kind="stable")])


def test_fixed_size_lists_and_chunks_are_one_array(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((N, 3)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    path = tmp_path / "people.parquet"
    made = pa.table({"x": column, "label": np.zeros(N, int), "client": pa.array(OWNERS).dictionary_encode()})
    parquet.write_table(pa.concat_tables([made, made]), path, row_group_size=7)
    people = build_population(load_dataset(f"parquet:{path}", test_fraction=0.5), "natural")
    assert people.input_shape == (3,)
    assert people.clients == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": changed(7, np.nan)}, rf"row 7 \(client {OWNERS[7]}\) has a feature that is not finite \(got nan\)"),
        ({"x": changed(9, -np.inf)}, rf"row 9 \(client {OWNERS[9]}\).*not finite \(got -inf\)"),
        (
            {"x": changed(8, 1.5)},
            rf"row 8 \(client {OWNERS[8]}\) has a feature outside \[0, 1\] \(got 1.5\).*public",
        ),
        ({"x": np.zeros((N - 1, 4))}, "there are 29 rows of features and 30 of label"),
        ({"client": OWNERS[1:]}, "there are 30 rows of features and 29 of client"),
        ({"y_test": np.zeros(4, int)}, "there are 5 rows of x_test and 4 of y_test"),
        ({"x": np.zeros((N, 4), np.int64)}, r"uint8.*or floats in \[0, 1\] \(got 'int64'\)"),
        ({"x": np.zeros(N)}, r"features are \[n, d\], or images"),
        ({"x": np.full((N, 4), "a")}, "pixels are numbers"),
        ({"y": np.arange(N) % 3 - 1}, rf"row 0 \(client {OWNERS[0]}\) is below \(got -1\)"),
        ({"y": np.arange(N) + 0.5}, "labels are whole numbers"),
        ({"y": np.full(N, 10**6)}, "labels are class numbers from 0, and there are only 35 examples"),
        ({"client": np.linspace(0, 1, N)}, "client ids are one whole number or text"),
        ({"x": None}, "holds x, y and client"),
        ({"x_test": None}, "or neither of them"),
        ({"z": np.zeros(3)}, r"neither of them \(got .*'z'"),
        ({"client": np.array([*OWNERS[1:], None], object)}, "without pickled objects"),
        (
            {"x": np.zeros((0, 4)), "y": np.zeros(0), "client": np.zeros(0, int)},
            "the dataset is empty",
        ),
        ({"x_test": changed(0, np.nan)[:5]}, "the test set has 1 example with pixels that are not finite"),
    ],
)
def test_an_archive_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = npz(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        build_population(load_dataset(f"npz:{path}"), "natural")
    assert "people" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    for path in (npz(tmp_path), table(tmp_path, a=np.zeros(N), label=np.zeros(N, int), client=OWNERS)):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DataError, match="cannot be read"):
            load_dataset(f"{path.suffix[1:]}:{path}")


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match="is one array"):
        load_dataset(f"npz:{tmp_path / 'x.npy'}")


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_missing_file_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_dataset(f"{kind}:{tmp_path}")
    with pytest.raises(SettingError, match=f"{kind} needs a file. Write {kind}:FILE"):
        load_dataset(kind)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"client": None}, "there is no column 'client'.*client_column"),
        ({"label": None}, "there is no column 'label'.*label_column"),
        ({"a": None}, "there is no feature column"),
        ({"a": [None, *[0.5] * (N - 1)]}, "column 'a' has an empty cell in row 0"),
        ({"client": [*OWNERS[1:].tolist(), None]}, "column 'client' has an empty cell in row 29"),
        ({"a": ["x"] * N}, "feature column 'a' holds numbers"),
        ({"a": [[0.5, 0.5]] * 4 + [[0.5]] * (N - 4)}, "lists of one length, and row 4 differs"),
        ({"a": [[[0.5], [None]]] * N}, "column 'a' has an empty cell in row 0"),
        ({"a": [[0.5]] * N, "b": np.zeros(N)}, "one column of lists, or many columns of numbers"),
        ({"b": np.zeros(N, np.uint8)}, "all bytes, or all floats.*'b' differs"),
        ({"a": np.arange(N)}, r"or floats in \[0, 1\] \(got 'int64'\)"),
        ({"a": [{"b": 1}] * N}, "holds numbers, lists of them, or text"),
        (
            {"a": np.where(np.arange(N) == 3, np.nan, 0.5)},
            r"row 3 \(client \w+\) has a feature that is not finite",
        ),
        ({"label": ["cat"] * N}, "labels are whole numbers|class numbers"),
        ({"split": ["train"] * (N - 1) + ["valid"]}, "'train' or 'test' .got 'valid'"),
        ({"split": ["train"] * N}, "holds no test example"),
    ],
)
def test_a_parquet_file_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"a": np.full(N, 0.5), "label": np.arange(N) % 3, "client": OWNERS}
    path = table(tmp_path, **{name: value for name, value in (good | columns).items() if value is not None})
    with pytest.raises(DataError, match=message):
        build_population(load_dataset(f"parquet:{path}"), "natural")


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    empty = pa.table({"a": pa.array([], pa.list_(pa.float32())), "label": pa.array([], pa.int64()), "client": []})
    path = tmp_path / "people.parquet"
    parquet.write_table(empty.set_column(2, "client", pa.array([], pa.int64())), path)
    with pytest.raises(DataError, match="empty"):
        load_dataset(f"parquet:{path}")
