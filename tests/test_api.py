"""The Python interface, as its documentation shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.api import Population, Run, load_population, train
from privfed.errors import PrivFedError

TABLES: dict[str, Any] = {
    "training": {"rounds": 3, "local_epochs": 2, "batch_size": 4, "learning_rate": 0.5},
    "cohort": {"sampling": "poisson", "rate": 0.2},
    "privacy": {"mechanism": "gaussian", "clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-4},
}


@pytest.fixture(scope="module")
def population() -> Population:
    return load_population("digits", clients=100)


@pytest.fixture(scope="module")
def run(population: Population) -> Run:
    return train(population, "softmax", **TABLES)


def test_metrics_are_a_table_by_round(run: Run) -> None:
    assert list(run.metrics.index) == [1, 2, 3]
    assert run.metrics["test_accuracy"].between(0, 1).all()
    assert run.weights.shape == (650,)


def test_the_result_says_what_was_spent_and_against_whom(run: Run) -> None:
    assert run.guarantees.keys() == {"client", "release"}
    for part in ("3 rounds", "δ = 0.0001", "Poisson, rate 0.2", "Against active server, server"):
        assert part in repr(run)


def test_with_a_folder_the_ledger_says_it_and_the_run_is_the_same(
    run: Run, population: Population, tmp_path: Path
) -> None:
    kept = train(population, {"name": "softmax"}, out=tmp_path / "run", **TABLES)
    np.testing.assert_array_equal(kept.weights, run.weights)
    assert kept.guarantees == run.guarantees
    again = train(population, {"name": "softmax"}, out=tmp_path / "run", **TABLES)
    np.testing.assert_array_equal(again.weights, run.weights)


def test_an_observer_can_be_attacked(population: Population) -> None:
    tables = {**TABLES, "attacks": {"methods": ["dense_layer"], "targets": 2}}
    outcomes = train(population, "softmax", **tables).attack("server")
    assert len(outcomes) == 2


def test_populations_of_ones_own() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 6), np.float32), rng.integers(0, 2, 40).astype(np.int32)
    mine = Population(x, y, np.arange(0, 41, 4), x, y, "mine", 2)
    assert train(mine, "softmax", training={"rounds": 2}).weights.shape == (14,)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"training": {"round": 3}}, "training.round: unknown key"),
        ({"privacy": {"clip_norm": -1}}, "privacy.clip_norm"),
    ],
)
def test_wrong_settings_are_refused(population: Population, tables: dict[str, Any], words: str) -> None:
    with pytest.raises(PrivFedError, match=words):
        train(population, "softmax", **tables)


def test_metrics_as_tensorboard_events(population: Population, tmp_path: Path) -> None:
    from tensorflow.core.util.event_pb2 import Event
    from tensorflow.data import TFRecordDataset

    tables = {**TABLES, "training": {**TABLES["training"], "tensorboard": True}}
    run = train(population, "softmax", out=tmp_path, **tables)
    (path,) = (tmp_path / "tensorboard").iterdir()
    seen: dict[tuple[str, int], float] = {}
    for record in TFRecordDataset(str(path)).as_numpy_iterator():
        event = Event.FromString(record)
        for value in event.summary.value:
            seen[value.tag, event.step] = float(np.frombuffer(value.tensor.tensor_content, np.float32)[0])
    assert seen["test_accuracy", 3] == pytest.approx(run.metrics["test_accuracy"][3])
    assert ("weights_sha256", 1) not in seen
