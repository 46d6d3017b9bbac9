"""Several runs in one figure: accuracy against ε, and what each observer got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from privfed.audit.evidence import RECOVERY_MARGIN_DB
from privfed.report import svg
from privfed.report.figures.base import Figure
from privfed.report.figures.privacy import epsilon_scale
from privfed.report.numbers import decibels, percent
from privfed.report.selection import shortened

WIDTH = 960.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 20.0, 40.0, 48.0
ROW = 46.0
SIDE = 15.0
"""Letters nearer to each other than this would lie on each other."""


def trade_off_figure(points: Sequence[tuple[str, str, float, float | None]]) -> Figure:
    """Letter, name, ε and accuracy of each run."""
    title = "Accuracy against privacy loss"
    known = [(letter, name, e, a) for letter, name, e, a in points if a is not None]
    if not known:
        return Figure(title, None, "Missing: no run has an accuracy.")
    height = 380.0
    scale = epsilon_scale([e for _, _, e, _ in known], (LEFT, WIDTH - RIGHT))
    values = [a for *_, a in known]
    y = svg.axis(max(0.0, min(values) - 0.01), min(1.0, max(values) + 0.01), (height - BOTTOM, TOP), percent)
    parts = [
        *svg.frame(scale.axis, y, "ε against the release, logarithmic", "test accuracy"),
        *scale.column(y.start),
    ]
    taken: list[svg.Point] = []
    for letter, name, value, accuracy in known:
        at = _beside((scale.place(value), y.place(accuracy)), taken)
        words = f"{letter}, {shortened(name, 80)}: {percent(accuracy)}"
        parts.append(Markup("<g>{}<title>{}</title></g>").format(svg.dot(at, "mark", 9), words))
        parts.append(svg.text((at[0], at[1] + 4), letter, "letter"))
    caption = (
        "Each letter is a run. Further left is a stronger promise, further up a better model; a run below and to "
        "the right of another one is beaten by it. ∞ is without noise against whoever sees the released model."
    )
    drawn = svg.drawing("fig-compare", title, caption, parts, height, WIDTH)
    return Figure(title, drawn, caption)


def exposure_figure(runs: Sequence[tuple[str, str, Mapping[str, float]]]) -> Figure:
    """Letter, name and margins over a guess in dB, by observer, of each run."""
    title = "What each observer got"
    observers = list(dict.fromkeys(observer for *_, margins in runs for observer in margins))
    if not observers:
        return Figure(title, None, "Missing: no attack was scored in any run.")
    values = [value for *_, margins in runs for value in margins.values()]
    bottom = TOP + ROW * len(observers)
    x = svg.axis(min(0.0, *values), max(RECOVERY_MARGIN_DB, *values), (170.0, WIDTH - RIGHT), lambda v: f"{v:g}")
    parts = [svg.line((x.place(t), TOP), (x.place(t), bottom), "grid") for t in x.ticks]
    parts += [svg.text((x.place(t), bottom + 18), x.label(t), "tick mid") for t in x.ticks]
    guess = x.place(RECOVERY_MARGIN_DB)
    parts += [
        svg.line((guess, TOP - 8), (guess, bottom), "reference"),
        svg.text((guess + 6, TOP - 12), "more than a guess", "tick"),
        svg.text(((x.start + x.end) / 2, bottom + 38), "dB over the best trivial guess", "tick mid"),
    ]
    for index, observer in enumerate(observers):
        height = TOP + ROW * (index + 0.5)
        parts += [
            svg.text((4, height + 4), shortened(observer, 24), "name"),
            svg.line((x.start, height), (x.end, height), "axis"),
        ]
        taken: list[svg.Point] = []
        for letter, name, margins in runs:
            if observer in margins:
                at = _beside((x.place(margins[observer]), height), taken)
                words = f"{letter}, {shortened(name, 80)}, {observer}: {decibels(margins[observer], signed=True)}"
                parts.append(Markup("<g>{}<title>{}</title></g>").format(svg.dot(at, "mark", 9), words))
                parts.append(svg.text((at[0], at[1] + 4), letter, "letter"))
    caption = (
        "The best attack on each observer's view of the run as configured. Right of the dashed line the observer "
        "has more of an example than somebody who saw nothing. Attacks give lower bounds: left of it is no proof."
    )
    drawn = svg.drawing("fig-exposure", title, caption, parts, bottom + 44, WIDTH)
    return Figure(title, drawn, caption)


def _beside(at: svg.Point, taken: list[svg.Point]) -> svg.Point:
    """``at``, or the next place to its right where no letter stands yet; it is taken from now on."""
    x, y = at
    while any(abs(x - there[0]) < SIDE and abs(y - there[1]) < SIDE for there in taken):
        x += SIDE
    taken.append((x, y))
    return x, y
