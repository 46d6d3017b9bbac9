"""No process outlives its parent: whatever a command started is counted after the command was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from privfed.verification import verify_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
CHANGES = (
    *("training.rounds=100000", "privacy.epsilon=none", "privacy.noise_multiplier=1"),
    *("audit.canaries=0", "audit.canary_control=false", "attacks.enabled=false"),
)
MARK = "PRIVFED_TEST_PROCESSES"


class Family:
    """A command and all that descends from it, known by a variable of the environment that children inherit."""

    def __init__(self, command: list[str]) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            command,
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def members(self) -> dict[int, str]:
        """Command lines of those that live, by process."""
        found, mark = {}, f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not ended and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def wait_for(self, file: Path, members: int) -> None:
        deadline = time.monotonic() + 200
        while not (file.exists() and file.stat().st_size and len(self.members()) >= members):
            assert self.process.poll() is None
            assert time.monotonic() < deadline, self.members()
            time.sleep(0.2)

    def gone(self, seconds: float = 30) -> dict[int, str]:
        """Who is left after so long; empty as soon as nobody is."""
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def close(self) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def families() -> Iterator[list[Family]]:
    started: list[Family] = []
    yield started
    for family in started:
        family.close()


def settings(*changes: str) -> list[str]:
    return [part for change in (*CHANGES, *changes) for part in ("--set", change)]


def test_tffs_worker_ends_with_a_training_that_was_killed(
    families: list[Family], privfed_command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    changes = settings("executor=tff", "data.clients=20", "secure_aggregation.mode=off")
    families.append(family := Family([*privfed_command, "train", str(DIGITS), "--out", str(out), *changes]))
    family.wait_for(out / "metrics.jsonl", 3)  # the command, the guard, TFF's worker
    assert sum("worker" in line for line in family.members().values()) >= 2
    family.process.kill()
    assert family.gone() == {}
    assert verify_run(out).holds


def test_the_workers_of_a_sweep_end_with_it(
    families: list[Family], privfed_command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    command = [*privfed_command, "sweep", str(DIGITS), "--out", str(out), "--jobs", "2"]
    command += ["--vary", "training.learning_rate=0.1,0.2", *settings()]
    families.append(family := Family(command))
    deadline = time.monotonic() + 200
    while len(trained := list(out.rglob("metrics.jsonl"))) < 2 or not all(path.stat().st_size for path in trained):
        assert family.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(family.members()) == 3
    family.process.kill()
    assert family.gone() == {}
    for metrics in trained:
        assert verify_run(metrics.parent).holds


def test_a_family_that_stays_is_counted(families: list[Family]) -> None:
    """The count has teeth: a child that asks nobody outlives its parent, and is seen."""
    families.append(family := Family(["sh", "-c", "sleep 100 & wait"]))
    deadline = time.monotonic() + 10
    while len(family.members()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family.process.kill()
    assert list(family.gone(1).values()) == ["sleep 100 "]
