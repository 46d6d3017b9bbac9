"""Runs one measured process to its end, and reads the figures it leaves; Linux only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any


class ProcessError(Exception):
    """A measured process ended without figures; the message has the end of its output."""


class TimeLimitError(ProcessError):
    """A measured process took longer than it was given.

    Attributes:
        left: Figures that it had written until then, as ``figures`` gives them; ``None`` without any.
    """

    def __init__(self, limit_seconds: float, left: dict[str, Any] | None) -> None:
        super().__init__(f"not finished in {limit_seconds:g} s")
        self.left = left


def figures(command: list[str], limit_seconds: float) -> dict[str, Any]:
    """What ``command --out FILE`` wrote as JSON, its wall seconds in all, and the cores that others used.

    Raises:
        TimeLimitError: It took longer than the limit.
        ProcessError: It failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out, words = Path(scratch) / "figures.json", Path(scratch) / "output.txt"
        busy, started = _busy_seconds(), time.perf_counter()
        code, own = _run([*command, "--out", str(out)], words, limit_seconds)
        total = time.perf_counter() - started
        others = max(0.0, (_busy_seconds() - busy - own) / total)
        around = {"total": total, "other_load": others}
        if code is None:
            left = {**json.loads(out.read_text()), **around} if out.is_file() else None
            raise TimeLimitError(limit_seconds, left)
        if code or not out.is_file():
            tail = words.read_text(errors="replace").strip().splitlines()[-5:]
            raise ProcessError(f"ended with code {code}: " + " | ".join(tail))
        return {**json.loads(out.read_text()), **around}


def _run(command: list[str], words: Path, limit_seconds: float) -> tuple[int | None, float]:
    """Run a command to its end, and end what it leaves behind.

    Gives its exit code, ``None`` past the limit, and its CPU seconds.
    """
    with words.open("wb") as output:
        before = os.times()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # TFF's worker outlives its parent; the group is the session that was started here.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return code, used


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
