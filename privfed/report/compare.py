"""Several runs on one self-contained page: the trade-off, the exposure, the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

from jinja2 import Environment

from privfed.audit.evidence import RECOVERY_MARGIN_DB, Evidence, PrivacyLoss
from privfed.report.environment import page_environment
from privfed.report.figures.comparison import exposure_figure, trade_off_figure
from privfed.report.page import LEVELS
from privfed.report.script import hash_of, script_of
from privfed.report.selection import flat_settings

MOST_RUNS = 26
"""Each run has a letter."""
SETTINGS_ROWS = 100


@dataclass(frozen=True)
class Compared:
    """One run: the name of its folder, and its report."""

    name: str
    evidence: Evidence


@dataclass(frozen=True)
class Row:
    """One run as the page's table shows it.

    Attributes:
        letter: In the figures.
        name: Of the folder.
        evidence: The report.
        loss: Against whoever sees the released model.
        worst: The observer that got most, and its margin over a guess in dB; ``None`` where nothing was scored.
        auc: The largest area under a membership curve.
        flagged: Observers whose claim canaries refute; ``None`` without canaries.
        upload: Bytes from clients to server.
    """

    letter: str
    name: str
    evidence: Evidence
    loss: PrivacyLoss
    worst: tuple[str, float] | None
    auc: float | None
    flagged: tuple[str, ...] | None
    upload: int


def render_comparison(runs: Sequence[Compared]) -> str:
    """The page: no network request, complete without its script; pure."""
    rows = [_row(letter, run) for letter, run in zip(ascii_uppercase, runs, strict=False)]
    points = [(r.letter, r.name, r.loss.epsilon, r.evidence.accuracy.final_protected) for r in rows]
    script = script_of(_environment(), "sort.js")
    html = (
        _environment()
        .get_template("compare.html.j2")
        .render(
            rows=rows,
            levels=LEVELS,
            recovery_margin=RECOVERY_MARGIN_DB,
            notes=_notes(rows),
            trade_off=trade_off_figure(points),
            exposure=exposure_figure([(r.letter, r.name, _margins(r.evidence)) for r in rows]),
            observers=list(dict.fromkeys(o.observer for r in rows for o in r.evidence.observers)),
            matrix=[{o.observer: o for o in r.evidence.observers} for r in rows],
            settings=_differences(rows),
            script=script,
            script_hash=hash_of(script),
        )
    )
    return html.replace("\r\n", "\n")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return page_environment()


def _row(letter: str, run: Compared) -> Row:
    e = run.evidence
    margins = _margins(e)
    worst = max(margins.items(), key=lambda item: item[1], default=None)
    release = next((o.guarantee for o in e.observers if o.observer == "release"), None)
    return Row(
        letter=letter,
        name=run.name,
        evidence=e,
        loss=e.ledger if release is None else release,
        worst=worst,
        auc=max((a.auc for a in e.membership.attacks), default=None) if e.membership else None,
        flagged=tuple(o.observer for o in e.canaries.observers if o.flagged) if e.canaries else None,
        upload=sum(r.upload_bytes for r in e.rounds),
    )


def _margins(e: Evidence) -> dict[str, float]:
    return {o.observer: o.best_attack.margin_db for o in e.observers if o.best_attack is not None}


def _notes(rows: Sequence[Row]) -> list[str]:
    """Why figures of these runs may not stand beside each other."""
    found = []
    if len({r.evidence.run.data.fingerprint for r in rows}) > 1:
        found.append("The runs are on different data: neither accuracy nor exposure compares directly.")
    for words, values in (
        ("δ", {r.loss.delta for r in rows}),
        ("units of privacy", {r.loss.unit for r in rows}),
        ("neighbouring relations", {r.loss.neighbouring for r in rows}),
    ):
        if len(values) > 1:
            found.append(f"The runs have different {words}: a smaller ε is not by itself a stronger promise.")
    if any(r.evidence.run.status == "partial" for r in rows):
        found.append("Some of the runs did not get to their end.")
    return found


def _differences(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ."""
    trees = [dict(flat_settings(r.evidence.run.settings)) for r in rows]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    found: list[tuple[str, list[str]]] = []
    for key in keys:
        values = [tree.get(key) for tree in trees]
        if any(value != values[0] for value in values):
            found.append((key, [_shown(value) for value in values]))
    return found[:SETTINGS_ROWS]


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
