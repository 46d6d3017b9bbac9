"""The folder of a grid: finished cells stay, and are not run again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privfed.errors import OutputError
from privfed.rundir import MetricsFile, RunFolder

OUTCOMES, GRID_JSON, GRID_HTML = "attack.jsonl", "attack.json", "defences.html"
Row = Mapping[str, Any]


class GridFolder(RunFolder):
    """Of one grid: its settings are under a name of their own, so that no run's files come to lie among them."""

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.path / "grid.toml"

    @contextmanager
    def outcomes(self) -> Iterator[tuple[list[Row], MetricsFile]]:
        """Outcomes of cells that earlier runs finished, and the file that holds them and is gone on with.

        Raises:
            OutputError: Another process works in the folder, or the outcomes cannot be read.
        """
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(
                    "another process works in it", where=f"--out {self.path}", remedy="Wait for it to end"
                ) from None
            self.claim()
            earlier = finished(_read(self.path / OUTCOMES))
            with MetricsFile(self.path / OUTCOMES, earlier) as lines:
                yield list(earlier), lines
        finally:
            os.close(lock)


def finished(rows: Sequence[Row]) -> list[Row]:
    """Those of cells that have all their outcomes: each row says how many there are ``of``."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[cell_of(row)] = counts.get(cell_of(row), 0) + 1
    return [row for row in rows if counts[cell_of(row)] == row["of"]]


def cell_of(row: Row) -> tuple[str, str]:
    """Defence and attack."""
    return row["defence"], row["attack"]


def _read(path: Path) -> list[Row]:
    """Whole lines; the last one of a killed run may be torn."""
    rows: list[Row] = []
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number + 1 < len(lines):
                    raise OutputError(
                        "is not strict JSON", where=f"{path}: line {number + 1}", remedy="Name another folder"
                    ) from None
    return rows
