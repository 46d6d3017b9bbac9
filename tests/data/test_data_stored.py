"""Populations in folders: what comes back, what is refused, and that a large one stays on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.data import (
    Population,
    build_population,
    load_dataset,
    open_population,
    save_population,
)
from privfed.errors import DataError, OutputError


def people(kind: type = np.float32, tokens: int | None = None) -> Population:
    rng = np.random.default_rng(0)
    shape = (5,) if tokens else (3, 2, 1)
    values = rng.integers(0, tokens or 256, (12, *shape)) if kind is np.uint8 else rng.random((12, *shape))
    return Population(
        features=values[:8].astype(kind),
        labels=np.arange(8, dtype=np.int32) % 3,
        offsets=np.array([0, 3, 3, 8]),
        test_features=values[8:].astype(kind),
        test_labels=np.arange(4, dtype=np.int32) % 3,
        name="some people",
        classes=3,
        tokens=tokens,
    )


@pytest.mark.parametrize(("kind", "tokens"), [(np.float32, None), (np.uint8, None), (np.uint8, 9)])
def test_what_was_saved_comes_back(tmp_path: Path, kind: type, tokens: int | None) -> None:
    saved = people(kind, tokens)
    save_population(saved, tmp_path / "a" / "b")
    again = open_population(tmp_path / "a" / "b")
    assert again.fingerprint == saved.fingerprint
    assert (again.name, again.classes, again.tokens) == (saved.name, saved.classes, saved.tokens)
    for c in range(saved.clients):
        for got, expected in zip(again.client(c), saved.client(c), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_the_files_are_plain_numpy(tmp_path: Path) -> None:
    saved = people()
    save_population(saved, tmp_path)
    for name in ("features", "labels", "offsets", "test_features", "test_labels"):
        stored = np.load(tmp_path / f"{name}.npy")
        assert stored.dtype == getattr(saved, name).dtype
        np.testing.assert_array_equal(stored, getattr(saved, name))


def test_the_source_gives_all_clients_without_a_copy_and_some_with_one(tmp_path: Path) -> None:
    saved = people()
    save_population(saved, tmp_path)
    dataset = load_dataset(f"npy:{tmp_path}")
    everybody = build_population(dataset, "natural")
    assert everybody.fingerprint == saved.fingerprint
    assert np.shares_memory(everybody.features, dataset.train_features)
    some = build_population(dataset, "natural", 2, seed=1)
    assert some.clients == 2
    assert build_population(dataset, "iid", 4).clients == 4


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        save_population(people(), tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        save_population(people(), tmp_path / "mine" / "below")


def broken(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    if content is None:
        path.unlink()
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, dict):
        path.write_text(json.dumps({"format": "privfed.Population/1", "name": "x", "classes": 3} | content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("features.npy", None, "features.npy: cannot be read"),
        ("features.npy", b"", "features.npy: cannot be read"),
        ("features.npy", b"\x93NUMPY\x01", "features.npy: cannot be read"),
        ("features.npy", np.array([None] * 8), "features.npy: cannot be read"),
        ("features.npy", np.asfortranarray(np.zeros((8, 3, 2, 1), np.float32)), "Fortran order"),
        ("features.npy", np.zeros((8, 3, 2, 1), ">f4"), "uint8 or float32"),
        ("features.npy", np.full((8, 3, 2, 1), np.nan, np.float32), "client 0 has 3 examples.*not finite"),
        ("features.npy", np.zeros((7, 3, 2, 1), np.float32), "7 training examples and 8 training labels"),
        ("labels.npy", np.arange(8, dtype=np.int32), "client 2 has 5 examples with labels outside"),
        ("offsets.npy", np.array([0, 5, 3, 8]), "offsets fall after client 1"),
        ("population.json", None, "population.json: cannot be read.*save_population"),
        ("population.json", b"{", "population.json: cannot be read"),
        ("population.json", b"[]", "is not of the format"),
        ("population.json", {"format": "other"}, "is not of the format"),
        ("population.json", {"classes": "3"}, "'classes' is missing, unknown, or of the wrong type"),
        ("population.json", {"clases": 3}, "'clases' is missing, unknown"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    save_population(people(), tmp_path)
    broken(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        open_population(tmp_path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    save_population(people(), tmp_path)
    path = tmp_path / "features.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"features\.npy: cannot be read"):
        open_population(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_population(tmp_path / "none")


def test_a_million_clients_stay_on_disk(tmp_path: Path) -> None:
    """157 MB of features, sparse on disk, read for check and fingerprint; 60 MB would mean that pages stayed."""
    clients = 1_000_000
    rows = 200_000
    features = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, (rows, 196))
    features[-1] = 1
    del features
    np.save(tmp_path / "labels.npy", np.zeros(rows, np.int32))
    np.save(tmp_path / "offsets.npy", np.arange(clients + 1) * rows // clients)
    np.save(tmp_path / "test_features.npy", np.zeros((2, 196), np.float32))
    np.save(tmp_path / "test_labels.npy", np.zeros(2, np.int32))
    broken(tmp_path, "population.json", {})
    # Resident pages of a mapped file count for the process; the peak would also count those already let go of.
    program = f"""
import pathlib, psutil
from privfed.data import open_population
process = psutil.Process()
before = process.memory_info().rss
population = open_population(pathlib.Path({str(tmp_path)!r}))
population.fingerprint
assert population.client({clients - 1})[0].shape == (1, 196)
print(population.clients, process.memory_info().rss - before)
"""
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, grown = map(int, got.stdout.split())
    assert found == clients
    assert grown < 60e6
