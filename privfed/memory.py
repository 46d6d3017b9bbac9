"""Whether a run can fit into memory at all: asked before it starts, since the kernel kills without a word.

The estimate counts only what the program is sure to hold at once, so that no run is refused that could end; one
that is let through may still be too large.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from privfed.errors import SettingError

if TYPE_CHECKING:
    from privfed.experiment import Experiment

_MODEL = 3 * 4 + 8
"""Bytes a coordinate: the first, the current and the new model in float32, and the sum in float64."""
_RECORDED = {"off": 8, "ring": 8, "protocol": 16, "bfv": 8}
"""Bytes a coordinate of each client in a recorded round: its update, and what arrived instead."""
_UNDER_WAY = {"off": 4, "ring": 8, "protocol": 8, "bfv": 8}
"""Bytes a coordinate of each client while a cohort's vectors are there together: the update, and its encoding."""


def estimate(experiment: Experiment) -> dict[str, int]:
    """Bytes that the training of ``experiment`` holds at once at the least, by what for."""
    dimension, settings = experiment.model.dimension, experiment.settings
    clients, mode = experiment.population.clients, settings.secure_aggregation.mode
    expected = settings.expected_cohort
    cohort = round(clients * (settings.cohort.drawn_rate or 1.0) if expected is None else expected)
    recorded = len(experiment.recorded_rounds)
    parts = {"the model and its sum": _MODEL * dimension}
    if mode in ("protocol", "bfv") or recorded:
        # Masking decodes what it received in every round, recorded or not; encryption, what was sent.
        together = max(1, recorded) * _RECORDED[mode] + _UNDER_WAY[mode]
        words = f"updates of {cohort:,} clients in {max(1, recorded)} recorded rounds"
        parts[words if recorded else f"updates of {cohort:,} clients under secure aggregation"] = (
            together * cohort * dimension
        )
    if settings.training.algorithm == "scaffold":
        parts[f"control variates of {clients:,} clients"] = 4 * clients * dimension
    return parts


def available() -> int:
    """Bytes that this process can still take: of the machine, of its control group, and of its own limit."""
    limits = [_of_the_machine(), _of_the_control_group()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits.append(max(0, soft - pages * resource.getpagesize()))
    return min((limit for limit in limits if limit is not None), default=2**63)


def check_memory(experiment: Experiment) -> None:
    """Refuse a training that cannot fit.

    Raises:
        SettingError: It needs more than there is, with the estimate and what makes it large.
    """
    parts, free = estimate(experiment), available()
    if (needed := sum(parts.values())) > free:
        largest = max(parts, key=lambda name: parts[name])
        raise SettingError(
            f"the run needs {_size(needed)} at the least, of it {_size(parts[largest])} for {largest}, and "
            f"{_size(free)} are free",
            where="memory",
            remedy="Make the model or the cohort smaller, or record fewer rounds (attacks.rounds)",
        )


def _of_the_machine() -> int | None:
    found = _fields(Path("/proc/meminfo"))
    return None if "MemAvailable" not in found else 1024 * (found["MemAvailable"] + found.get("SwapFree", 0))


def _of_the_control_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of version 2; pages of files can be given up, and so are no use of memory."""
    try:
        most, used = (int((root / f"memory.{name}").read_text()) for name in ("max", "current"))
        return most - used + _fields(root / "memory.stat").get("inactive_file", 0)
    except (OSError, ValueError):  # there is none, or it says "max"
        return None


def _fields(path: Path) -> Mapping[str, int]:
    """The numbers in a file of names and values."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {name: int(value) for name, value, *_ in words if value.isdigit()}


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
