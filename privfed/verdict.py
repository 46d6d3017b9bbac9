"""What the evidence comes to, computed from it alone: the best attack on each view, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence, Set
from statistics import fmean
from typing import Any

from privfed.audit import evidence as ev
from privfed.privacy.accounting import NO_CLIENT


def best_attack(attacks: Sequence[ev.AttackEvidence], observer: str) -> ev.BestAttack | None:
    """The first of those with the largest margin on ``observer``'s view of the run as configured."""
    best: ev.BestAttack | None = None
    for a in attacks:
        if a.observer != observer or a.defence != ev.AS_CONFIGURED:
            continue
        if a.psnr is None or a.margin_db is None or not a.trivial_psnr:
            continue
        if best is None or a.margin_db > best.margin_db:
            best = ev.BestAttack(
                attack=a.attack,
                workload=a.workload,
                defence=a.defence,
                psnr=a.psnr,
                margin_db=a.margin_db,
                trivial_psnr=max(a.trivial_psnr.values()),
            )
    return best


def readers_of_text(attacks: Sequence[ev.AttackEvidence]) -> set[str]:
    """Observers from whose view of the run as configured an attack read the tokens."""
    return {
        a.observer
        for a in attacks
        if a.defence == ev.AS_CONFIGURED and a.text and a.text.token_set >= ev.RECOVERED_TOKENS
    }


def counters_of_labels(attacks: Sequence[ev.AttackEvidence]) -> set[str]:
    """Observers who count labels of the run as configured far better than by a guess, in the mean over a kind."""
    found: dict[tuple[str, str], list[ev.LabelScores]] = {}
    for a in attacks:
        if a.defence == ev.AS_CONFIGURED and a.labels is not None:
            found.setdefault((a.observer, a.kind), []).append(a.labels)
    return {observer for (observer, _), scores in found.items() if _beat_guesses(scores)}


def _beat_guesses(scores: Sequence[ev.LabelScores]) -> bool:
    right, guessed = fmean(s.overlap for s in scores), fmean(max(s.trivial.values()) for s in scores)
    return right > guessed and 1 - right <= (1 - ev.COUNTED_LABELS) * (1 - guessed)


def verdict(
    observers: Sequence[ev.ObserverEvidence],
    canaries: ev.Canaries | None,
    membership: ev.Membership | None,
    readers: Set[str],
    counters: Set[str] = frozenset(),
) -> ev.Verdict:
    """What a run comes to.

    Args:
        observers: As in the report.
        canaries: Likewise.
        membership: Likewise.
        readers: Observers from whose view an attack read text.
        counters: Observers from whose view one counted labels. Those of many clients are nobody's secret, so that
            this alone breaks no promise.
    """
    protected = [o for o in observers if o.protected]
    leaking = [
        o.observer
        for o in observers
        if o.observer in readers or (o.best_attack and o.best_attack.margin_db >= ev.RECOVERY_MARGIN_DB)
    ]
    found = (
        f" Examples were reconstructed beyond a trivial guess, or their tokens read, by: {', '.join(leaking)}."
        if leaking
        else " No attack tried on the run as configured beat a trivial guess by 1 dB, or read a text's tokens."
    )
    if counters:
        names = ", ".join(o.observer for o in observers if o.observer in counters)
        found += f" How often each label occurs, far better than by a guess, was found by: {names}."
    if not protected:
        text = "No observer is protected: no noise is added before anybody sees the models, so ε = ∞ for all."
        return ev.Verdict(level="exposed", text=text + found)
    by_terms: dict[tuple[Any, ...], list[str]] = {}
    for o in protected:
        g = o.guarantee
        by_terms.setdefault((g.epsilon, g.delta, g.unit, g.neighbouring, g.sampling), []).append(o.observer)
    text = " ".join(
        f"Against {' and '.join(names)}: ε = {epsilon:.3g} at δ = {delta:g}, {unit}-level, neighbours: "
        f"{relation}, sampling: {sampling}."
        for (epsilon, delta, unit, relation, sampling), names in by_terms.items()
    )
    if open_to := [o.observer for o in observers if not o.protected]:
        text += f" Against {' and '.join(open_to)}: ε = ∞, since values reach them before the noise."
    if any(o.guarantee.unit == "example" for o in protected):
        text += f" {NO_CLIENT}"
    text += found
    refuted = [o.observer for o in canaries.observers if o.flagged] if canaries else []
    if refuted:
        text += (
            f" FLAGGED: canaries measure more than what is claimed against {' and '.join(refuted)}; "
            "do not trust the claim before the cause is found."
        )
    exceeded = [claim.observer for claim in membership.claims if claim.flagged] if membership else []
    if exceeded:
        text += (
            f" FLAGGED: membership inference finds more than the claim allows against {' and '.join(exceeded)}; "
            "do not trust it before the cause is found."
        )
    failed = [check.name for check in canaries.checks if check.status == "failed"] if canaries else []
    if failed:
        text += f" FLAGGED: the training was not as the claim says. Not true of it: {'; '.join(failed)}."
    broken = {o.observer for o in protected} & {*leaking, *refuted, *exceeded} or failed
    level = "exposed" if broken else "partly" if open_to else "protected"
    return ev.Verdict(level=level, text=text)
