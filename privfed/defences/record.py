"""What ``attack.json`` of a grid holds: one entry a cell, and for each defence the strongest attack's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from attacks import LabelInference
from privfed import __version__
from privfed.attack_scores import summarise
from privfed.config import Settings
from privfed.defences.catalogue import Defence
from privfed.defences.folder import Row, cell_of, finished

STRONGEST = "strongest"
"""In the place of an attack: of each target the attack with most images exact, or else with the nearest one."""
LABELS = LabelInference.name
"""The attack that gives no images: it has a figure of its own, and no part in the verdict."""
PAIRS = 4
"""Pairs of images kept for the page, those that got most."""


@dataclass(frozen=True)
class Cell:
    """One attack on all targets behind one defence.

    Attributes:
        defence: Its name.
        attack: Its name, or ``STRONGEST``.
        figures: As ``attack_scores.summarise`` gives them.
        exact_examples: Mean share of the examples behind a target that came out exact.
        chance: Rate at which an image that has nothing to do with a target would be called identified.
        failures: Reasons why there was no reconstruction, with how often.
    """

    defence: str
    attack: str
    figures: Mapping[str, Any]
    exact_examples: float
    chance: float
    failures: Mapping[str, int]


@dataclass(frozen=True)
class Line:
    """One defence: its cells by attack, and what they come to.

    Attributes:
        defence: What stood in between.
        examples: Behind each target.
        clipped: Share of the updates that were clipped; ``None`` without a clip norm.
        cells: By attack; the strongest among them once all attacks have been.
        verdict: ``broken``, ``leaks``, ``nothing found``, or ``unfinished``.
        pairs: Rows of the strongest attack whose images are shown.
        attacks: Those that apply.
    """

    defence: Defence
    examples: int
    clipped: float | None
    cells: Mapping[str, Cell]
    verdict: str
    pairs: tuple[Row, ...]
    attacks: tuple[str, ...]

    def unfinished(self, attack: str) -> bool:
        """Whether the attack applies, and there is no cell of it yet."""
        return attack not in self.cells and (attack == STRONGEST or attack in self.attacks)


@dataclass(frozen=True)
class Grid:
    """The whole grid as far as it is finished.

    Attributes:
        name: The experiment's.
        created: UTC, ISO 8601.
        status: ``complete`` or ``partial``.
        settings: Of the experiment.
        dataset: Its name.
        model: Its name and number of weights.
        attacks: All that were tried.
        lines: Rows.
        held_out: Examples that the true one has to be told from.
        seconds: Of this run of the command.
    """

    name: str
    created: str
    status: str
    settings: Mapping[str, Any]
    dataset: str
    model: str
    attacks: tuple[str, ...]
    lines: tuple[Line, ...]
    held_out: int
    seconds: float

    def as_json(self, rows: Sequence[Row]) -> dict[str, Any]:
        """``attack.json``: without images, which are in ``attack.jsonl``."""
        return {
            "grid": "defences",
            "status": self.status,
            "name": self.name,
            "created": self.created,
            "privfed_version": __version__,
            "settings": self.settings,
            "dataset": self.dataset,
            "model": self.model,
            "held_out": self.held_out,
            "seconds": self.seconds,
            "defences": [
                {
                    "defence": line.defence.name,
                    "family": line.defence.family,
                    "clients": line.defence.clients,
                    "examples": line.examples,
                    "clipped": line.clipped,
                    "verdict": line.verdict,
                    "cells": [asdict(cell) for cell in line.cells.values()],
                }
                for line in self.lines
            ],
            "outcomes": [
                {key: value for key, value in row.items() if key not in ("original", "reconstruction")}
                for row in rows
            ],
        }


def build(
    settings: Settings,
    plan: Sequence[tuple[Defence, Sequence[str]]],
    rows: Sequence[Row],
    *,
    dataset: str,
    model: str,
    held_out: int,
    seconds: float,
) -> Grid:
    """Sum up what is finished of ``plan``, which has the attacks of each defence."""
    done = finished(rows)
    by_cell: dict[tuple[str, str], list[Row]] = {}
    for row in done:
        by_cell.setdefault(cell_of(row), []).append(row)
    attacks = tuple(dict.fromkeys(name for _, names in plan for name in names))
    lines = tuple(_line(defence, names, by_cell, held_out) for defence, names in plan)
    missing = sum((defence.name, name) not in by_cell for defence, names in plan for name in names)
    return Grid(
        settings.name,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "partial" if missing else "complete",
        settings.model_dump(mode="json"),
        dataset,
        model,
        attacks,
        lines,
        held_out,
        seconds,
    )


def _line(
    defence: Defence, names: Sequence[str], by_cell: Mapping[tuple[str, str], list[Row]], held_out: int
) -> Line:
    found = {name: by_cell[defence.name, name] for name in names if (defence.name, name) in by_cell}
    cells = {name: _cell(defence.name, name, rows, held_out) for name, rows in found.items()}
    every = [row for name, rows in found.items() if name != LABELS for row in rows]
    examples = max((row["examples"] or 0 for row in every), default=0)
    clipped = next((row["clipped"] for row in every), None)
    if len(found) < len(names):
        return Line(defence, examples, clipped, cells, "unfinished", (), tuple(names))
    best = [
        max((r for r in every if r["target"] == t), key=_reached) for t in sorted({r["target"] for r in every})
    ]
    cells[STRONGEST] = strongest = _cell(defence.name, STRONGEST, best, held_out)
    shown = sorted((r for r in best if r["reconstruction"]), key=lambda r: -r["margin_db"])[:PAIRS]
    return Line(defence, examples, clipped, cells, verdict(strongest), tuple(shown), tuple(names))


def _reached(row: Row) -> tuple[float, float]:
    """How far an attack came: the share of the examples that are exact counts first, then the best image."""
    return row["exact_examples"] or 0.0, -math.inf if row["psnr"] is None else float(row["psnr"])


def _cell(defence: str, attack: str, rows: Sequence[Row], held_out: int) -> Cell:
    figures = summarise([{**row, "attack": attack, "fired": row["attack"]} for row in rows])[0]
    failures: dict[str, int] = {}
    for row in rows:
        if row["failure"]:
            failures[row["failure"]] = failures.get(row["failure"], 0) + 1
    examples = max((row["examples"] or 0 for row in rows), default=0)
    exact = sum(row["exact_examples"] or 0.0 for row in rows) / len(rows)
    return Cell(defence, attack, figures, exact, examples / max(examples + held_out, 1), failures)


def verdict(strongest: Cell) -> str:
    """In a word: ``broken`` by an exact image, ``leaks`` where more than a guess is seen, or ``nothing found``.

    The last is no promise: so many targets and these attacks found nothing.
    """
    figures = strongest.figures
    if figures["exact"]["value"] > 0:
        return "broken"
    margin, identified = figures["margin_db"], figures["identified"]
    if margin is not None and (margin["value"] if margin["low"] is None else margin["low"]) > 0:
        return "leaks"
    if identified is not None and identified["low"] > strongest.chance:
        return "leaks"
    return "nothing found"
