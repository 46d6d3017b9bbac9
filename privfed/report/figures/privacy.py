"""How the promise depends on what is assumed: ε by rounds and by δ, and accuracy against ε."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privfed.audit.evidence import Accounting, SweepEvidence
from privfed.report import svg
from privfed.report.figures.base import PLOT_X, PLOT_Y, Figure, curves
from privfed.report.numbers import count, epsilon, percent, power
from privfed.report.selection import FIGURE_POINTS, evenly, selection_note, shortened

SWEEP_POINTS = 60
COLUMN = 64.0
"""Width of the column for ∞."""


def rounds_figure(accounting: Accounting, rounds: int) -> Figure:
    """ε after so many rounds, also beyond the run's end."""
    points = [(p.rounds, p.epsilon) for p in accounting.by_rounds if math.isfinite(p.epsilon)]
    return curves(
        ("fig-epsilon-rounds", "Privacy loss ε by number of rounds", "ε"),
        [("curve first", "", points)],
        "What more, or fewer, rounds would have cost with the same noise. ε grows about as the square root of the "
        f"rounds. This run ended after round {count(rounds)} (dashed).",
        "Missing: ε was not computed for other numbers of rounds.",
        epsilon,
        x_title="rounds",
        what="numbers of rounds",
        at=(rounds, "this run") if points and points[0][0] <= rounds <= points[-1][0] else None,
    )


def delta_figure(accounting: Accounting) -> Figure:
    """ε of the whole run at other δ: one curve is one guarantee."""
    title = "Privacy loss ε by δ"
    points = sorted((p.delta, p.epsilon) for p in accounting.by_delta if p.delta > 0 and math.isfinite(p.epsilon))
    if len(points) < 2:
        return Figure(title, None, "Missing: ε was not computed at other δ.")
    low = 10.0 ** math.floor(math.log10(points[0][0]) + 1e-9)
    high = 10.0 ** math.ceil(math.log10(points[-1][0]) - 1e-9)
    x = svg.log_axis(low, high, PLOT_X, power)
    x = svg.Axis(x.low, x.high, x.start, x.end, tuple(evenly(x.ticks, 5)), x.label, logarithmic=True)
    y = svg.axis(0, max(value for _, value in points), PLOT_Y, epsilon)
    parts = svg.frame(x, y, "δ", "ε")
    points = evenly(points, FIGURE_POINTS)
    places = [(x.place(delta), y.place(value)) for delta, value in points]
    parts.append(svg.path(places, "curve first"))
    own = accounting.delta
    if low <= own <= high and math.isfinite(accounting.epsilon):
        parts.append(svg.dot((x.place(own), y.place(accounting.epsilon)), "mark"))
    words = [f"δ = {power(delta)}: {epsilon(value)}" for delta, value in points]
    parts += svg.hover(list(zip(places, words, strict=True)))
    caption = (
        "The same noise, stated at another δ: a smaller δ leaves less to chance and shows a larger ε. All points "
        "of the curve hold at once; the dot is the one that is claimed."
    )
    return Figure(title, svg.drawing("fig-epsilon-delta", title, caption, parts), caption)


def trade_off_figure(sweep: SweepEvidence, own: tuple[float, float | None]) -> Figure:
    """Accuracy against ε of a sweep, with this run (its ε and accuracy) marked."""
    title = "Accuracy against privacy loss"
    points = evenly(sweep.points, SWEEP_POINTS)
    if not points:
        return Figure(title, None, "Missing: no trial of the sweep came to a result.")
    here = [own] if own[1] is not None else []
    scale = epsilon_scale([e for e, _ in [*((p.epsilon, p.accuracy) for p in points), *here]], PLOT_X)
    ends = [v for p in points for v in (p.accuracy, p.low, p.high) if v is not None] + [a for _, a in here if a]
    y = svg.axis(max(0.0, min(ends)), min(1.0, max(ends)), PLOT_Y, lambda v: percent(v, 0 if ends else 1))
    parts = [*svg.frame(scale.axis, y, "ε, logarithmic", "test accuracy"), *scale.column(y.start)]
    for point in points:
        at = (scale.place(point.epsilon), y.place(point.accuracy))
        if point.low is not None and point.high is not None:
            low, high = max(y.low, point.low), min(y.high, point.high)
            parts.append(svg.line((at[0], y.place(low)), (at[0], y.place(high)), "whisker"))
        said = f"{shortened(point.label, 80)}: {percent(point.accuracy)}, {count(point.trainings)} trainings"
        parts.append(Markup("<g>{}<title>{}</title></g>").format(svg.dot(at, "mark"), said))
    for value, accuracy in here:
        at = (scale.place(value), y.place(accuracy or 0.0))
        parts += [_diamond(at), svg.text((at[0] + 10, at[1] - 8), "this run", "value small")]
    caption = (
        "Each dot is one choice of settings, with the 95 % interval over its seeds where there are several; the "
        "diamond is this run. Further left is more private, further up more accurate; ∞ is without noise. "
        f"{selection_note(len(points), len(sweep.points), 'points', 'evenly spaced')}"
    ).strip()
    return Figure(title, svg.drawing("fig-trade-off", title, caption, parts), caption)


@dataclass(frozen=True)
class EpsilonScale:
    """An axis of log10(ε) that ends in a column for ∞.

    Attributes:
        axis: Over the finite values.
        infinity: Pixel of ∞.
        end: Last pixel of its column.
    """

    axis: svg.Axis
    infinity: float
    end: float

    def place(self, value: float) -> float:
        """Pixel of an ε."""
        return self.axis.place(math.log10(value)) if 0 < value < math.inf else self.infinity

    def column(self, foot: float) -> list[Markup]:
        """The place of ∞, behind a gap in the axis at the height ``foot``."""
        return [
            svg.line((self.axis.end + 12, foot), (self.end, foot), "axis"),
            svg.text((self.infinity, foot + 18), "∞", "tick mid"),
        ]


def epsilon_scale(values: Sequence[float], span: tuple[float, float]) -> EpsilonScale:
    """A scale with some room around the finite ones of ``values``."""
    logs = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    low, high = min(logs) - 0.15, max(logs) + 0.15
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[float] = []
    for factors in ((1, 2, 3, 5), (1, 3), (1,)):
        ticks = [math.log10(f) + d for d in decades for f in factors if low <= math.log10(f) + d <= high]
        if len(ticks) <= 7:
            break
    right = span[1] - COLUMN
    axis = svg.Axis(low, high, span[0], right, tuple(ticks), lambda tick: f"{10**tick:.3g}")
    return EpsilonScale(axis, right + COLUMN / 2 + 6, span[1])


def _diamond(at: svg.Point) -> Markup:
    x, y = at
    return svg.path([(x, y - 8), (x + 8, y), (x, y + 8), (x - 8, y), (x, y - 8)], "own")
