"""Datasets that were damaged on the disk: each is refused in one line, or says something else and is taken.

Formats without a checksum cannot tell a changed pixel. So what is asked of a mutant that is taken is that it is a
population like any other; and of one that is refused, one line and exit code 2, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from idx_writer import small_set, write_folder
from mutants import Commands, mutated_bytes

from privfed.composition import compose
from privfed.data.population import Population
from privfed.data.stored import save_population

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REFUSALS = 150
"""Of each format."""
EXPERIMENT = """
name = "damaged"
[data]
source = "{source}"
{more}
[model]
name = "softmax"
[training]
rounds = 1
batch_size = 8
learning_rate = 0.1
[cohort]
sampling = "all"
[privacy]
mechanism = "none"
[secure_aggregation]
mode = "off"
"""


def idx(folder: Path) -> str:
    write_folder(folder, small_set(1), small_set(2, 12), zipped=False)
    return f"idx:{folder}"


def zipped_idx(folder: Path) -> str:
    write_folder(folder, small_set(1), small_set(2, 12))
    return f"idx:{folder}"


def npz(folder: Path) -> str:
    images, labels = small_set(3)
    np.savez(folder / "set.npz", x=images, y=labels, client=np.arange(len(labels)) % 5)
    return f"npz:{folder / 'set.npz'}"


def compressed_npz(folder: Path) -> str:
    images, labels = small_set(3)
    np.savez_compressed(folder / "set.npz", x=images, y=labels, client=np.arange(len(labels)) % 5)
    return f"npz:{folder / 'set.npz'}"


def parquet(folder: Path) -> str:
    images, labels = small_set(4)
    columns = {"x": pa.array(list(images.reshape(len(images), -1))), "label": labels, "client": labels % 3}
    pyarrow.parquet.write_table(pa.table(columns), folder / "set.parquet")
    return f"parquet:{folder / 'set.parquet'}"


def npy(folder: Path) -> str:
    (images, labels), (test_images, test_labels) = small_set(5), small_set(6, 12)
    population = Population(
        features=images[..., None],
        labels=labels.astype(np.int32),
        offsets=np.arange(0, 41, 8),
        test_features=test_images[..., None],
        test_labels=test_labels.astype(np.int32),
        name="stored",
        classes=4,
    )
    save_population(population, folder / "set")
    return f"npy:{folder / 'set'}"


@pytest.mark.parametrize("write", [idx, zipped_idx, npz, compressed_npz, parquet, npy])
def test_damaged_datasets(
    write: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record_property: Any,
) -> None:
    populations: list[Population] = []

    def only_composed(settings: Any, out: Path, console: Any) -> dict[str, Any]:
        populations.append(compose(settings).population)
        return {"statements": []}

    monkeypatch.setattr("privfed.runs.run_training", only_composed)
    command, folder, path = Commands(monkeypatch, capsys), tmp_path / "data", tmp_path / "damaged.toml"
    folder.mkdir()
    source = write(folder)
    more = 'clients = 5\npartition = "iid"' if source.startswith("idx") else ""
    path.write_text(EXPERIMENT.format(source=source, more=more), encoding="utf-8")
    command(b"", "train", path, "--out", tmp_path / "run")
    assert command.taken == 1
    rng, files = np.random.default_rng(2026), sorted(p for p in folder.rglob("*") if p.is_file())
    for _ in range(20 * REFUSALS):
        if command.refused == REFUSALS:
            break
        file = files[int(rng.integers(len(files)))]
        whole = file.read_bytes()
        # By turns anywhere, and in the header, where the numbers are that a reader believes.
        head = int(rng.choice([len(whole), min(len(whole), 128)]))
        file.unlink()  # a name of its own: what is mapped meanwhile keeps its bytes
        file.write_bytes(mutant := mutated_bytes(whole[:head], rng) + whole[head:])
        command(mutant, "train", path, "--out", tmp_path / "run")
        file.unlink()
        file.write_bytes(whole)
    assert command.refused == REFUSALS
    for population in populations:
        assert np.isfinite(population.features).all()
        assert 0 <= population.labels.min(initial=0) <= population.labels.max(initial=0) < population.classes
        assert (np.diff(population.offsets) >= 0).all()
        assert population.offsets[-1] == len(population.labels) == len(population.features)
    record_property(
        "says", f"{command.refused} damaged {write.__name__} refused in one line, {command.taken} taken"
    )
