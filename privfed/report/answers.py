"""The page's four answers: what is claimed, whether it is right, what was exposed, and what it cost."""

from __future__ import annotations

from typing import Any

from privfed.audit.evidence import AS_CONFIGURED, RECOVERY_MARGIN_DB, Evidence
from privfed.report.numbers import count, decibels, percent, points, words

Answer = tuple[str, str]
"""A few words, and the sentence below them."""


def answers(e: Evidence) -> dict[str, Any]:
    """For the strip at the top of the page."""
    return {"claimed_to": _claimed_to(e), "claim": _claim(e), "exposed": _exposed(e), "cost": _cost(e)}


def _claimed_to(e: Evidence) -> list[str]:
    """Observers with the same guarantee as whoever sees the released model."""
    own = next((o.guarantee for o in e.observers if o.observer == "release"), None)
    if own is None:
        return ["release"]
    terms = (own.epsilon, own.delta, own.unit, own.neighbouring, own.sampling)
    return [
        o.observer
        for o in e.observers
        if o.protected
        and terms
        == (
            o.guarantee.epsilon,
            o.guarantee.delta,
            o.guarantee.unit,
            o.guarantee.neighbouring,
            o.guarantee.sampling,
        )
    ] or ["release"]


def _claim(e: Evidence) -> Answer:
    failed = sum(check.result == "failed" and check.layer == "implementation" for check in e.checks)
    noted = f" {count(failed)} checks of the implementation failed." if failed else ""
    exceeded = [c.observer for c in e.membership.claims if c.flagged] if e.membership else []
    if exceeded:
        noted = f" Membership inference finds more than is allowed against {', '.join(exceeded)}.{noted}"
    if e.canaries is None:
        return "Flagged" if exceeded else "Not measured", f"No canaries were in the training.{noted}"
    flagged = [o.observer for o in e.canaries.observers if o.flagged]
    if flagged:
        return "Flagged", f"Canaries measure more than is claimed against {', '.join(flagged)}.{noted}"
    if exceeded:
        return "Flagged", noted.strip()
    return (
        "Not refuted",
        f"{count(e.canaries.included)} canaries: no interval and no lower bound lies above a claim.{noted}",
    )


def _exposed(e: Evidence) -> Answer:
    best = [(o.best_attack.margin_db, o) for o in e.observers if o.best_attack is not None]
    also = _labels(e)
    if not best and also:
        return "Labels only", f"No attack gave examples.{also}"
    if not best:
        return "Not measured", "No attack was scored on the run as configured."
    margin, worst = max(best, key=lambda pair: pair[0])
    assert worst.best_attack is not None  # chosen so
    most = f"{worst.observer}, by {words(worst.best_attack.attack)}: {decibels(margin, signed=True)} over a guess"
    leaking = [o.observer for value, o in best if value >= RECOVERY_MARGIN_DB]
    if leaking:
        return (
            f"{decibels(margin, signed=True)}",
            f"More than a guess for {', '.join(leaking)}. Most: {most}.{also}",
        )
    return "No example", f"No attack beat a trivial guess by {RECOVERY_MARGIN_DB:g} dB. Nearest: {most}.{also}"


def _labels(e: Evidence) -> str:
    """The most that an observer of the run as configured knows about labels beyond a guess."""
    found = [
        (a.labels.overlap - max(a.labels.trivial.values()), a.observer, a.labels)
        for a in e.attacks
        if a.labels is not None and a.defence == AS_CONFIGURED
    ]
    if not found:
        return ""
    _, observer, labels = max(found, key=lambda one: one[0])
    guess = percent(max(labels.trivial.values()), 0)
    return f" Labels: {observer} counts {percent(labels.overlap, 0)} right, a guess {guess}."


def _cost(e: Evidence) -> Answer:
    a = e.accuracy
    if a.final_protected is None:
        return "Not measured", "The final accuracy is not known."
    if a.gap is None:
        return percent(
            a.final_protected
        ), "Test accuracy as configured; the training without protection was not run."
    return (
        points(a.gap),
        f"{percent(a.final_protected)} test accuracy as configured, {percent(a.final_unprotected)} without.",
    )
