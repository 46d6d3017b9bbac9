"""A run on Ray whose head is killed: no process stays, the ledger is right, and the rerun ends as on ``local``."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from privfed.console import Console
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import LEDGER, WEIGHTS
from privfed.runs import run_training
from privfed.settings_file import load_settings
from privfed.verification import verify_run

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
ROUNDS = 12
SETTINGS = (
    "data.clients=60",
    f"training.rounds={ROUNDS}",
    "training.checkpoint_every=2",
    "cohort.rate=0.3",
    "secure_aggregation.mode=off",
    "privacy.epsilon=none",
    "privacy.noise_multiplier=1.1",
    "privacy.delta=1e-5",
    "attacks.enabled=false",
    "audit.canaries=0",
    "audit.canary_control=false",
    "sum_parts=3",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def tree_of(pid: int) -> dict[int, str]:
    """All processes below ``pid``, by number: name and start, so that no number is taken for another's."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_of(int(entry.name))):
            found[int(entry.name)] = fields[1]
    below: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = str(waiting.pop())
        for child, its_parent in found.items():
            if its_parent == parent and child not in below:
                fields = stat_of(child)
                if fields:
                    below[child] = fields[19]
                    waiting.append(child)
    return below


def stat_of(pid: int) -> list[str]:
    """State, parent, … of a process that lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields


def left_of(processes: dict[int, str]) -> list[int]:
    return [pid for pid, start in processes.items() if (fields := stat_of(pid)) and fields[19] == start]


def gone(processes: dict[int, str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while left_of(processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left_of(processes)


def train(out: Path) -> subprocess.Popen[str]:
    overrides = [word for setting in (*SETTINGS, "executor=ray", "ray.workers=2") for word in ("--set", setting)]
    command = [
        str(Path(sys.executable).with_name("privfed")),
        "train",
        str(EXAMPLE),
        "--out",
        str(out),
        *overrides,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def start():
    """Starts trainings, and kills those that a failed test leaves."""
    runs: list[subprocess.Popen[str]] = []

    def begin(out: Path) -> subprocess.Popen[str]:
        runs.append(train(out))
        return runs[-1]

    yield begin
    for run in runs:
        if run.poll() is None:
            run.kill()
        run.communicate()


def test_a_head_that_is_killed_leaves_a_run_that_ends_as_local_does(tmp_path, start):
    pytest.importorskip("ray")
    out, ledger = tmp_path / "ray", tmp_path / "ray" / LEDGER
    run = start(out)
    deadline = time.monotonic() + 300
    while not (ledger.exists() and ledger.read_text().count('"commit"') >= 3):
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes = tree_of(run.pid)
    assert len(processes) >= 4  # Ray's own two, and the workers
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert gone(processes, 30), left_of(processes)
    killed = verify_ledger(ledger)
    assert killed.final_sha256 is None
    assert 3 <= killed.spent < ROUNDS

    again = start(out)
    below: dict[int, str] = {}
    while again.poll() is None:
        below |= tree_of(again.pid)
        time.sleep(0.3)
    output = again.stdout.read()
    assert again.returncode == 0, output
    assert "going on after round" in output
    assert len(below) >= 4
    assert gone(below, 15), left_of(below)
    assert verify_run(out).holds

    overrides = [*SETTINGS]
    run_training(load_settings(EXAMPLE, overrides), tmp_path / "local", Console(quiet=True))
    local, there = (np.load(tmp_path / name / WEIGHTS) for name in ("local", "ray"))
    np.testing.assert_array_equal(local, there)
    assert verify_ledger(ledger).guarantees.keys() == verify_ledger(tmp_path / "local" / LEDGER).guarantees.keys()
