"""What every engine's process measures of itself; the standard library only, and Linux's /proc."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

WARM_UP = 2
"""Rounds left out of the figures: the first compiles, the second may do so again for another shape."""


def arguments() -> argparse.Namespace:
    """What ``engine.py`` hands to an engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", default="")
    return parser.parse_args()


class Rounds:
    """Wall and CPU seconds of each ``with`` block, the process's descendants included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> Rounds:
        self._cpu = cpu_seconds()
        self._wall = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds.append(time.perf_counter() - self._wall)
        self.cpu.append(cpu_seconds() - self._cpu)

    def figures(self) -> dict[str, Any]:
        """Median and mean after the warm-up, which is shorter when there are few rounds."""
        warm = min(WARM_UP, len(self.seconds) - 1)
        return {
            "rounds": len(self.seconds),
            "seconds_per_round": statistics.median(self.seconds[warm:]),
            "fastest_round": min(self.seconds[warm:]),
            "cpu_per_round": statistics.fmean(self.cpu[warm:]),
            "first_round": self.seconds[0],
            "peak_rss_mb": peak_rss_mb(),
        }


def write(path: Path, figures: dict[str, Any], packages: tuple[str, ...], **accuracies: float) -> None:
    """Leave the figures where ``engine.py`` looks for them."""
    versions = {package: version(package) for package in packages}
    path.write_text(json.dumps({**figures, **accuracies, "versions": versions}), encoding="utf-8")


def cpu_seconds() -> float:
    """CPU seconds used by this process and its living descendants."""
    ticks = os.sysconf("SC_CLK_TCK")
    others = sum(int(v) for pid in descendants() for v in _stat(pid)[11:13]) / ticks
    return time.process_time() + others


def peak_rss_mb() -> float:
    """Sum of the peaks of resident memory of this process and its living descendants, in MiB."""
    return sum(_peak_kib(pid) for pid in (os.getpid(), *descendants())) / 1024


def descendants() -> list[int]:
    """Process numbers of the children of this process, their children, and so on."""
    parents = {int(entry): _stat(int(entry))[1:2] for entry in os.listdir("/proc") if entry.isdigit()}
    found, frontier = [], {str(os.getpid())}
    while frontier:
        children = [pid for pid, parent in parents.items() if parent and parent[0] in frontier]
        found += children
        frontier = {str(pid) for pid in children}
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the command's name; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
