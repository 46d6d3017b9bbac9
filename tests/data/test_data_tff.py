"""TFF's simulation sets: those it bundles, and databases in the layout of those it downloads."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_data_sources import check_contract

from privfed.data import build_population, load_dataset, transform
from privfed.data.text import CHARACTERS, SPECIAL
from privfed.errors import DataError, SettingError

pytestmark = pytest.mark.slow  # TFF takes 4 s to import

Split = Mapping[str, Iterable[Mapping[str, Any]]]


def write_database(path: Path, splits: Mapping[str, Split]) -> None:
    """As ``tff.simulation.datasets.SqlClientData`` describes its two tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
    connection.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
    for split, clients in splits.items():
        for client, examples in clients.items():
            rows = [(split, client, serialized(example)) for example in examples]
            connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
            connection.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (client, split, len(rows)))
    connection.commit()
    connection.close()


def serialized(example: Mapping[str, Any]) -> bytes:
    features = {}
    for key, value in example.items():
        if isinstance(value, bytes):
            features[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        elif np.asarray(value).dtype.kind == "f":
            features[key] = tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(value)))
        else:
            features[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(value)))
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def digits(*labels: int, levels: int = 255) -> list[dict[str, Any]]:
    """Images that hold their label's level in every pixel."""
    return [{"pixels": np.full((28, 28), label / levels, np.float32), "label": label} for label in labels]


def emnist(cache: Path, **changes: Any) -> Path:
    train = {"w3": digits(1, 2, 3), "w1": digits(0), "w2": digits(4, 5)}
    test = {"w1": digits(6), "w2": digits(7), "w3": digits(8, 9)}
    splits = {"digits_only_train": train, "digits_only_test": test, "all_train": train, "all_test": test}
    write_database(cache / "emnist_all.sqlite", splits | changes)
    return cache


@pytest.mark.parametrize(
    ("name", "clients", "examples", "shape", "classes"),
    [
        ("emnist", 2, 20, (28, 28, 1), 10),
        ("cifar100", 2, 10, (32, 32, 3), 100),
        ("shakespeare", 3, 263, (20,), 100),
        ("stackoverflow", 3, 83, (20,), 64),
    ],
)
def test_bundled_sets_keep_their_clients(
    name: str, clients: int, examples: int, shape: tuple[int, ...], classes: int
) -> None:
    """Numbers of clients and images as TFF documents them; windows are one for each token and each text's end."""
    dataset = load_dataset(f"tff:{name}_synthetic")
    people = build_population(dataset, "natural")
    assert (people.clients, len(people.labels), people.input_shape, people.classes) == (
        clients,
        examples,
        shape,
        classes,
    )
    if len(shape) == 3:
        check_contract(dataset)
    else:
        assert dataset.tokens == classes
        assert transform(people, "one_hot").input_shape == (20 * classes,)


def test_bundled_text_reads_as_it_was_written() -> None:
    """Ids sort as CHARACTERS do; THE_TAMING_OF_THE_SHREW_CUPID has one line and comes second."""
    people = build_population(load_dataset("tff:shakespeare_synthetic", sequence_length=3), "natural")
    features, labels = people.client(1)
    assert "".join(CHARACTERS[i - SPECIAL] for i in labels[:-1]) == "Hail to thee, worthy Timon, and to all"
    before = np.rint(features[4] * 255).astype(int)
    assert "".join(CHARACTERS[i - SPECIAL] for i in before) == "ail"


def test_a_cached_database_gives_clients_in_order_of_their_ids(tmp_path: Path) -> None:
    dataset = load_dataset("tff:emnist", data_dir=emnist(tmp_path))
    people = build_population(dataset, "natural")
    assert people.sizes.tolist() == [1, 2, 3]
    assert people.labels.tolist() == [0, 4, 5, 1, 2, 3]
    assert people.features.dtype == np.uint8
    np.testing.assert_array_equal(people.features[:, 3, 4, 0], people.labels)
    assert people.test_labels.tolist() == [6, 7, 8, 9]
    assert load_dataset("tff:emnist_all", data_dir=tmp_path).classes == 62


def test_only_the_clients_that_will_be_drawn_are_read(tmp_path: Path) -> None:
    cache = emnist(tmp_path)
    whole = load_dataset("tff:emnist", data_dir=cache)
    for seed in range(4):
        some = load_dataset("tff:emnist", data_dir=cache, natural_clients=2, seed=seed)
        one, other = build_population(some, "natural", 2, seed), build_population(whole, "natural", 2, seed)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.offsets, other.offsets)
        assert len(one.test_labels) < 4
    with pytest.raises(SettingError, match=r"data\.clients: there are more clients than the 3"):
        load_dataset("tff:emnist", data_dir=cache, natural_clients=4)


def test_pixels_that_are_no_bytes_stay_floats(tmp_path: Path) -> None:
    cache = emnist(tmp_path, digits_only_train={"w1": digits(1, levels=9), "w2": digits(2)})
    dataset = load_dataset("tff:emnist", data_dir=cache)
    assert dataset.train_features.dtype == dataset.test_features.dtype == np.float32
    np.testing.assert_allclose(dataset.train_features[:, 0, 0, 0], [1 / 9, 2 / 255], rtol=1e-6)
    np.testing.assert_allclose(dataset.test_features[:, 0, 0, 0], [6 / 255, 7 / 255], rtol=1e-6)


def test_the_test_set_of_cifar100_is_nobodys(tmp_path: Path) -> None:
    def image(label: int) -> dict[str, Any]:
        return {"image": np.full((32, 32, 3), label), "label": label, "coarse_label": 0}

    train = {"0": [image(5)], "1": [image(6)], "2": [image(7)]}
    write_database(tmp_path / "cifar100.sqlite", {"train": train, "test": {"0": [image(8)], "1": [image(9)]}})
    dataset = load_dataset("tff:cifar100", data_dir=tmp_path, natural_clients=1)
    assert len(dataset.train_labels) == 1
    assert dataset.test_labels.tolist() == [8, 9]
    assert dataset.train_features.dtype == np.uint8


def post(text: bytes) -> dict[str, Any]:
    return {"creation_date": b"", "score": 0, "tags": b"", "title": b"", "tokens": text, "type": b""}


def test_stack_overflow_needs_a_number_of_clients_and_word_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_federated as tff

    with pytest.raises(SettingError, match=r"data\.clients: is missing: tff:stackoverflow has 342,477 clients"):
        load_dataset("tff:stackoverflow", data_dir=tmp_path)
    train = {"u1": [post(b"the cat"), post(b"the dog")], "u2": [post(b"a")]}
    splits = {"train": train, "heldout": {"u9": [post(b"the")]}, "test": {"u1": [post(b"cat")]}}
    write_database(tmp_path / "stackoverflow.sqlite", splits)
    unreachable(monkeypatch)
    with pytest.raises(DataError, match=r"holds stackoverflow\.sqlite and datasets/stackoverflow\.word_count"):
        load_dataset("tff:stackoverflow", data_dir=tmp_path, natural_clients=2)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "stackoverflow.word_count.tar.bz2").write_bytes(b"")
    counts = {"the": 3, "cat": 2}
    monkeypatch.setattr(tff.simulation.datasets.stackoverflow, "load_word_counts", lambda *_: counts)
    dataset = load_dataset("tff:stackoverflow", data_dir=tmp_path, natural_clients=2, sequence_length=2)
    assert dataset.train_labels.tolist() == [4, 5, 3, 4, 1, 3, 1, 3]
    assert dataset.train_features[:3].tolist() == [[0, 2], [2, 4], [4, 5]]
    assert dataset.test_labels.tolist() == [5, 3]
    assert dataset.tokens == dataset.classes == 6


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.data.tff_sets.why_unreachable", lambda url: "no route")


@pytest.mark.parametrize("name", ["emnist", "emnist_all", "cifar100", "shakespeare"])
def test_without_a_network_one_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    unreachable(monkeypatch)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_dataset(f"tff:{name}", data_dir=tmp_path / "cache")
    assert time.monotonic() - started < 5
    said = str(caught.value)
    for part in (f"tff:{name}", str(tmp_path / "cache"), "no route", "data.data_dir", "_synthetic"):
        assert part in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_federated as tff

    def cut_off(cache_dir: str, **_: Any) -> None:
        (Path(cache_dir) / "shakespeare.sqlite").write_bytes(b"SQLite")
        raise TimeoutError("timed out")

    monkeypatch.setattr("privfed.data.tff_sets.why_unreachable", lambda url: "")
    monkeypatch.setattr(tff.simulation.datasets.shakespeare, "load_data", cut_off)
    with pytest.raises(DataError, match="cannot be downloaded: TimeoutError: timed out"):
        load_dataset("tff:shakespeare", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_federated as tff

    original = tff.simulation.datasets.shakespeare.load_data
    line = [{"snippets": b"Hark!"}]

    def download(cache_dir: str, **_: Any) -> Any:
        path = Path(cache_dir) / "shakespeare.sqlite"
        if not path.is_file():
            write_database(path, {"train": {"a": line}, "test": {"a": line}})
        return original(cache_dir=cache_dir)

    monkeypatch.setattr("privfed.data.tff_sets.why_unreachable", lambda url: "")
    monkeypatch.setattr(tff.simulation.datasets.shakespeare, "load_data", download)
    assert len(load_dataset("tff:shakespeare", data_dir=tmp_path).train_labels) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["shakespeare.sqlite"]


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_a_damaged_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "emnist_all.sqlite").write_bytes(content)
    with pytest.raises(DataError, match=r"emnist_all\.sqlite: the simulation set emnist is damaged: .*Remove"):
        load_dataset("tff:emnist", data_dir=tmp_path)


def test_records_that_are_damaged_are_refused(tmp_path: Path) -> None:
    emnist(tmp_path, digits_only_train={"w1": [{"label": 1}]})
    with pytest.raises(DataError, match="the simulation set emnist is damaged"):
        load_dataset("tff:emnist", data_dir=tmp_path)


def test_clients_without_a_test_example_are_refused(tmp_path: Path) -> None:
    emnist(tmp_path, digits_only_test={"w9": digits(1)})
    with pytest.raises(DataError, match="no test example"):
        load_dataset("tff:emnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["", "mnist", "emnist_all_synthetic", "_synthetic"])
def test_an_unknown_set_lists_the_known_ones(name: str) -> None:
    with pytest.raises(SettingError, match=r"names no simulation set .*Known: emnist, .*stackoverflow_synthetic"):
        load_dataset(f"tff:{name}")


def test_windows_have_at_least_one_token() -> None:
    with pytest.raises(SettingError, match=r"data\.sequence_length"):
        load_dataset("tff:shakespeare_synthetic", sequence_length=0)
