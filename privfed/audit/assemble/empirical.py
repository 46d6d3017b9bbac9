"""What canaries and membership inference found."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, final_of, guarantees_of, terms_of
from privfed.audit.membership import OperatingPoint
from privfed.federated.streams import Purpose

if TYPE_CHECKING:
    from privfed.audit.empirical import ObserverFinding
    from privfed.membership import MembershipFindings

HISTOGRAM_BINS = 24


def canaries_of(m: Material) -> ev.Canaries | None:
    """What the canaries say of each claim; ``None`` without them, or without a mechanism."""
    from privfed.audit.checks import checks
    from privfed.audit.empirical import findings
    from privfed.audit.notes import Tally
    from privfed.privacy.ledger_report import spent_releases

    e = m.experiment
    if e.audited is None or not m.result.mechanism_state:
        return None
    canaries, watched = e.audited.canaries, e.audited.mechanism
    notes, terms = watched.notes(m.result.mechanism_state), terms_of(m)
    tally, spent = Tally(notes.tally), spent_releases(m.folder.ledger)[1]
    last = None if e.settings.training.server_average else m.result.weights
    found = findings(
        watched,
        notes,
        m.result.weights.astype("float64") - e.initial_weights,
        spent,
        {observer: guarantee.epsilon for observer, guarantee in guarantees_of(m).items()},
        terms["delta"],
        masked=e.plan.mode == "protocol",
        rng=np.random.default_rng(e.streams.key(Purpose.CANARIES, 3)),
    )
    return ev.Canaries(
        kind=e.settings.audit.canary_kind,
        count=canaries.count,
        included=int(canaries.included.sum()),
        participations=int(tally.participations.sum()),
        rounds=int(tally.rounds.max(initial=0)),
        noise_share=canaries.noise_share(e.audited.noise_multiplier),
        accuracy=final_of(m.result),
        accuracy_without=final_of(m.control),
        **{key: terms[key] for key in ("delta", "unit", "neighbouring", "sampling")},
        observers=tuple(_canary_observer(finding, canaries.included) for finding in found),
        checks=tuple(
            ev.SelfCheck(**asdict(check)) for check in checks(watched, notes, last, e.audited.sampling, spent)
        ),
    )


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


def canary_limits_of(canaries: ev.Canaries | None) -> list[str]:
    """That canaries are in the model, and that no ε counts them."""
    if canaries is None:
        return []
    return [
        f"{canaries.included} canary clients of the audit are in this training and its model. They are nobody: "
        "they hold no data, and no ε counts them; cohorts, survivors, clipped fraction and norms do."
    ]


def membership_of(found: MembershipFindings | None) -> ev.Membership | None:
    """Membership inference by method and unit; ``None`` where it was not asked for."""
    if found is None:
        return None
    return ev.Membership(
        non_members_from=found.non_members_from,
        shadow_models=found.shadow_models,
        attacks=tuple(
            ev.MembershipAttack(
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
                worst_off=tuple(ev.FoundClient(**asdict(client)) for client in worst),
            )
            for attack, worst in zip(found.attacks, found.worst_off, strict=True)
        ),
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
