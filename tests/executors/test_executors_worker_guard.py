"""The guard holds a process to the life of another; `sleep` stands in for TFF's worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privfed.executors import worker_guard

GUARD = Path(worker_guard.__file__)
PARENT = f"""
import os, signal, subprocess, sys, time
def start(command=("sleep", "1000")):
    guard = subprocess.Popen([sys.executable, "-I", "-S", {str(GUARD)!r}, str(os.getpid()), *command],
                             stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True)
    children = f"/proc/{{guard.pid}}/task/{{guard.pid}}/children"
    while not (worker := open(children).read().split()):
        time.sleep(0.01)
    print(os.getpid(), guard.pid, worker[0], flush=True)
    return guard
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def alive(pid: int) -> bool:
    try:
        # A zombie is dead; it only waits to be reaped.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or before it was read
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def start(program: str) -> tuple[subprocess.Popen[str], list[int]]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3, parent.stderr.read()
    return parent, pids


@pytest.mark.parametrize("end", ["pass", "1 / 0", "sys.exit(3)", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_guard_ends_the_worker_when_the_parent_ends(end):
    parent, (_, guard, worker) = start(f"start(); {end}")
    with parent:
        # Nobody else holds the pipes: reading them to their end returns at once.
        parent.communicate(timeout=10)
    assert gone(worker)
    assert gone(guard)


def test_guard_lets_the_worker_live_as_long_as_the_parent():
    parent, (_, guard, worker) = start("start(); sys.stdin.read() or time.sleep(1000)")
    with parent:
        time.sleep(1.5)
        assert alive(worker)
        parent.kill()
    assert gone(worker)
    assert gone(guard)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_ends_when_its_guard_is_killed(number):
    parent, (_, guard, worker) = start("start(); time.sleep(1000)")
    with parent:
        os.kill(guard, number)
        assert gone(worker)
        assert parent.poll() is None
        parent.kill()


def test_guard_ends_the_worker_although_a_forked_child_holds_the_pipe():
    parent, (_, guard, worker) = start(
        "start(); child = os.fork() or time.sleep(1000); print(child, flush=True); os.kill(os.getpid(), 9)"
    )
    with parent:
        child = int(parent.stdout.readline())
        assert gone(worker)
        assert gone(guard)
        assert alive(child)
        os.kill(child, signal.SIGKILL)


def test_guard_survives_the_thread_that_started_it():
    parent, (_, _, worker) = start(
        "import threading; t = threading.Thread(target=start); t.start(); t.join(); time.sleep(1000)"
    )
    with parent:
        time.sleep(1.0)
        assert alive(worker)
        parent.kill()
    assert gone(worker)


def test_guard_passes_the_exit_code_on_and_starts_nothing_for_a_parent_that_is_gone(tmp_path):
    def run(parent: int, *command: str) -> int:
        return subprocess.run(
            [sys.executable, "-I", "-S", GUARD, str(parent), *command], stdin=subprocess.PIPE, timeout=10
        ).returncode

    def run_with_open_pipe(*command: str) -> int:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", GUARD, str(os.getpid()), *command], stdin=subprocess.PIPE
        )
        with guard:
            return guard.wait(10)

    assert run_with_open_pipe("sh", "-c", "exit 7") == 7
    assert run(os.getpid() + 1_000_000, "touch", str(tmp_path / "started")) == 0
    assert not (tmp_path / "started").exists()
