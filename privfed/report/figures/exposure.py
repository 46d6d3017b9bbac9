"""Who is promised what, and how near the reconstructions come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from privfed.audit.evidence import RECOVERY_MARGIN_DB, AttackEvidence, ObserverEvidence
from privfed.report import svg
from privfed.report.figures.base import Figure
from privfed.report.numbers import decibels, epsilon, percent
from privfed.report.selection import MAX_GROUPS, Group, evenly, label_groups, shortened

HATCH = Markup(
    '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path class="stripe" d="M0 0V7"/></pattern></defs>'
)


def epsilon_figure(observers: Sequence[ObserverEvidence]) -> Figure:
    """ε by observer; the page prints unit, relation, sampling and δ below it."""
    title = "Privacy loss ε by observer"
    if not observers:
        return Figure(title, None, "Missing: no guarantee was stated for any observer.")
    finite = [o.guarantee.epsilon for o in observers if math.isfinite(o.guarantee.epsilon)]
    # What is finite stays well short of ∞.
    left, right, row, top = 4.0, svg.WIDTH * (0.62 if len(finite) < len(observers) else 0.86), 44.0, 8.0
    x = svg.axis(0, max([*finite, 1e-3]), (left, right), lambda v: f"{v:g}")
    bottom = top + row * len(observers) + 4
    parts = [HATCH]
    parts += [svg.line((x.place(tick), top), (x.place(tick), bottom), "grid") for tick in x.ticks if finite]
    said = []
    for index, entry in enumerate(observers):
        value, y = entry.guarantee.epsilon, top + row * index
        endless = math.isinf(value)
        end = svg.WIDTH - 34 if endless else max(x.place(value), left + 2)
        label = "∞" if endless else epsilon(value)
        parts += [
            svg.text((left, y + 14), shortened(entry.observer, 60), "name"),
            svg.rectangle((left, y + 20), (end - left, 14), "bar endless" if endless else "bar"),
            svg.text((end + 6, y + 32), label, "value"),
        ]
        said.append(f"{entry.observer}: {label}")
    if finite:
        parts += [svg.text((x.place(t), bottom + 16), x.label(t), "tick mid") for t in x.ticks]
    caption = (
        "A shorter bar is a stronger promise. ∞ (hatched) means that nothing is promised about this observer: "
        "how much it gets is then a matter of the attacks, and of attacks to come."
    )
    described = f"{caption} {'; '.join(said)}"
    return Figure(title, svg.drawing("fig-epsilon", title, described, parts, bottom + 24), caption)


def reconstruction_figure(groups: Sequence[Group]) -> Figure:
    """PSNR of every reconstruction beside that of the best trivial guess, by observer, defence and workload."""
    title = "Reconstructions against trivial guesses"
    rows = [group for group in groups if group.scored]
    if not rows:
        return Figure(title, None, "Nothing to draw: no attack came to a reconstruction.")
    highest = max(a.psnr or 0.0 for g in rows for a in g.scored)
    said, lanes = [], []
    for group in rows:
        name = _lane_name(group.observer, group.defence, group.workload)
        margin = decibels(group.scored[0].margin_db, signed=True)
        guesses = [round(max((a.trivial_psnr or {"": 0.0}).values()), 1) for a in group.scored]
        lanes.append(Lane(name, [a.psnr or 0.0 for a in evenly(group.scored, 60)], guesses, margin))
        said.append(f"{name}: {margin} against the guess")
    caption = (
        f"A dot {RECOVERY_MARGIN_DB:g} dB or more to the right of its guess is information that the observer "
        "should not have; from about 40 dB the eye sees no difference to the original. The figure at the right is "
        "the best reconstruction less its guess."
    )
    parts, height = _lanes(
        lanes, max(highest, 20.0), "PSNR in dB: higher is closer to the original", "reconstruction"
    )
    return Figure(title, svg.drawing("fig-psnr", title, f"{caption} {'; '.join(said)}", parts, height), caption)


def label_figure(attacks: Sequence[AttackEvidence]) -> Figure | None:
    """Share of labels counted right beside the best guess; ``None`` where no attack counted any."""
    title = "Labels counted against guesses"
    said, lanes = [], []
    for (observer, defence, workload), found in list(label_groups(attacks).items())[:MAX_GROUPS]:
        scores = [a.labels for a in found if a.labels is not None]
        name, right = _lane_name(observer, defence, workload), fmean(s.overlap for s in scores)
        guesses = [round(100 * max(s.trivial.values())) for s in scores]
        shown = [100 * s.overlap for s in evenly(scores, 60)]
        lanes.append(Lane(name, shown, [float(g) for g in guesses], percent(right)))
        exact = sum(s.exact for s in scores)
        said.append(f"{name}: {percent(right)} right, all labels of {exact} of {len(scores)} vectors")
    if not lanes:
        return None
    caption = (
        "How often each label occurs among the examples behind a vector: which letters somebody writes, which "
        "diagnoses a hospital sees. At 100 % every label is right. The guess knows how frequent labels are among "
        "held-out examples, or takes them all for equally frequent. The figure at the right is the mean. Labels "
        "of many clients together are near to what everybody can guess."
    )
    parts, height = _lanes(lanes, 100.0, "labels that are right, in %", "one vector")
    return Figure(title, svg.drawing("fig-labels", title, f"{caption} {'; '.join(said)}", parts, height), caption)


def _lane_name(observer: str, defence: str, workload: str) -> str:
    return f"{observer}, {'no defence' if defence == 'none' else defence}: {workload}"


@dataclass(frozen=True)
class Lane:
    """One line of dots.

    Attributes:
        name: Above it.
        dots: Where.
        guesses: Where a guess comes to.
        end: At its right.
    """

    name: str
    dots: Sequence[float]
    guesses: Sequence[float]
    end: str


def _lanes(lanes: Sequence[Lane], highest: float, axis: str, dot: str) -> tuple[list[Markup], float]:
    """What to draw, and how high it is."""
    left, right, row, top = 8.0, svg.WIDTH - 84, 40.0, 32.0
    x = svg.axis(0, highest, (left, right), lambda v: f"{v:g}")
    bottom = top + row * len(lanes) + 6
    parts = [svg.line((x.place(tick), top), (x.place(tick), bottom), "grid") for tick in x.ticks]
    parts += [svg.text((x.place(tick), bottom + 16), x.label(tick), "tick mid") for tick in x.ticks]
    parts.append(svg.text(((left + right) / 2, bottom + 34), axis, "tick mid"))
    parts += [svg.dot((14, 12), "mark"), svg.text((24, 16), dot, "tick")]
    parts += [svg.line((150, 5), (150, 19), "guess"), svg.text((158, 16), "best trivial guess", "tick")]
    for index, lane in enumerate(lanes):
        y = top + row * index
        parts.append(svg.text((left, y + 14), shortened(lane.name, 56), "name small"))
        parts.append(svg.line((left, y + 27), (right, y + 27), "axis"))
        parts += [
            svg.line((x.place(guess), y + 20), (x.place(guess), y + 34), "guess")
            for guess in sorted(set(lane.guesses))
        ]
        parts += [svg.dot((x.place(dot), y + 27), "mark") for dot in lane.dots]
        parts.append(svg.text((right + 8, y + 31), lane.end, "value small"))
    return parts, bottom + 42
