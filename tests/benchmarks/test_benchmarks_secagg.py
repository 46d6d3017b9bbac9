"""The benchmark of secure aggregation plays whole rounds, checks their sums and prints what it promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORES = len(os.sched_getaffinity(0))


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "secagg.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)


def figures(*options: str) -> dict[str, Any]:
    done = run(*options, "--json")
    if done.stderr.startswith("peer_flower.py: "):
        pytest.skip(f"Flower cannot be installed here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_small_round_gives_its_figures() -> None:
    row = figures("--clients", "20", "--dim", "3000", "--dropout", "0.1", "--cores", str(CORES))
    assert (row["clients"], row["survivors"], row["neighbours"]) == (20, 18, 19)
    for name in ("masking_over_floor", "total_over_floor", "client_seconds", "server_seconds", "peak_rss_mb"):
        assert math.isfinite(row[name])
        assert row[name] > 0
    assert (row["ring_bits"], row["lanes"]) == (64, 3)
    least = 3000 / 3 * 8
    assert least < row["upload_bytes"] < least + 20 * 300
    assert row["upload_over_clear"] == row["upload_bytes"] / 6000
    assert row["total_seconds"] == pytest.approx(20 * row["client_seconds"] + row["server_seconds"])
    assert ("speedup" in row) == (CORES > 1)
    assert "flower" not in row


def test_what_cannot_be_measured_is_refused() -> None:
    for options, match in [
        (("--peers", "flwr"), "unknown: flwr; known: flower"),
        (("--cores", "0"), "--cores: must be 1 to"),
    ]:
        done = run("--clients", "20", "--dim", "10", *options)
        assert done.returncode == 2
        assert match in done.stderr
    done = run("--clients", "20", "--dim", "10", "--dropout", "0.9")
    assert done.returncode == 1
    assert "no threshold withstands" in done.stderr


@pytest.mark.slow
def test_flowers_protocol_runs_on_the_same_round() -> None:
    row = figures("--clients", "6", "--dim", "1000", "--dropout", "0.17", "--peers", "flower")
    assert row["flower"]["survivors"] == row["survivors"] == 5
    assert row["client_vs_flower"] == row["flower"]["client_seconds"] / row["client_seconds"]
    assert row["server_vs_flower"] == row["flower"]["server_seconds"] / row["server_seconds"]
    assert row["versions"]["flwr"]
