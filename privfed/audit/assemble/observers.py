"""Who sees what, what got out, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, guarantees_of, terms_of
from privfed.privacy.accounting import NO_CLIENT
from privfed.transcript import Observer


def _sees(m: Material, observer: Observer) -> str:
    masked = m.experiment.plan.mode == "protocol"
    settings = m.experiment.settings.secure_aggregation
    if observer is Observer.RELEASE:
        return "the public initial model and the final model"
    if observer is Observer.CLIENT:
        return "every broadcast model (worst case)"
    if not masked:
        return "every client's update"
    if observer is Observer.ACTIVE_SERVER:
        return f"the sum of as few clients as a round needs, less those of {settings.colluders} colluding clients"
    if observer is Observer.SERVER_WITH_COLLUDERS:
        return f"the survivors' sum less the updates of {settings.colluders} colluding clients"
    return "masked uploads and the survivors' sum"


def observer_of(m: Material, observer: Observer) -> ev.ObserverEvidence:
    """One row of the matrix: what reaches the observer, its guarantee, and the best attack on its view."""
    guarantee = guarantees_of(m).get(observer.value)
    protected = guarantee is not None and guarantee.epsilon < math.inf
    if guarantee is not None:
        values = {**guarantee.as_json(), "why": "sees nothing that is not noised first"}
    else:
        noiseless = m.experiment.noise_multiplier is None
        values = {
            **terms_of(m),
            "epsilon": math.inf,
            "accountant": "none: nothing is noised before this observer sees it",
            "cross_check_epsilon": None,
            "cross_check_accountant": None,
            "why": "no mechanism adds noise" if noiseless else "sees values from before the noise",
        }
    return ev.ObserverEvidence(
        observer=observer.value,
        sees=_sees(m, observer),
        protected=protected,
        guarantee=ev.Guarantee(**values),
        best_attack=_best(m, observer),
    )


def _best(m: Material, observer: Observer) -> ev.BestAttack | None:
    from privfed.exposure import AS_CONFIGURED

    tried = [
        x
        for x in m.exposures
        if x.outcome.observer is observer and x.defence == AS_CONFIGURED and x.outcome.margin_db is not None
    ]
    if not tried:
        return None
    best = max(tried, key=lambda x: x.outcome.margin_db or -math.inf)
    outcome = best.outcome
    assert outcome.best is not None and outcome.trivial is not None and outcome.margin_db is not None  # noqa: PT018 - all set together
    return ev.BestAttack(
        attack=outcome.attack,
        workload=best.workload,
        defence=best.defence,
        psnr=outcome.best.psnr,
        margin_db=outcome.margin_db,
        trivial_psnr=max(outcome.trivial.values()),
    )


def readers_of_text(m: Material) -> set[str]:
    """Observers from whose view of the run as configured an attack read the tokens."""
    from privfed.exposure import AS_CONFIGURED

    return {
        x.outcome.observer.value
        for x in m.exposures
        if x.defence == AS_CONFIGURED and x.outcome.text and x.outcome.text.token_set >= ev.RECOVERED_TOKENS
    }


def verdict(
    observers: tuple[ev.ObserverEvidence, ...], canaries: ev.Canaries | None, readers: Set[str]
) -> ev.Verdict:
    """What a run comes to; ``readers`` are observers from whose view an attack read text."""
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
    failed = [check.name for check in canaries.checks if check.status == "failed"] if canaries else []
    if failed:
        text += f" FLAGGED: the training was not as the claim says. Not true of it: {'; '.join(failed)}."
    broken = {o.observer for o in protected} & {*leaking, *refuted} or failed
    level = "exposed" if broken else "partly" if open_to else "protected"
    return ev.Verdict(level=level, text=text)
