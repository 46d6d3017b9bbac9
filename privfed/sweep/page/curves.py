"""Which points make up a line of the trade-off curve, and where they lie on an axis that ends in ∞."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from privfed.report.svg import Axis
from privfed.sweep.record import Sweep, in_words
from privfed.sweep.statistics import Summary

NOISE_KEYS = ("privacy.epsilon", "privacy.noise_multiplier", "privacy.max_epsilon")
"""Keys that move a trial along its line; every other key makes another line."""
MOST_LINES = 6
LABEL_WIDTH = 44.0
"""Pixels that a tick's label needs."""


@dataclass(frozen=True)
class Curve:
    """One line of the figure, or one of the baseline's.

    Attributes:
        label: In the legend.
        points: Rising in ε, the last one or more at ∞: ε and what is drawn there.
    """

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Point:
    """One place on a line.

    Attributes:
        epsilon: Largest over the seeds; may be infinite.
        accuracy: Mean over the seeds.
        low: Lower end of the interval; ``None`` for a single seed.
        high: Upper end.
        single: Each seed's accuracy.
        words: Read out, and shown when pointed at.
    """

    epsilon: float
    accuracy: float
    low: float | None = None
    high: float | None = None
    single: tuple[float, ...] = ()
    words: str = ""


def curves(sweep: Sweep, words: Callable[[Summary], str]) -> tuple[list[Curve], int]:
    """The lines of the figure, at most ``MOST_LINES``, those that reach highest, and how many there are in all."""
    lines: dict[str, list[Summary]] = {}
    for summary in sweep.summaries:
        rest = {key: value for key, value in summary.values.items() if key not in NOISE_KEYS}
        lines.setdefault(json.dumps(rest), []).append(summary)
    found = [
        Curve(
            in_words(json.loads(rest)) or "as configured",
            tuple(sorted((_point(s, sweep.observer, words(s)) for s in group), key=lambda p: p.epsilon)),
        )
        for rest, group in lines.items()
    ]
    kept = sorted(range(len(found)), key=lambda i: -max(p.accuracy for p in found[i].points))[:MOST_LINES]
    return [found[i] for i in sorted(kept)], len(found)


def baseline_curves(sweep: Sweep) -> list[Curve]:
    """The other system's lines, by label."""
    lines: dict[str, list[Point]] = {}
    for point in sweep.baseline:
        lines.setdefault(point.label, []).append(Point(point.epsilon, point.accuracy))
    return [Curve(label, tuple(sorted(ps, key=lambda p: p.epsilon))) for label, ps in lines.items()]


def log_axis(values: Sequence[float], span: tuple[float, float]) -> Axis:
    """An axis of log10(ε) over the finite ``values``, with ticks at these while they can all be labelled."""
    logs = [math.log10(value) for value in values] or [0.0]
    low, high = min(logs), max(logs)
    room = max(0.06 * (high - low), 0.08)
    low, high = low - room, high + room
    ends = span[1] - span[0]
    own = sorted({float(f"{value:.2g}") for value in values})
    places = [(math.log10(value) - low) / (high - low) * ends for value in own]
    if own and all(after - before > LABEL_WIDTH for before, after in pairwise(places)):
        ticks = [math.log10(value) for value in own]
        return Axis(low, high, span[0], span[1], tuple(ticks), lambda tick: f"{10**tick:.2g}")
    decades = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [math.log10(factor) + decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 9:
            break
    return Axis(low, high, span[0], span[1], tuple(ticks), lambda tick: f"{10**tick:.3g}")


def _point(summary: Summary, observer: str, words: str) -> Point:
    accuracy, half = summary.accuracy.value, summary.accuracy.half_width
    return Point(
        summary.epsilon.get(observer, math.inf),
        accuracy,
        None if half is None else accuracy - half,
        None if half is None else accuracy + half,
        summary.accuracies,
        words,
    )
