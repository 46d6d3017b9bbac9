"""From a sweep to one self-contained HTML page: pure, in the report's style."""

from __future__ import annotations

import math
from functools import lru_cache

from jinja2 import Environment

from privfed.audit.evidence import PrivacyLoss
from privfed.report.environment import page_environment
from privfed.report.script import hash_of, script_of
from privfed.report.selection import flat_settings, shared_terms
from privfed.sweep.cost import ADVICE, Composition
from privfed.sweep.page.figure import trade_off
from privfed.sweep.record import Sweep, in_words, shown
from privfed.sweep.trial import OBSERVERS

TABLE_ROWS = 2000


def render_sweep(sweep: Sweep) -> str:
    """The page: no network request; its one script sorts the table, and the page does without it."""
    environment = _environment()
    script = script_of(environment, "sort.js")
    return environment.get_template("sweep.html.j2").render(
        s=sweep,
        figure=trade_off(sweep),
        loss_terms=shared_terms(item for trial in sweep.trials for item in trial.privacy.items()),
        costs=_costs(sweep),
        advice=ADVICE,
        best=sweep.cost.selected,
        keys=_headings(list(sweep.varied)),
        rows=sweep.trials[:TABLE_ROWS],
        observers=OBSERVERS,
        counts={
            status: sum(t.status == status for t in sweep.trials) for status in ("done", "failed", "unfinished")
        },
        settings=[
            (key, "not set" if value is None else shown(value))
            for key, value in flat_settings(sweep.settings)
            if key not in sweep.varied
        ],
        script=script,
        script_hash=hash_of(script),
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = page_environment("privfed.sweep")
    environment.filters |= {
        "in_words": in_words,
        "shown": shown,
    }
    return environment


def _costs(sweep: Sweep) -> list[tuple[str, str, list[tuple[list[str], PrivacyLoss]], str]]:
    """Rows of the cost's table: a heading, a line below it, ε by group of observers, and why."""
    cost = sweep.cost
    rows = [("All trials together", _counted(cost.together), _grouped(cost.together.privacy), cost.together.why)]
    if cost.protected is not None:
        part = cost.protected
        note = f"{_counted(part)}, leaving out those without any mechanism"
        rows.append(("The protected trials together", note, _grouped(part.privacy), part.why))
    if cost.selected is not None:
        one = cost.selected
        note = f"{in_words(one.values) or 'as configured'}, seed {one.seed}"
        rows.append(("The most accurate protected trial alone", note, _grouped(one.privacy), ""))
    return rows


def _counted(part: Composition) -> str:
    return f"{part.trials} run{'' if part.trials == 1 else 's'} on the same clients"


def _grouped(losses: dict[str, PrivacyLoss]) -> list[tuple[list[str], PrivacyLoss]]:
    """Observers that share one privacy loss, finite ones first."""
    groups: dict[PrivacyLoss, list[str]] = {}
    for observer in OBSERVERS:
        if observer in losses:
            groups.setdefault(losses[observer], []).append(observer)
    found = [(observers, loss) for loss, observers in groups.items()]
    return sorted(found, key=lambda item: math.isinf(item[1].epsilon))


def _headings(keys: list[str]) -> list[tuple[str, str]]:
    last = [key.rpartition(".")[2] for key in keys]
    return list(zip(keys, last if len(set(last)) == len(last) else keys, strict=True))
