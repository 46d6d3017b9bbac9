"""The trade-off curve: accuracy against ε on a logarithmic axis that ends in a column for ∞."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privfed.report import svg
from privfed.report.numbers import percent
from privfed.sweep.page.curves import Curve, Point, baseline_curves, curves, log_axis
from privfed.sweep.record import Sweep, in_words
from privfed.sweep.statistics import Summary

WIDTH, HEIGHT = 960.0, 460.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 34.0, 52.0
COLUMN = 120.0
"""Width of the column for ∞."""
DODGE = 9.0
"""Lines stand this far beside each other at ∞, so that their intervals can be told apart."""


@dataclass(frozen=True)
class TradeOff:
    """The figure, or the words for why there is none.

    Attributes:
        title: Heading.
        drawing: Inline SVG; ``None`` when there is nothing to draw.
        caption: How to read it.
        legend: A drawn sample of each line, and its name.
    """

    title: str
    drawing: Markup | None
    caption: str
    legend: tuple[tuple[Markup, str], ...] = ()


def trade_off(sweep: Sweep) -> TradeOff:
    """Test accuracy against ε: one line for each combination of what was varied besides the noise."""
    title = "Accuracy against privacy loss"
    lines, total = curves(sweep, words_of)
    others = baseline_curves(sweep)
    if not lines:
        return TradeOff(title, None, "Nothing to draw: no trial has come to a result.")
    points = [point for line in (*lines, *others) for point in line.points]
    finite = [point.epsilon for point in points if 0 < point.epsilon < math.inf]
    endless = len(finite) < len(points)
    right = WIDTH - RIGHT - (COLUMN if endless and finite else 0)
    x = log_axis(finite, (LEFT, right))
    shown = [value for point in points for value in (*point.single, point.accuracy)]
    y = svg.axis(min(shown), max(shown), (HEIGHT - BOTTOM, TOP), lambda v: percent(v, _places(shown)))
    column = (right + WIDTH - RIGHT) / 2 if finite else (LEFT + WIDTH - RIGHT) / 2
    parts = [_clip(y), *_grid(x, y, column if endless else None, bool(finite))]
    for index, line in enumerate(others):
        parts.append(_baseline(line, x, y, column, index))
    # Bands first: a line is not to vanish under another one's band.
    placed = [
        (number, [(_place(p, x, column + DODGE * (number - (len(lines) - 1) / 2)), p) for p in line.points])
        for number, line in enumerate(lines)
    ]
    parts += [_band(points_of, y, number) for number, points_of in placed]
    parts += [_line(points_of, y, number) for number, points_of in placed]
    caption = _caption(sweep, total, len(lines), y.low > 0, bool(others))
    said = "; ".join(point.words for line in lines for point in line.points)
    legend = [(_sample(number), line.label) for number, line in enumerate(lines)]
    legend += [(_baseline_sample(index), f"{line.label} (baseline)") for index, line in enumerate(others)]
    drawn = svg.drawing("fig-trade-off", title, f"{caption} {said}", parts, HEIGHT, WIDTH)
    return TradeOff(title, drawn, caption, tuple(legend))


def words_of(summary: Summary) -> str:
    """One combination, its accuracy and its interval in words; ε follows in the table with all it depends on."""
    accuracy = summary.accuracy
    half = accuracy.half_width
    spread = "one seed" if half is None else f"± {percent(half, 2)} (95 %, n = {accuracy.n})"
    return f"{in_words(summary.values) or 'as configured'}: {percent(accuracy.value, 2)}, {spread}"


def _grid(x: svg.Axis, y: svg.Axis, column: float | None, finite: bool) -> list[Markup]:
    """Grid, ticks and titles; at ``column`` the place of ∞ behind a break of the axis."""
    end = WIDTH - RIGHT
    parts = []
    for tick in y.ticks:
        height = y.place(tick)
        parts += [
            svg.line((LEFT, height), (end, height), "grid"),
            svg.text((LEFT - 8, height + 4), y.label(tick), "tick end"),
        ]
    if finite:
        parts.append(svg.line((x.start, y.start), (x.end, y.start), "axis"))
        for tick in x.ticks:
            place = x.place(tick)
            parts += [
                svg.line((place, y.start), (place, y.start + 5), "axis"),
                svg.text((place, y.start + 20), x.label(tick), "tick mid"),
            ]
    if column is not None:
        start = x.end + 14 if finite else LEFT
        parts += [
            svg.line((start, y.start), (end, y.start), "axis"),
            svg.line((column, y.start), (column, y.start + 5), "axis"),
            svg.text((column, y.start + 21), "∞", "tick mid infinity"),
        ]
        if finite:
            parts += [
                svg.line((place - 3, y.start + 6), (place + 3, y.start - 6), "axis")
                for place in (x.end + 1, start - 1)
            ]
            parts.append(svg.line((x.end + 7, y.start - 10), (x.end + 7, y.end), "reference"))
    middle = (x.start + x.end) / 2 if finite else column or 0
    parts += [
        svg.text((middle, y.start + 42), "ε, logarithmic: smaller is more private" if finite else "ε", "tick mid"),
        svg.text((2, 16), "test accuracy on held-out examples", "tick"),
    ]
    return parts


def _band(points: Sequence[tuple[float, Point]], y: svg.Axis, number: int) -> Markup:
    """The interval: a band over neighbouring finite ε, bars where a point stands alone."""
    known = [(x, p) for x, p in points if p.low is not None and p.high is not None]
    line = [(x, p) for x, p in known if math.isfinite(p.epsilon)]
    parts = []
    if len(line) > 1:
        outline = [(x, y.place(p.high or 0)) for x, p in line]
        outline += [(x, y.place(p.low or 0)) for x, p in reversed(line)]
        parts.append(svg.path(outline, f"band s{number}"))
    alone = [pair for pair in known if pair not in line or len(line) == 1]
    for x, point in alone:
        low, high = y.place(point.low or 0), y.place(point.high or 0)
        parts.append(svg.line((x, low), (x, high), f"whisker s{number}"))
    return Markup('<g clip-path="url(#plot-area)">{}</g>').format(Markup("").join(parts))


def _line(points: Sequence[tuple[float, Point]], y: svg.Axis, number: int) -> Markup:
    """Each seed as a small dot, the means as a line with marks; a dotted line leads on to ∞."""
    finite = [(x, y.place(p.accuracy)) for x, p in points if math.isfinite(p.epsilon)]
    endless = [(x, y.place(p.accuracy)) for x, p in points if math.isinf(p.epsilon)]
    parts = [svg.dot((x, y.place(one)), f"seed s{number}", 2.2) for x, p in points for one in p.single]
    if len(finite) > 1:
        parts.append(svg.path(finite, f"curve s{number}"))
    if finite and endless:
        parts.append(svg.path([finite[-1], endless[0]], f"beyond s{number}"))
    for x, point in points:
        mark = _mark((x, y.place(point.accuracy)), number)
        parts.append(Markup("<g>{}<title>{}</title></g>").format(mark, point.words))
    return Markup("<g>{}</g>").format(Markup("").join(parts))


def _baseline(line: Curve, x: svg.Axis, y: svg.Axis, column: float, index: int) -> Markup:
    places = [(_place(point, x, column - 30), y.place(point.accuracy)) for point in line.points]
    marks = [svg.rectangle((px - 3, py - 3), (6, 6), "other") for px, py in places]
    return Markup("<g><title>{}</title>{}{}</g>").format(
        f"{line.label} (baseline)",
        svg.path(places, f"curve baseline b{index % 3}"),
        Markup("").join(marks),
    )


def _place(point: Point, x: svg.Axis, column: float) -> float:
    return x.place(math.log10(point.epsilon)) if 0 < point.epsilon < math.inf else column


def _mark(at: svg.Point, number: int) -> Markup:
    """Six shapes, so that lines can be told apart without colour."""
    x, y = at
    classes, size = f"mark s{number}", 5.5
    if number == 0:
        return svg.dot(at, classes, 5)
    if number == 1:
        return svg.rectangle((x - 4.6, y - 4.6), (9.2, 9.2), classes)
    corners = {
        2: [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        3: [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        4: [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
        5: [(-0.5, -1.1), (0.5, -1.1), (1.2, 0), (0.5, 1.1), (-0.5, 1.1), (-1.2, 0)],
    }[number]
    return svg.path([(x + dx * size, y + dy * size) for dx, dy in (*corners, corners[0])], classes)


def _sample(number: int) -> Markup:
    """A line with its mark, for the legend."""
    return Markup('<svg class="plot sample" viewBox="0 0 40 16" aria-hidden="true">{}{}</svg>').format(
        svg.line((1, 8), (39, 8), f"curve s{number}"), _mark((20, 8), number)
    )


def _baseline_sample(index: int) -> Markup:
    return Markup('<svg class="plot sample" viewBox="0 0 40 16" aria-hidden="true">{}{}</svg>').format(
        svg.line((1, 8), (39, 8), f"curve baseline b{index % 3}"), svg.rectangle((17, 5), (6, 6), "other")
    )


def _clip(y: svg.Axis) -> Markup:
    area = svg.rectangle((LEFT, y.end), (WIDTH - RIGHT - LEFT, y.start - y.end), "")
    return Markup('<defs><clipPath id="plot-area">{}</clipPath></defs>').format(area)


def _places(shown: Sequence[float]) -> int:
    """Decimal places of the accuracy axis' labels."""
    return 0 if max(shown) - min(shown) >= 0.05 else 1


def _caption(sweep: Sweep, total: int, drawn: int, cut: bool, baseline: bool) -> str:
    parts = []
    if any(summary.accuracy.n > 1 for summary in sweep.summaries):
        counts = sorted({summary.accuracy.n for summary in sweep.summaries})
        n = f"n = {counts[0]}" if len(counts) == 1 else f"n from {counts[0]} to {counts[-1]}"
        parts.append(
            f"Marks are means over seeds ({n}), small dots the seeds. Bands and bars are 95 % t-intervals for the "
            "mean over seeds on this population; where they leave the plot they are cut off."
        )
    else:
        parts.append("Each mark is one training: how much seeds differ is not known (--seeds tells).")
    if any(math.isinf(e) for e in (s.epsilon.get(sweep.observer, math.inf) for s in sweep.summaries)):
        parts.append("∞ is training without noise, or with noise that does not protect against this observer.")
    if cut:
        parts.append("The accuracy axis does not begin at 0.")
    if baseline:
        parts.append("Dashed grey: the baseline, as given; its ε need not mean the same.")
    if drawn < total:
        parts.append(f"Drawn: {drawn} of {total} lines, those that reach highest; the table has all trials.")
    return " ".join(parts)
