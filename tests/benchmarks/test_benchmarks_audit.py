"""The harness of planted faults: what it plants is flagged, and a right training is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "audit_bugs.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)


@pytest.mark.slow
def test_faults_are_flagged_and_a_right_training_is_not() -> None:
    faults = ("none", "half-noise", "forgotten-layer", "fixed-cohorts", "same-seed", "actual-divisor")
    done = run("--faults", ",".join(faults), "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["caught"] for row in rows] == [0, 1, 1, 1, 1, 1]
    assert all(row["by_checks"] == row["caught"] for row in rows)


def test_an_unknown_fault_is_refused_with_those_that_are_known() -> None:
    done = run("--faults", "half-noize")
    assert done.returncode == 2
    assert "half-noize" in done.stderr
    assert "forgotten-layer" in done.stderr


@pytest.mark.slow
def test_the_cost_is_of_trainings_with_and_without_canaries(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "digits.toml").read_text(encoding="utf-8")
    assert "rounds = 40" in text
    settings = tmp_path / "short.toml"
    settings.write_text(
        text.replace("rounds = 40", "rounds = 3").replace('"protocol"', '"ring"'), encoding="utf-8"
    )
    done = run("--cost", str(settings), "--runs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["mode"], found["runs"]) == ("ring", 1)
    assert set(found["cpu_seconds_a_round"]) == {"none", "update", "input"}
    assert found["cpu_seconds_of_judging"] > 0
    for kind, share in found["over"].items():
        # What judging adds is spread over the rounds.
        added = found["cpu_seconds_of_judging"] / 3 / found["cpu_seconds_a_round"]["none"]
        assert share == pytest.approx(found["over_of_rounds"][kind] + added)
