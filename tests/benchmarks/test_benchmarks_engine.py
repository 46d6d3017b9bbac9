"""The benchmarks run from the command line and print what they promise."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
NUMBERS = {
    *("seconds_per_round", "fastest_round", "cpu_per_round", "first_round", "total", "peak_rss_mb", "ratio"),
    *("cpu_ratio", "train_accuracy", "test_accuracy", "sgemm_gflops", "gflops", "share_of_peak", "other_load"),
}

needs_data = pytest.mark.skipif(
    not (DATA / "train-images-idx3-ubyte.gz").is_file(), reason=f"no Fashion-MNIST in {DATA}"
)


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def naive_accuracies(rounds: int) -> tuple[float, float]:
    """W1 in plain NumPy: training accuracy of the last round, counted before each step, and test accuracy."""
    data = benchmark("workloads").load("W1", DATA)
    weights, bias = np.zeros((784, 10)), np.zeros(10)
    for _ in range(rounds):
        right, ends = 0, []
        for x, y in zip(data.features.astype(float), data.labels, strict=True):
            w, b = weights.copy(), bias.copy()
            for i in range(0, len(y), 100):
                logits = x[i : i + 100] @ w + b
                right += (logits.argmax(1) == y[i : i + 100]).sum()
                p = np.exp(logits - logits.max(1, keepdims=True))
                error = (p / p.sum(1, keepdims=True) - np.eye(10)[y[i : i + 100]]) / 100
                w, b = w - 0.02 * x[i : i + 100].T @ error, b - 0.02 * error.sum(0)
            ends.append((w, b))
        weights, bias = (np.mean(part, axis=0) for part in zip(*ends, strict=True))
    hits = (data.test_features @ weights + bias).argmax(1) == data.test_labels
    return right / data.labels.size, float(hits.mean())


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_an_unknown_engine_is_refused_with_the_known_ones():
    done = run("engine.py", "--workload", "W1", "--engines", "privfed,flwr")
    assert done.returncode == 2
    assert "unknown: flwr; known: privfed, privfed-ring" in done.stderr


def test_missing_data_are_refused_by_name(tmp_path):
    done = run("engine.py", "--workload", "W1", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "no train-images-idx3-ubyte.gz there" in done.stdout


@pytest.mark.slow
@needs_data
def test_an_engine_prints_one_object_with_its_figures():
    options = ("--workload", "W1", "--engines", "privfed", "--rounds", "2", "--json", "--data", str(DATA))
    (row,) = objects(run("engine.py", *options))
    assert row["engine"] == "privfed"
    assert row["workload"] == "W1"
    assert row["rounds"] == 2
    assert row.keys() == NUMBERS | {"engine", "workload", "rounds", "versions"}
    assert all(math.isfinite(row[key]) and row[key] >= 0 for key in NUMBERS)
    assert row["ratio"] == row["cpu_ratio"] == 1
    assert set(row["versions"]) == {"privfed", "tensorflow", "numpy"}
    train, test = naive_accuracies(rounds=2)
    assert row["train_accuracy"] == pytest.approx(train, abs=5e-4)
    assert row["test_accuracy"] == pytest.approx(test, abs=5e-4)
    assert row["seconds_per_round"] < row["total"]


@pytest.mark.slow
def test_scaling_prints_each_point_and_the_fitted_lines():
    options = ("--cohorts", "20,40", "--clients", "200", "--populations", "200,400", "--cohort", "20")
    *points, fits = objects(run("scaling.py", *options, "--rounds", "2", "--json"))
    swept = sorted((row["sweep"], row["clients"], row["cohort"]) for row in points)
    assert swept == [("cohort", 200, 20), ("cohort", 200, 40), ("population", 200, 20), ("population", 400, 20)]
    assert all(row["peak_rss_mb"] >= row["loaded_rss_mb"] > 0 for row in points)
    assert set(fits["fits"]) == {
        *("ms_per_client", "ms_per_round", "r_squared", "mb_per_client", "ms_per_million", "mb_per_million")
    }


def test_one_command_knows_every_benchmark_and_its_options(tmp_path: Path) -> None:
    everything = benchmark("everything")
    for script, *options in everything.BENCHMARKS.values():
        text = (ROOT / "benchmarks" / script).read_text(encoding="utf-8")
        assert all(f'"{option}"' in text for option in [*options, "--markdown"] if option.startswith("--"))
    refused = run("everything.py", "--only", "W9")
    assert refused.returncode == 2
    assert "known are W1" in refused.stderr


@pytest.mark.slow
@needs_data
def test_a_variant_is_compared_with_rounds_between_its_own() -> None:
    (row,) = objects(run("engine.py", "--workload", "W1", "--engines", "privfed-ring", "--rounds", "4", "--json"))
    assert row["ratio"] == row["seconds_per_round"] / row["beside"]["seconds_per_round"]
    assert row["beside"]["rounds"] == row["rounds"] == 4
