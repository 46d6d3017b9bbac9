"""Who is promised what, and how near the reconstructions come."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from privfed.audit.evidence import RECOVERY_MARGIN_DB, ObserverEvidence
from privfed.report import svg
from privfed.report.figures.base import Figure
from privfed.report.numbers import decibels, epsilon
from privfed.report.selection import Group, evenly, shortened

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
        parts.append(svg.text((left, y + 14), shortened(name, 56), "name small"))
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
