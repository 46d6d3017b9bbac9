"""What the figures share: a drawing with its words, and series by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privfed.report import svg
from privfed.report.numbers import count
from privfed.report.selection import FIGURE_POINTS, evenly, selection_note

PLOT_X = (svg.LEFT, svg.WIDTH - svg.RIGHT)
PLOT_Y = (svg.HEIGHT - svg.BOTTOM, svg.TOP)
CURVES = ("curve first", "curve second", "curve third", "curve fourth", "curve fifth")
"""Told apart by their dashes too: pages are printed without colour."""
HOVER_POINTS = 50
Series = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Figure:
    """A figure, or the words for why there is none.

    Attributes:
        title: Heading.
        drawing: Inline SVG; ``None`` when there is nothing to draw.
        caption: What to conclude, or what is missing.
    """

    title: str
    drawing: Markup | None
    caption: str


def slug(name: str) -> str:
    """An id of letters and digits."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:60]


def curves(
    names: tuple[str, str, str],
    series: Sequence[tuple[str, str, Series]],
    caption: str,
    missing: str,
    label: Callable[[float], str],
    *,
    low: float = 0.0,
    top: float | None = None,
    mark: float | None = None,
    x_title: str = "round",
    what: str = "rounds",
    at: tuple[float, str] | None = None,
) -> Figure:
    """Series over whole numbers, broken where a value is unknown.

    Args:
        names: The figure's id, its title, and the title of the y axis.
        series: Classes, name and values of each; names are drawn where there are several.
        caption: What to conclude.
        missing: Said when nothing is known.
        label: Of a value on the y axis.
        low: Where the y axis begins.
        top: Where it ends; at the largest value when not given.
        mark: A dashed line at this value.
        x_title: Of the x axis.
        what: What the points are, for the note on a selection.
        at: A place on the x axis to mark, and its words.
    """
    name, title, y_title = names
    known = [value for _, _, values in series for _, value in values if value is not None]
    if not known:
        return Figure(title, None, missing)
    rounds = [number for _, _, values in series for number, _ in values]
    x = svg.axis(min(rounds), max(rounds), PLOT_X, count, whole=True, tight=True)
    y = svg.axis(low, max(known) if top is None else top, PLOT_Y, label)
    parts = svg.frame(x, y, x_title, y_title)
    if mark is not None and mark <= y.high:
        parts.append(svg.line((x.start, y.place(mark)), (x.end, y.place(mark)), "reference"))
    if at is not None:
        parts.append(svg.line((x.place(at[0]), y.start), (x.place(at[0]), y.end), "reference"))
        parts.append(svg.text((x.place(at[0]) - 5, y.end + 10), at[1], "tick end"))
    for classes, _, values in reversed(series):
        shown = evenly(values, FIGURE_POINTS)
        parts.append(svg.path([None if v is None else (x.place(r), y.place(v)) for r, v in shown], classes))
    for _, words, values in series:
        parts += svg.hover(
            [
                ((x.place(r), y.place(v)), f"{words or y_title}, {x_title} {count(r)}: {label(v)}")
                for r, v in evenly(values, HOVER_POINTS)
                if v is not None
            ]
        )
    if len(series) > 1:
        parts += svg.legend([(classes, words) for classes, words, _ in series])
    longest = max(len(values) for _, _, values in series)
    note = selection_note(min(longest, FIGURE_POINTS), longest, what, "evenly spaced")
    caption = f"{caption} {note}".strip()
    return Figure(title, svg.drawing(name, title, caption, parts), caption)
