"""The grid's heat maps, in the report's style: pure functions from a grid to inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privfed.defences.record import LABELS, STRONGEST, Cell, Grid, Line
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
    return _heat_map(grid, "fig-psnr", "How close the attacks come", caption, _of_images(grid, _psnr), DECIBELS)


def identification_figure(grid: Grid) -> Figure:
    """Share of targets that are identified, by defence and attack."""
    caption = (
        f"Share of targets whose true image is nearer to the reconstruction than any of {grid.held_out:,} images "
        "that nobody trained on. Of sums of many images a few come near by chance; the table says how many."
    )
    columns = _of_images(grid, _identified)
    return _heat_map(grid, "fig-identified", "Whom they would identify", caption, columns, SHARES)


def labels_figure(grid: Grid) -> Figure | None:
    """Share of labels counted right by defence, beside a guess; ``None`` where they were not counted."""
    if LABELS not in grid.attacks:
        return None
    caption = (
        "Mean share of the labels behind what the server holds that are counted right, the share of targets whose "
        "labels are all right, and what the better of two guesses reaches: all labels alike, or as frequent as "
        "among held-out images. A dash: the attack declined."
    )
    columns = [
        Column("labels right", LABELS, _overlap),
        Column("all right", LABELS, _all_right),
        Column("by guess", LABELS, _guess),
    ]
    return _heat_map(grid, "fig-labels", "Whose labels they count", caption, columns, SHARES)


@dataclass(frozen=True)
class Column:
    """One column of a heat map.

    Attributes:
        heading: Its first word on a line of its own.
        attack: Whose cells these are.
        show: What is shown of a cell.
    """

    heading: str
    attack: str
    show: Callable[[Cell], Shown]


def _of_images(grid: Grid, show: Callable[[Cell], Shown]) -> list[Column]:
    """A column for each attack that gives images, and the strongest of them in the last."""
    return [Column(words(name), name, show) for name in (*grid.attacks, STRONGEST) if name != LABELS]


def _overlap(cell: Cell) -> Shown:
    return _share(cell, "overlap")


def _all_right(cell: Cell) -> Shown:
    return _share(cell, "exact")


def _guess(cell: Cell) -> Shown:
    return _share(cell, "trivial")


def _share(cell: Cell, name: str) -> Shown:
    found = cell.figures["labels"]
    return Shown(DASH, None) if found is None else Shown(percent(found[name]["value"], 0), found[name]["value"])


def _psnr(cell: Cell) -> Shown:
    found = cell.figures["psnr"]
    return Shown(DASH, None) if found is None else Shown(f"{found['value']:.0f}", found["value"])


def _identified(cell: Cell) -> Shown:
    found = cell.figures["identified"]
    return Shown(DASH, None) if found is None else Shown(percent(found["value"], 0), found["value"])


def _heat_map(
    grid: Grid, name: str, title: str, caption: str, columns: Sequence[Column], limits: Sequence[float]
) -> Figure:
    width = (WIDTH - NAMES) / len(columns)
    parts: list[Markup] = []
    for i, column in enumerate(columns):
        first, _, rest = column.heading.partition(" ")
        middle = NAMES + width * (i + 0.5)
        parts += [
            svg.text((middle, HEAD - 28), first, "head"),
            svg.text((middle, HEAD - 12), rest, "head"),
        ]
    y, family, said = HEAD, grid.lines[0].defence.family, []
    told = columns[-1] if columns[-1].attack == STRONGEST else columns[0]
    for line in grid.lines:
        if line.defence.family != family:
            y, family = y + GAP, line.defence.family
        parts.append(svg.text((NAMES - 10, y + 16), line.defence.name, "name small end"))
        for i, column in enumerate(columns):
            parts += _square(line, column, (NAMES + width * i, y), width, limits)
        said.append(f"{line.defence.name}: {_spoken(line, told)}")
        y += ROW
    described = f"{caption} {_capital(told.heading)}: {'; '.join(said)}."
    return Figure(title, svg.drawing(name, title, described, parts, y + 4, WIDTH), caption)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _square(
    line: Line, column: Column, corner: tuple[float, float], width: float, limits: Sequence[float]
) -> list[Markup]:
    cell, size = line.cells.get(column.attack), (width - 2, ROW - 2)
    if cell is None:
        return [svg.rectangle(corner, size, "bar endless")] if line.unfinished(column.attack) else []
    shown = column.show(cell)
    shade = 0 if shown.value is None else sum(shown.value >= limit for limit in limits)
    middle = (corner[0] + size[0] / 2, corner[1] + 15.5)
    return [svg.rectangle(corner, size, f"heat h{shade}"), svg.text(middle, shown.label, f"mid on{shade}")]


def _spoken(line: Line, column: Column) -> str:
    cell = line.cells.get(column.attack)
    return "not finished" if cell is None else column.show(cell).label


def margin_words(line: Line) -> str:
    """The strongest attack's margin over the best trivial guess, with its interval."""
    found = line.cells[STRONGEST].figures["margin_db"]
    if found is None:
        return "no image"
    text = decibels(found["value"], signed=True)
    if found["low"] is None:
        return text
    return f"{text} ({decibels(found['low'], signed=True)} to {decibels(found['high'], signed=True)})"
