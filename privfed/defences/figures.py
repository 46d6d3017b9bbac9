"""The grid's heat maps, in the report's style: pure functions from a grid to inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privfed.defences.record import STRONGEST, Cell, Grid, Line
from privfed.report import svg
from privfed.report.figures import Figure
from privfed.report.numbers import DASH, decibels, percent, words

WIDTH, NAMES, ROW, HEAD, GAP = 540.0, 158.0, 23.0, 62.0, 7.0
"""Pixels: in all, for the names of defences, of a row, above the first row, between families."""
DECIBELS = (10.0, 14.0, 20.0, 30.0, 50.0, 80.0)
SHARES = (1e-9, 0.05, 0.25, 0.5, 0.75, 0.95)
"""Where one shade ends and the next, darker one begins."""


@dataclass(frozen=True)
class Shown:
    """What a heat map shows of a cell: text, and the value that the shade is of; ``None`` for nothing found."""

    label: str
    value: float | None


def psnr_figure(grid: Grid) -> Figure:
    """Mean PSNR of the best reconstruction by defence and attack."""
    caption = (
        "Mean PSNR in dB of the best image that each attack makes of what the server holds; darker is closer to "
        "the original. From about 50 dB on nobody sees a difference; the table says what a guess reaches. A dash: "
        "the attack gave no image; hatched: not finished; empty: does not apply."
    )
    return _heat_map(grid, "fig-psnr", "How close the attacks come", caption, _psnr, DECIBELS)


def identification_figure(grid: Grid) -> Figure:
    """Share of targets that are identified, by defence and attack."""
    caption = (
        f"Share of targets whose true image is nearer to the reconstruction than any of {grid.held_out:,} images "
        "that nobody trained on. Of sums of many images a few come near by chance; the table says how many."
    )
    return _heat_map(grid, "fig-identified", "Whom they would identify", caption, _identified, SHARES)


def _psnr(cell: Cell) -> Shown:
    found = cell.figures["psnr"]
    return Shown(DASH, None) if found is None else Shown(f"{found['value']:.0f}", found["value"])


def _identified(cell: Cell) -> Shown:
    found = cell.figures["identified"]
    return Shown(DASH, None) if found is None else Shown(percent(found["value"], 0), found["value"])


def _heat_map(
    grid: Grid,
    name: str,
    title: str,
    caption: str,
    show: Callable[[Cell], Shown],
    limits: Sequence[float],
) -> Figure:
    columns = (*grid.attacks, STRONGEST)
    width = (WIDTH - NAMES) / len(columns)
    parts: list[Markup] = []
    for i, attack in enumerate(columns):
        first, _, rest = words(attack).partition(" ")
        middle = NAMES + width * (i + 0.5)
        parts += [
            svg.text((middle, HEAD - 28), first, "head"),
            svg.text((middle, HEAD - 12), rest, "head"),
        ]
    y, family, said = HEAD, grid.lines[0].defence.family, []
    for line in grid.lines:
        if line.defence.family != family:
            y, family = y + GAP, line.defence.family
        parts.append(svg.text((NAMES - 10, y + 16), line.defence.name, "name small end"))
        for i, attack in enumerate(columns):
            parts += _square(line, attack, (NAMES + width * i, y), width, show, limits)
        said.append(f"{line.defence.name}: {_spoken(line, show)}")
        y += ROW
    described = f"{caption} Against the strongest attack: {'; '.join(said)}."
    return Figure(title, svg.drawing(name, title, described, parts, y + 4, WIDTH), caption)


def _square(
    line: Line,
    attack: str,
    corner: tuple[float, float],
    width: float,
    show: Callable[[Cell], Shown],
    limits: Sequence[float],
) -> list[Markup]:
    cell, size = line.cells.get(attack), (width - 2, ROW - 2)
    if cell is None:
        return [svg.rectangle(corner, size, "bar endless")] if line.unfinished(attack) else []
    shown = show(cell)
    shade = 0 if shown.value is None else sum(shown.value >= limit for limit in limits)
    middle = (corner[0] + size[0] / 2, corner[1] + 15.5)
    return [svg.rectangle(corner, size, f"heat h{shade}"), svg.text(middle, shown.label, f"mid on{shade}")]


def _spoken(line: Line, show: Callable[[Cell], Shown]) -> str:
    cell = line.cells.get(STRONGEST)
    return "not finished" if cell is None else show(cell).label


def margin_words(line: Line) -> str:
    """The strongest attack's margin over the best trivial guess, with its interval."""
    found = line.cells[STRONGEST].figures["margin_db"]
    if found is None:
        return "no image"
    text = decibels(found["value"], signed=True)
    if found["low"] is None:
        return text
    return f"{text} ({decibels(found['low'], signed=True)} to {decibels(found['high'], signed=True)})"
