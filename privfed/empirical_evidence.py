"""What was measured against the promise, as evidence: a pure function of scores, claims and ledger.

An audit calls it when it has measured, and ``privfed verify`` when it computes a report's figures again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from privfed.audit import evidence as ev
from privfed.audit.empirical import ObserverFinding, Seen, findings
from privfed.audit.membership import MembershipInference, OperatingPoint, worst_off
from privfed.audit.membership_bound import epsilon_floor
from privfed.privacy.accounting import Guarantee, ObservedRelease

HISTOGRAM_BINS = 24
WORST_OFF = 5
"""Clients that are named in ``report.json``, and nowhere else, for each attack."""


def canary_observers(
    seen: Seen, spent: Sequence[Sequence[ObservedRelease]], claims: Mapping[str, Guarantee], delta: float
) -> tuple[ev.CanaryObserver, ...]:
    """What canaries say of each observer's claim; ``spent`` are the ledger's releases."""
    found = findings(seen, spent, {observer: claim.epsilon for observer, claim in claims.items()}, delta)
    return tuple(_canary_observer(finding, seen.included) for finding in found)


def _canary_observer(finding: ObserverFinding, included: NDArray[np.bool_]) -> ev.CanaryObserver:
    scores, known = finding.scores, bool(np.isfinite(finding.scores).all())
    edges = np.histogram_bin_edges(scores, HISTOGRAM_BINS) if known else np.zeros(1)
    present, absent = (
        tuple(int(n) for n in np.histogram(scores[which], edges)[0]) if known else ()
        for which in (included, ~included)
    )
    return ev.CanaryObserver(
        observer=finding.observer.value,
        sees=finding.sees,
        claim=finding.claim,
        estimates=tuple(ev.CanaryEstimate(**asdict(estimate)) for estimate in finding.estimates),
        bound=finding.bound.epsilon,
        bound_confidence=finding.bound.confidence,
        guesses=finding.bound.guesses,
        right=finding.bound.right,
        flagged=finding.flagged,
        histogram_low=float(edges[0]) if known else None,
        histogram_high=float(edges[-1]) if known else None,
        present=present,
        absent=absent,
        roc=_roc(scores, included) if known else (),
    )


def _roc(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Over all thresholds, the highest first; equal scores fall on the same side."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    there = included[order]
    true, false = np.cumsum(there)[ends], np.cumsum(~there)[ends]
    total, others = max(1, int(there.sum())), max(1, int((~there).sum()))
    return ((0.0, 0.0), *((float(f) / others, float(t) / total) for f, t in zip(false, true, strict=True)))


def membership_evidence(
    attacks: Sequence[MembershipInference],
    non_members_from: str,
    shadow_models: int,
    claims: Mapping[str, Guarantee],
) -> ev.Membership:
    """Attacks on the released model beside every claim that is made about who sees it: everybody does."""
    finite = {observer: claim for observer, claim in claims.items() if math.isfinite(claim.epsilon)}
    rows = tuple(_membership_attack(attack, finite, len(attacks)) for attack in attacks)
    highest = max((row.floor.epsilon for row in rows if row.floor is not None), default=0.0)
    return ev.Membership(
        non_members_from=non_members_from,
        shadow_models=shadow_models,
        attacks=rows,
        claims=tuple(
            ev.MembershipClaim(
                observer=observer,
                flagged=highest > claim.epsilon,
                **{key: getattr(claim, key) for key in ev.PrivacyLoss.model_fields},
            )
            for observer, claim in finite.items()
        ),
    )


def _membership_attack(
    attack: MembershipInference, claims: Mapping[str, Guarantee], attacks: int
) -> ev.MembershipAttack:
    floor = None
    if claims:  # one training has one unit and one δ
        claim = next(iter(claims.values()))
        floor = epsilon_floor(attack, "example" if claim.unit == "example" else "client", claim.delta, attacks)
    return ev.MembershipAttack(
        method=attack.method,
        unit=attack.unit,
        members=attack.members,
        non_members=attack.non_members,
        assumption=attack.assumption,
        auc=attack.auc,
        auc_interval=attack.auc_interval,
        at_1_percent_fpr=_operating_point(attack.points[0.01]),
        at_0_1_percent_fpr=_operating_point(attack.points[0.001]),
        roc=attack.shown_roc(),
        worst_off=tuple(ev.FoundClient(**asdict(client)) for client in worst_off(attack, WORST_OFF)),
        floor=None if floor is None else ev.EpsilonFloor(**asdict(floor)),
    )


def _operating_point(point: OperatingPoint | None) -> ev.OperatingPoint | None:
    if point is None:
        return None
    return ev.OperatingPoint(
        fpr_at_most=point.limit,
        fpr=point.fpr,
        fpr_interval=point.fpr_interval,
        tpr=point.tpr,
        tpr_interval=point.tpr_interval,
    )
