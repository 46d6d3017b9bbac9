"""The grid's page: self-contained, without a script, in the report's style."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment

from privfed.defences.figures import identification_figure, labels_figure, margin_words, psnr_figure
from privfed.defences.record import STRONGEST, Grid
from privfed.report import numbers
from privfed.report.environment import page_environment
from privfed.report.figures.exposure import HATCH
from privfed.report.selection import flat_settings

VERDICTS = {
    "broken": ("bad", "broken"),
    "leaks": ("bad", "leaks"),
    "nothing found": ("good", "nothing found"),
    "unfinished": ("plain", "unfinished"),
}
"""Of a line: the chip's style and words."""


def render_grid(grid: Grid) -> str:
    """The page."""
    targets = grid.settings["attacks"]["targets"]
    return (
        _environment()
        .get_template("defences.html.j2")
        .render(
            g=grid,
            targets=targets,
            strongest=STRONGEST,
            verdicts=VERDICTS,
            figures=[f for f in (psnr_figure(grid), identification_figure(grid), labels_figure(grid)) if f],
            hatch=HATCH,
            settings=list(flat_settings(grid.settings)),
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = page_environment("privfed.defences")
    environment.filters |= {
        "db": numbers.decibels,
        "words": numbers.words,
        "margin": margin_words,
        "interval": _interval,
    }
    return environment


def _interval(figure: dict[str, Any] | None) -> str:
    """A share with its interval."""
    if figure is None:
        return numbers.DASH
    low, high = (numbers.percent(figure[end], 0) for end in ("low", "high"))
    return f"{numbers.percent(figure['value'], 0)} ({low} to {high})"
