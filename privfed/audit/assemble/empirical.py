"""What canaries and membership inference found."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, final_of, guarantees_of, terms_of
from privfed.empirical_evidence import canary_observers, membership_evidence

if TYPE_CHECKING:
    from privfed.audit.empirical import Seen


def seen_canaries(m: Material) -> Seen | None:
    """What each observer scores canaries on; ``None`` without them, or without a mechanism."""
    from privfed.audit.empirical import seen_by_observers

    e = m.experiment
    if e.audited is None or not m.result.mechanism_state:
        return None
    watched = e.audited.mechanism
    moved = m.result.weights.astype(np.float64) - e.initial_weights
    notes = watched.notes(m.result.mechanism_state)
    return seen_by_observers(watched, notes, moved, mode=e.plan.mode)


def canaries_of(m: Material) -> ev.Canaries | None:
    """What the canaries say of each claim; ``None`` without them, or without a mechanism."""
    from privfed.audit.checks import checks
    from privfed.audit.notes import Tally
    from privfed.privacy.ledger_report import spent_releases

    e, seen = m.experiment, seen_canaries(m)
    if seen is None or e.audited is None:
        return None
    canaries, watched = e.audited.canaries, e.audited.mechanism
    notes, terms = watched.notes(m.result.mechanism_state), terms_of(m)
    tally, spent = Tally(notes.tally), spent_releases(m.folder.ledger)[1]
    last = None if e.settings.training.server_average else m.result.weights
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
        observers=canary_observers(seen, spent, guarantees_of(m), terms["delta"]),
        checks=tuple(
            ev.SelfCheck(**asdict(check)) for check in checks(watched, notes, last, e.audited.sampling, spent)
        ),
    )


def canary_limits_of(canaries: ev.Canaries | None) -> list[str]:
    """That canaries are in the model, and that no ε counts them."""
    if canaries is None:
        return []
    return [
        f"{canaries.included} canary clients of the audit are in this training and its model. They are nobody: "
        "they hold no data, and no ε counts them; cohorts, survivors, clipped fraction and norms do."
    ]


def membership_of(m: Material) -> ev.Membership | None:
    """Membership inference by method and unit, beside what is claimed; ``None`` where it was not asked for."""
    found = m.membership
    if found is None:
        return None
    return membership_evidence(found.attacks, found.non_members_from, found.shadow_models, guarantees_of(m))
