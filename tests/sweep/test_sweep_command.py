"""The commands from outside: refusals, and a sweep of real trainings, interrupted, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DIGITS = str(Path(__file__).parents[2] / "examples" / "digits.toml")
GRID = ["--vary", "privacy.epsilon=2,8", "--seeds", "2", "--set", "secure_aggregation.mode=ring"]
FEW = [*GRID, "--set", "training.rounds=60", "--set", "training.checkpoint_every=5"]


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=300)


def start(command: list[str], *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def commits(out: Path, trial: str) -> int:
    ledger = out / "trials" / trial / "ledger.jsonl"
    return ledger.read_text().count('"commit"') if ledger.exists() else 0


def workers(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()] + [
        int(pid)
        for task in Path(f"/proc/{parent}/task").iterdir()
        if task.name != str(parent)
        for pid in (task / "children").read_text().split()
    ]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("sweep", ["--vary", "privacy.epsilon=1,-2"]),
        ("sweep", ["--vary", "privacy.epsilon=1", "--baseline", "/no/such/file.csv"]),
        ("tune", ["--range", "privacy.epsilon=1:2"]),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(
    privfed_command: list[str], tmp_path: Path, command: str, arguments: list[str]
) -> None:
    got = run(privfed_command, command, DIGITS, *arguments, "--out", str(tmp_path / "out"))
    assert got.returncode == 2
    assert len(got.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_killed_and_gone_on_with(privfed_command: list[str], tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    first, second = "epsilon-2_seed-0", "epsilon-2_seed-1"
    command = ["sweep", DIGITS, *FEW, "--out", str(out)]

    # The sweep is killed: its worker notices, and ends.
    process = start(privfed_command, *command)
    wait_for(lambda: commits(out, first) > 5)
    worker = workers(process.pid)[0]
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker), 30)

    # It is interrupted: what is done is kept and said.
    process = start(privfed_command, *command)
    wait_for(lambda: (out / "trials" / first / "trial.json").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert json.loads((out / "sweep.json").read_text())["trials"][0]["status"] == "done"

    # A worker is killed: its trial fails, the others are trained.
    process = start(privfed_command, *command)
    before = commits(out, second)
    wait_for(lambda: commits(out, second) > before)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    assert process.wait(120) == 1
    partial = json.loads((out / "sweep.json").read_text())
    assert [t["status"] for t in partial["trials"]] == ["done", "failed", "done", "done"]
    assert "SIGKILL" in partial["trials"][1]["error"]

    # The same command goes on, to what a sweep that nothing happened to comes to, with more workers.
    assert run(privfed_command, *command).returncode == 0
    got = run(privfed_command, "sweep", DIGITS, *FEW, "--jobs", "2", "--out", str(whole), "--json")
    assert got.returncode == 0, got.stderr
    one, other = json.loads((out / "sweep.json").read_text()), json.loads(got.stdout)
    for key in ("weights_sha256", "test_accuracy", "privacy", "training_seed", "status"):
        assert [t[key] for t in one["trials"]] == [t[key] for t in other["trials"]]
    assert one["cost"]["together"] == other["cost"]["together"]
    alone = [t["privacy"]["release"]["epsilon"] for t in one["trials"]]
    assert max(alone) < one["cost"]["together"]["privacy"]["release"]["epsilon"] < sum(alone)

    # A trial is a run like any other.
    assert run(privfed_command, "verify", str(out / "trials" / second)).returncode == 0
    config = whole / "trials" / second / "config.toml"
    got = run(privfed_command, "train", str(config), "--out", str(tmp_path / "alone"), "--json")
    assert json.loads(got.stdout)["weights_sha256"] == one["trials"][1]["weights_sha256"]


@pytest.mark.slow
def test_tune_prints_and_writes_the_best(privfed_command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    got = run(
        privfed_command, "tune", DIGITS, "--budget", "4", "--jobs", "2", "--out", str(out),
        "--set", "training.rounds=3", "--set", "secure_aggregation.mode=ring",
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    assert "[privacy]\nclip_norm = " in got.stdout
    assert "All 4 trials together: ε ≤" in got.stdout.replace("\n", " ")
    assert json.loads((out / "tune.json").read_text())["status"] == "complete"
    got = run(privfed_command, "train", str(out / "best.toml"), "--out", str(tmp_path / "best"), "--json")
    assert json.loads(got.stdout)["rounds"] == 3


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
