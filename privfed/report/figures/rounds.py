"""How the rounds went: clipped updates, signal-to-noise, survivors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from privfed.audit.evidence import RoundEvidence
from privfed.report.figures.base import Figure, curves
from privfed.report.numbers import count, percent, ratio

NEAR_ONE = 0.5
"""Signal-to-noise from which on the figure has room for a line at 1."""


def clipping_figure(rounds: Sequence[RoundEvidence]) -> Figure:
    """Share of updates that were clipped, by round."""
    words = (
        "of the updates were longer than the clip norm. Near 0 % the norm is loose, and more noise is added than "
        "need be; near 100 % it shortens almost everything that clients send."
    )
    values = [(r.round, r.clipped_fraction) for r in rounds]
    known = [value for _, value in values if value is not None]
    caption = f"In the last round measured, {percent(known[-1], 0)} {words}" if known else ""
    return curves(
        ("fig-clipped", "Clipped updates by round", "share"),
        [("curve first", "", values)],
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
    peak = max((value for _, value in finite if value is not None), default=0.0)
    near = peak >= NEAR_ONE  # else a line at 1 would leave the curve no room
    caption = (
        f"Length of the sum over the expected length of its noise. Below 1{' (dashed)' if near else ''} a round's "
        "noise is longer than what it hides; training still gets on, because noise averages out over rounds and "
        "signal adds up."
    )
    if infinite:
        caption += f" Not drawn: {count(infinite)} rounds without noise, where the ratio is ∞."
    return curves(
        ("fig-noise", "Signal-to-noise by round", "ratio"),
        [("curve first", "", finite)],
        caption,
        "Nothing to draw: no noise was added in any round, so the ratio is ∞."
        if infinite
        else "Missing: the signal-to-noise ratio was not measured.",
        ratio,
        top=max(peak, 1.0) if near else None,
        mark=1.0 if near else None,
    )


def survivors_figure(rounds: Sequence[RoundEvidence]) -> Figure:
    """Who was asked and who stayed to the end, by round."""
    gone = sum(r.dropped for r in rounds)
    asked = max(1, sum(r.cohort for r in rounds))
    aborted = sum(1 for r in rounds if r.aborted is not None)
    caption = f"{percent(gone / asked)} of those who were asked vanished before the end of their round."
    if aborted:
        caption += f" {count(aborted)} rounds ended without a new model."
    return curves(
        ("fig-survivors", "Cohorts and survivors by round", "clients"),
        [
            ("curve first", "in the sum", [(r.round, r.survivors) for r in rounds]),
            ("curve second", "asked", [(r.round, r.cohort) for r in rounds]),
        ],
        caption,
        "Missing: no round was recorded.",
        count,
    )
