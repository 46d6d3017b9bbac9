"""What was measured against the promise: membership's ROC curves, canaries' scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from privfed.audit.evidence import CanaryObserver, Membership, MembershipAttack, MembershipClaim
from privfed.report import svg
from privfed.report.figures.base import CURVES, HOVER_POINTS, PLOT_X, PLOT_Y, Figure, slug
from privfed.report.numbers import count, epsilon, percent, words
from privfed.report.selection import FIGURE_POINTS, evenly, shortened


def membership_figures(membership: Membership) -> list[Figure]:
    """ROC curves of membership inference, one figure with linear and one with logarithmic axes for each unit."""
    found = []
    claim = max(membership.claims, key=lambda claim: claim.epsilon, default=None)
    for unit in ("example", "client"):
        attacks = [attack for attack in membership.attacks if attack.unit == unit]
        if attacks:
            said = claim if claim is not None and (claim.unit, unit) != ("example", "client") else None
            found += [_roc(unit, attacks, said), _log_roc(unit, attacks, said)]
    return found


def allowed(fpr: float, claim: MembershipClaim) -> float:
    """The largest share of members that may be found at this rate of false alarms under the claim."""
    lifted = math.exp(min(claim.epsilon, 700.0)) * fpr + claim.delta
    return min(1.0, lifted, 1 - math.exp(-claim.epsilon) * (1 - claim.delta - fpr))


def _roc(unit: str, attacks: Sequence[MembershipAttack], claim: MembershipClaim | None) -> Figure:
    x = svg.axis(0, 1, PLOT_X, lambda v: percent(v, 0))
    y = svg.axis(0, 1, PLOT_Y, lambda v: percent(v, 0))
    best = max(attacks, key=lambda attack: attack.auc)
    caption = (
        "On the dashed diagonal, whoever guesses from the released model who took part does as well as by tossing "
        f"a coin. Largest area under a curve: {best.auc:.3f} ({words(best.method)}); a coin reaches 0.5."
    )
    if claim is not None:
        caption += (
            " The broad pale line is the most that the claim allows anybody: e^ε of the false alarms, plus δ."
        )
    names = (f"fig-roc-{unit}", f"Which {unit}s were trained on", caption)
    return _roc_figure(names, x, y, attacks, (0.0, 1.0), claim)


def _log_roc(unit: str, attacks: Sequence[MembershipAttack], claim: MembershipClaim | None) -> Figure:
    title = f"Which {unit}s, with few false alarms"
    # One decade more than the non-members resolve would show a single false alarm's worth of chance.
    low = 10.0 ** math.floor(-math.log10(max(2, min(attack.non_members for attack in attacks))))
    x, y = (svg.log_axis(low, 1, span, _log_percent) for span in (PLOT_X, PLOT_Y))
    caption = (
        "The same curves on logarithmic axes. What lies above the diagonal at the left is found with hardly any "
        "false alarm: the few people that an average over everybody hides."
    )
    return _roc_figure((f"fig-roc-{unit}-log", title, caption), x, y, attacks, (low, 1.0), claim)


def _roc_figure(
    names: tuple[str, str, str],
    x: svg.Axis,
    y: svg.Axis,
    attacks: Sequence[MembershipAttack],
    diagonal: tuple[float, float],
    claim: MembershipClaim | None,
) -> Figure:
    """One curve a method, and what the claim allows; ``names`` are the id, the title and the caption."""
    name, title, caption = names
    parts = svg.frame(x, y, "non-members taken for members", "members found")
    ends = [(x.place(value), y.place(value)) for value in diagonal]
    parts.append(svg.line(ends[0], ends[1], "reference"))
    low = diagonal[0]
    entries = [(classes, words(attack.method)) for classes, attack in zip(CURVES, attacks, strict=False)]
    if claim is not None:
        steps = [i / FIGURE_POINTS for i in range(FIGURE_POINTS + 1)]
        rates = [low ** (1 - step) for step in steps] if low else steps
        bound = [(x.place(rate), y.place(max(allowed(rate, claim), low))) for rate in rates]
        parts.append(svg.path(bound, "allowed"))
        entries.append(("allowed", f"most at ε = {epsilon(claim.epsilon)}"))
    for classes, attack in zip(CURVES, attacks, strict=False):
        places = [
            (x.place(max(fpr, low)), y.place(max(tpr, low)))
            for fpr, tpr in evenly(attack.roc, FIGURE_POINTS)
            if fpr >= low
        ]
        parts.append(svg.path(places, classes))
    for attack in attacks[: len(CURVES)]:
        known = [(fpr, tpr) for fpr, tpr in evenly(attack.roc, HOVER_POINTS) if fpr >= low]
        parts += svg.hover(
            [_hover((x, y), (max(f, low), max(t, low)), (f, t), words(attack.method)) for f, t in known]
        )
    parts += svg.legend(entries, y=y.start + 58, left=2)
    height = svg.HEIGHT + 4 + svg.legend_height(entries, 2)
    return Figure(title, svg.drawing(name, title, caption, parts, height), caption)


def _hover(axes: tuple[svg.Axis, svg.Axis], at: svg.Point, rates: svg.Point, name: str) -> tuple[svg.Point, str]:
    """A place on a ROC curve and its words."""
    x, y = axes
    return (
        x.place(at[0]),
        y.place(at[1]),
    ), f"{name}: {percent(rates[1])} found at {percent(rates[0])} false alarms"


def _log_percent(value: float) -> str:
    return f"{100 * value:g} %".replace(" ", "\u00a0")


def canary_figure(seen: CanaryObserver) -> Figure:
    """Histogram of the scores of canaries that took part over that of those that did not."""
    title = f"Canaries' scores: {shortened(seen.observer, 40)}"
    if seen.histogram_low is None or seen.histogram_high is None or not seen.present:
        return Figure(title, None, "Missing: the canaries' scores are not known.")
    bins, most = len(seen.present), max((*seen.present, *seen.absent, 1))
    x = svg.axis(seen.histogram_low, seen.histogram_high, PLOT_X, lambda v: f"{v:g}", tight=True)
    y = svg.axis(0, most, PLOT_Y, count, whole=True)
    parts = svg.frame(x, y, "score", "canaries")
    for classes, values in (("curve second", seen.absent), ("curve first", seen.present)):
        steps: list[tuple[float, float] | None] = []
        for i, value in enumerate(values):
            edges = ((x.end - x.start) * i / bins + x.start, (x.end - x.start) * (i + 1) / bins + x.start)
            steps += [(edge, y.place(value)) for edge in edges]
        parts.append(svg.path(steps, classes))
    width, low, high = (x.end - x.start) / bins, seen.histogram_low, seen.histogram_high
    for i, (there, absent) in enumerate(zip(seen.present, seen.absent, strict=True)):
        if there or absent:
            ends = [f"{low + (high - low) * edge / bins:.3g}" for edge in (i, i + 1)]
            said = f"{ends[0]} to {ends[1]}: {count(there)} took part, {count(absent)} did not"
            foot = y.place(max(there, absent))
            parts.append(svg.hover_area((x.start + width * i, foot), (width, y.start - foot), said))
    parts += svg.legend((("curve first", "took part"), ("curve second", "did not")))
    caption = (
        f"Scored on: {shortened(seen.sees, 120)}. The further the two lie apart, the surer this observer is of "
        f"who took part: {count(seen.right)} of {count(seen.guesses)} guesses were right."
    )
    return Figure(title, svg.drawing(f"fig-canaries-{slug(seen.observer)}", title, caption, parts), caption)


def canary_roc_figure(canaries: Sequence[CanaryObserver]) -> Figure:
    """How well the scores of each view tell canaries that took part from those that did not."""
    title = "Telling canaries apart"
    known = [seen for seen in canaries if seen.roc][: len(CURVES)]
    if not known:
        return Figure(title, None, "Missing: the canaries' scores are not known.")
    x, y = (svg.axis(0, 1, span, lambda v: percent(v, 0)) for span in (PLOT_X, PLOT_Y))
    parts = svg.frame(x, y, "absent canaries taken for present", "present canaries found")
    parts.append(svg.line((x.place(0), y.place(0)), (x.place(1), y.place(1)), "reference"))
    for classes, seen in zip(CURVES, known, strict=False):
        parts.append(svg.path([(x.place(f), y.place(t)) for f, t in evenly(seen.roc, FIGURE_POINTS)], classes))
    for seen in known:
        name, some = shortened(seen.observer, 24), evenly(seen.roc, HOVER_POINTS)
        parts += svg.hover([_hover((x, y), point, point, name) for point in some])
    names = [shortened(seen.observer, 24) for seen in known]
    entries = list(zip(CURVES, names, strict=False))
    parts += svg.legend(entries, y=y.start + 58, left=2)
    height = svg.HEIGHT + 4 + svg.legend_height(entries, 2)
    caption = (
        "On the dashed diagonal an observer's scores say nothing about who took part; in the upper left corner "
        "they say everything. What is promised bounds how far a curve may leave the diagonal."
    )
    return Figure(title, svg.drawing("fig-canaries-roc", title, caption, parts, height), caption)
