"""The report's figures: pure functions from evidence to inline SVG, each with what to conclude from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privfed.audit.evidence import (
    RECOVERY_MARGIN_DB,
    Accuracy,
    AccuracyPoint,
    CanaryObserver,
    Membership,
    MembershipAttack,
    ObserverEvidence,
    RoundEvidence,
)
from privfed.report import svg
from privfed.report.numbers import count, decibels, epsilon, percent, points, ratio, words
from privfed.report.selection import FIGURE_POINTS, Group, evenly, selection_note, shortened

HATCH = Markup(
    '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path class="stripe" d="M0 0V7"/></pattern></defs>'
)
PLOT_X = (svg.LEFT, svg.WIDTH - svg.RIGHT)
PLOT_Y = (svg.HEIGHT - svg.BOTTOM, svg.TOP)
CURVES = ("curve first", "curve second", "curve third", "curve fourth", "curve fifth")
"""Told apart by their dashes too: pages are printed without colour."""


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


def accuracy_figure(accuracy: Accuracy) -> Figure:
    """Test accuracy by round, as configured and without protection."""
    title = "Test accuracy by round"
    with_it = [(p.round, p.test_accuracy) for p in _measured(accuracy.protected)]
    without = [(p.round, p.test_accuracy) for p in _measured(accuracy.unprotected)]
    if not with_it and not without:
        return Figure(title, None, "Missing: accuracy was not measured in this run.")
    rounds = [number for number, _ in with_it + without]
    x = svg.axis(min(rounds), max(rounds), PLOT_X, count, whole=True, tight=True)
    y = svg.axis(0, 1, PLOT_Y, lambda v: percent(v, 0))
    parts = svg.frame(x, y, "round", "accuracy")
    entries: list[tuple[str, str]] = []
    for classes, name, series in (
        ("curve second", "without protection", without),
        ("curve first", "as configured", with_it),
    ):
        if series:
            places = [(x.place(r), y.place(a)) for r, a in evenly(series, FIGURE_POINTS) if a is not None]
            parts.append(svg.path(places, classes))
            entries.insert(0, (classes, name))
    notes = [_accuracy_words(accuracy)]
    longest = max(len(with_it), len(without))
    notes.append(selection_note(min(longest, FIGURE_POINTS), longest, "rounds", "evenly spaced"))
    caption = " ".join(filter(None, notes))
    return Figure(title, svg.drawing("fig-accuracy", title, caption, parts + svg.legend(entries)), caption)


def clipping_figure(rounds: Sequence[RoundEvidence]) -> Figure:
    """Share of updates that were clipped, by round."""
    words = (
        "of the updates were longer than the clip norm. Near 0 % the norm is loose, and more noise is added than "
        "need be; near 100 % it shortens almost everything that clients send."
    )
    values = [(r.round, r.clipped_fraction) for r in rounds]
    known = [value for _, value in values if value is not None]
    caption = f"In the last round measured, {percent(known[-1], 0)} {words}" if known else ""
    return _round_figure(
        ("fig-clipped", "Clipped updates by round", "share"),
        values,
        caption,
        "Missing: no update was clipped or none was measured.",
        lambda v: percent(v, 0),
        top=1.0,
    )


def noise_figure(rounds: Sequence[RoundEvidence]) -> Figure:
    """Signal-to-noise ratio of the noised sum, by round."""
    values = [(r.round, r.signal_to_noise) for r in rounds]
    infinite = sum(1 for _, value in values if value is not None and math.isinf(value))
    finite = [(n, None if value is None or math.isinf(value) else value) for n, value in values]
    caption = (
        "Length of the sum over the expected length of its noise. Below 1 (dashed) a round's noise is longer than "
        "what it hides; training still gets on, because noise averages out over rounds and signal adds up."
    )
    if infinite:
        caption += f" Not drawn: {count(infinite)} rounds without noise, where the ratio is ∞."
    return _round_figure(
        ("fig-noise", "Signal-to-noise by round", "ratio"),
        finite,
        caption,
        "Nothing to draw: no noise was added in any round, so the ratio is ∞."
        if infinite
        else "Missing: the signal-to-noise ratio was not measured.",
        ratio,
        mark=1.0,
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
    left, right, row, top = 8.0, svg.WIDTH - 84, 40.0, 32.0
    x = svg.axis(0, max(highest, 20.0), (left, right), lambda v: f"{v:g}")
    bottom = top + row * len(rows) + 6
    parts = [svg.line((x.place(tick), top), (x.place(tick), bottom), "grid") for tick in x.ticks]
    parts += [svg.text((x.place(tick), bottom + 16), x.label(tick), "tick mid") for tick in x.ticks]
    parts.append(
        svg.text(((left + right) / 2, bottom + 34), "PSNR in dB: higher is closer to the original", "tick mid")
    )
    parts += [svg.dot((14, 12), "mark"), svg.text((24, 16), "reconstruction", "tick")]
    parts += [svg.line((150, 5), (150, 19), "guess"), svg.text((158, 16), "best trivial guess", "tick")]
    said = []
    for index, group in enumerate(rows):
        y = top + row * index
        best = group.scored[0]
        defence = "no defence" if group.defence == "none" else group.defence
        name = f"{group.observer}, {defence}: {group.workload}"
        parts.append(svg.text((left, y + 14), shortened(name, 64), "name small"))
        parts.append(svg.line((left, y + 27), (right, y + 27), "axis"))
        for guess in sorted({round(max((a.trivial_psnr or {"": 0.0}).values()), 1) for a in group.scored}):
            parts.append(svg.line((x.place(guess), y + 20), (x.place(guess), y + 34), "guess"))
        parts += [svg.dot((x.place(a.psnr or 0.0), y + 27), "mark") for a in evenly(group.scored, 60)]
        margin = decibels(best.margin_db, signed=True)
        parts.append(svg.text((right + 8, y + 31), margin, "value small"))
        said.append(f"{name}: {margin} against the guess")
    caption = (
        f"A dot {RECOVERY_MARGIN_DB:g} dB or more to the right of its guess is information that the observer "
        "should not have; from about 40 dB the eye sees no difference to the original. The figure at the right is "
        "the best reconstruction less its guess."
    )
    drawn = svg.drawing("fig-psnr", title, f"{caption} {'; '.join(said)}", parts, bottom + 42)
    return Figure(title, drawn, caption)


def membership_figures(membership: Membership) -> list[Figure]:
    """ROC curves of membership inference, one figure with linear and one with logarithmic axes for each unit."""
    found = []
    for unit in ("example", "client"):
        attacks = [attack for attack in membership.attacks if attack.unit == unit]
        if attacks:
            found += [_roc(f"Which {unit}s were trained on", f"fig-roc-{unit}", attacks), _log_roc(unit, attacks)]
    return found


def _roc(title: str, name: str, attacks: Sequence[MembershipAttack]) -> Figure:
    x = svg.axis(0, 1, PLOT_X, lambda v: percent(v, 0))
    y = svg.axis(0, 1, PLOT_Y, lambda v: percent(v, 0))
    best = max(attacks, key=lambda attack: attack.auc)
    caption = (
        "On the dashed diagonal, whoever guesses from the released model who took part does as well as by tossing "
        f"a coin. Largest area under a curve: {best.auc:.3f} ({words(best.method)}); a coin reaches 0.5."
    )
    return _roc_figure((name, title, caption), x, y, attacks, (0.0, 1.0))


def _log_roc(unit: str, attacks: Sequence[MembershipAttack]) -> Figure:
    title = f"Which {unit}s, with few false alarms"
    # One decade more than the non-members resolve would show a single false alarm's worth of chance.
    low = 10.0 ** math.floor(-math.log10(max(2, min(attack.non_members for attack in attacks))))
    x, y = (svg.log_axis(low, 1, span, _log_percent) for span in (PLOT_X, PLOT_Y))
    caption = (
        "The same curves on logarithmic axes. What lies above the diagonal at the left is found with hardly any "
        "false alarm: the few people that an average over everybody hides."
    )
    return _roc_figure((f"fig-roc-{unit}-log", title, caption), x, y, attacks, (low, 1.0))


def _roc_figure(
    names: tuple[str, str, str],
    x: svg.Axis,
    y: svg.Axis,
    attacks: Sequence[MembershipAttack],
    diagonal: tuple[float, float],
) -> Figure:
    """One curve a method; ``names`` are the id, the title and the caption."""
    name, title, caption = names
    parts = svg.frame(x, y, "non-members taken for members", "members found")
    ends = [(x.place(value), y.place(value)) for value in diagonal]
    parts.append(svg.line(ends[0], ends[1], "reference"))
    low = diagonal[0]
    for classes, attack in zip(CURVES, attacks, strict=False):
        places = [
            (x.place(max(fpr, low)), y.place(max(tpr, low)))
            for fpr, tpr in evenly(attack.roc, FIGURE_POINTS)
            if fpr >= low
        ]
        parts.append(svg.path(places, classes))
    names_of = [words(attack.method) for attack in attacks]
    parts += svg.legend(list(zip(CURVES, names_of, strict=False)), y=y.start + 58, left=2)
    height = svg.HEIGHT + 24
    return Figure(title, svg.drawing(name, title, caption, parts, height), caption)


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
    parts += svg.legend((("curve first", "took part"), ("curve second", "did not")))
    caption = (
        f"Scored on: {shortened(seen.sees, 120)}. The further the two lie apart, the surer this observer is of "
        f"who took part: {count(seen.right)} of {count(seen.guesses)} guesses were right."
    )
    return Figure(title, svg.drawing(f"fig-canaries-{slug(seen.observer)}", title, caption, parts), caption)


def slug(name: str) -> str:
    """A name as part of an element's id."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:40]


def _round_figure(
    names: tuple[str, str, str],
    values: Sequence[tuple[int, float | None]],
    caption: str,
    missing: str,
    label: Callable[[float], str],
    *,
    top: float | None = None,
    mark: float | None = None,
) -> Figure:
    """One series by round, broken where a value is unknown; ``names`` are the id, the title and the y axis."""
    name, title, y_title = names
    known = [value for _, value in values if value is not None]
    if not known:
        return Figure(title, None, missing)
    x = svg.axis(min(r for r, _ in values), max(r for r, _ in values), PLOT_X, count, whole=True, tight=True)
    y = svg.axis(0, max(known) if top is None else top, PLOT_Y, label)
    parts = svg.frame(x, y, "round", y_title)
    if mark is not None and mark <= y.high:
        parts.append(svg.line((x.start, y.place(mark)), (x.end, y.place(mark)), "reference"))
    places = [None if v is None else (x.place(r), y.place(v)) for r, v in evenly(values, FIGURE_POINTS)]
    parts.append(svg.path(places, "curve first"))
    note = selection_note(min(len(values), FIGURE_POINTS), len(values), "rounds", "evenly spaced")
    caption = f"{caption} {note}".strip()
    return Figure(title, svg.drawing(name, title, caption, parts), caption)


def _measured(series: Sequence[AccuracyPoint]) -> list[AccuracyPoint]:
    return [point for point in series if point.test_accuracy is not None]


def _accuracy_words(accuracy: Accuracy) -> str:
    with_it, without, gap = accuracy.final_protected, accuracy.final_unprotected, accuracy.gap
    if with_it is None or without is None or gap is None:
        if with_it is not None:
            return (
                "Missing: the same training without protection was not run, so what protection costs is not known."
            )
        return "Missing: the final accuracies are not known, and so neither is what protection costs."
    both = f"{percent(with_it)} as configured, {percent(without)} without protection"
    return f"Protection costs {points(gap)}: {both}." if gap > 0 else f"Protection costs nothing: {both}."
