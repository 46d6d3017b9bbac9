"""The little of SVG that the figures need: an axis with round ticks, a plot's frame, lines, marks and a legend.

Colours and line styles are classes of the page's style sheet, so that dark mode and print have their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 460.0, 268.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 40.0, 44.0
LEGEND_ROW = 20.0
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``, with ticks at round numbers.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Pixel.
        end: Pixel; below ``start`` on an upward axis.
        ticks: Values.
        label: What a tick says.
        logarithmic: Whether equal ratios, and not equal differences, are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def axis(
    low: float,
    high: float,
    span: tuple[float, float],
    label: Callable[[float], str],
    *,
    whole: bool = False,
    tight: bool = False,
) -> Axis:
    """An axis over at least ``low`` to ``high``.

    Args:
        low: Smallest value shown.
        high: Largest value shown.
        span: First and last pixel.
        label: What a tick says.
        whole: Ticks at whole numbers only.
        tight: End the axis at the values rather than at the next ticks.
    """
    if not high - low > max(1e-9 * abs(high), 1e-300):
        # One value, or as good as one: it stands in the middle of whole numbers, else at the foot.
        low, high = (low - 1, high + 1) if whole else (low, max(low + 1, high))
    step = round_step((high - low) / 5)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9) if tight else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if tight else math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
    if not tight:
        low, high = ticks[0], ticks[-1]
    return Axis(low, high, span[0], span[1], ticks, label)


def log_axis(low: float, high: float, span: tuple[float, float], label: Callable[[float], str]) -> Axis:
    """An axis in decades, from one power of ten to another."""
    first, last = round(math.log10(low)), round(math.log10(high))
    ticks = tuple(10.0**power for power in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], span[0], span[1], ticks, label, logarithmic=True)


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of ten that is not below ``rough``."""
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))


def drawing(
    name: str,
    title: str,
    description: str,
    parts: Iterable[Markup],
    height: float = HEIGHT,
    width: float = WIDTH,
) -> Markup:
    """An SVG element, read out as ``title`` and ``description``; ``name`` is unique on the page."""
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d">'
        '<title id="{}-t">{}</title><desc id="{}-d">{}</desc>{}</svg>'
    ).format(_n(width), _n(height), name, name, name, title, name, description, Markup("").join(parts))


def frame(x: Axis, y: Axis, x_title: str, y_title: str) -> list[Markup]:
    """Grid lines, tick labels and titles of a plot with both axes."""
    parts = []
    for tick in y.ticks:
        height = y.place(tick)
        parts += [
            line((x.start, height), (x.end, height), "grid"),
            text((x.start - 8, height + 4), y.label(tick), "tick end"),
        ]
    for tick in x.ticks:
        place = x.place(tick)
        parts += [
            line((place, y.start), (place, y.start + 4), "axis"),
            text((place, y.start + 18), x.label(tick), "tick mid"),
        ]
    parts += [
        line((x.start, y.start), (x.end, y.start), "axis"),
        text(((x.start + x.end) / 2, y.start + 36), x_title, "tick mid"),
        text((2, 14), y_title, "tick"),
    ]
    return parts


def line(start: Point, end: Point, classes: str) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        classes, _n(start[0]), _n(start[1]), _n(end[0]), _n(end[1])
    )


def path(points: Sequence[Point | None], classes: str) -> Markup:
    """A line through points, broken at each ``None``; a point between two breaks becomes a dot."""
    commands, start = [], True
    for here, after in zip(points, [*points[1:], None], strict=True):
        if here is None:
            start = True
            continue
        commands.append(f"{'M' if start else 'L'}{_n(here[0])} {_n(here[1])}")
        if start and after is None:
            commands.append("h0")
        start = False
    return Markup('<path class="{}" d="{}"/>').format(classes, "".join(commands))


def rectangle(corner: Point, size: Point, classes: str) -> Markup:
    """A rectangle from its upper left corner."""
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        classes, _n(corner[0]), _n(corner[1]), _n(max(0.0, size[0])), _n(size[1])
    )


def dot(centre: Point, classes: str, radius: float = 4.5) -> Markup:
    """A filled circle."""
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(
        classes, _n(centre[0]), _n(centre[1]), _n(radius)
    )


def hover(marks: Sequence[tuple[Point, str]]) -> list[Markup]:
    """Places that show themselves, and their words, when they are pointed at."""
    return [
        Markup('<circle class="hover" cx="{}" cy="{}" r="6"><title>{}</title></circle>').format(
            _n(place[0]), _n(place[1]), words
        )
        for place, words in marks
    ]


def hover_area(corner: Point, size: Point, words: str) -> Markup:
    """A rectangle that shows itself, and its words, when it is pointed at."""
    return Markup("<g>{}<title>{}</title></g>").format(rectangle(corner, size, "hover area"), words)


def text(place: Point, words: str, classes: str) -> Markup:
    """One line of text; the classes say how it is aligned."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(classes, _n(place[0]), _n(place[1]), words)


def legend(entries: Sequence[tuple[str, str]], y: float = 14, left: float = LEFT + 62) -> list[Markup]:
    """Line samples with their names, in rows; each entry is ``(classes, name)``."""
    parts = []
    for (classes, name), (x, row) in zip(entries, _places(entries, left), strict=True):
        height = y + row * LEGEND_ROW
        parts += [line((x, height - 4), (x + 26, height - 4), classes), text((x + 32, height), name, "tick")]
    return parts


def legend_height(entries: Sequence[tuple[str, str]], left: float) -> float:
    """Of the rows of a ``legend``."""
    return LEGEND_ROW * (1 + max((row for _, row in _places(entries, left)), default=-1))


def _places(entries: Sequence[tuple[str, str]], left: float) -> list[tuple[float, int]]:
    """Left end and row of each entry."""
    places, x, row = [], left, 0
    for _, name in entries:
        if x > left and x + 32 + 8 * len(name) > WIDTH:
            x, row = left, row + 1
        places.append((x, row))
        x += 46 + 8 * len(name)
    return places


def _n(value: float) -> str:
    """Coordinates to a tenth of a pixel keep pages small."""
    return f"{value:.1f}".removesuffix(".0")
