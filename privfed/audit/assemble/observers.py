"""Who sees what, and what got out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, guarantees_of, terms_of
from privfed.transcript import Observer, sees_sums_only
from privfed.verdict import best_attack


def _sees(m: Material, observer: Observer) -> str:
    mode = m.experiment.plan.mode
    settings = m.experiment.settings.secure_aggregation
    if observer is Observer.RELEASE:
        return "the public initial model and the final model"
    if observer is Observer.CLIENT:
        return "every broadcast model (worst case)"
    if mode == "bfv" and observer is Observer.ACTIVE_SERVER:
        return "any client's update: the key holder decrypts what it is given"
    if not sees_sums_only(mode, observer):
        return "every client's update"
    if observer is Observer.ACTIVE_SERVER:
        return f"the sum of as few clients as a round needs, less those of {settings.colluders} colluding clients"
    if observer is Observer.SERVER_WITH_COLLUDERS:
        return f"the survivors' sum less the updates of {settings.colluders} colluding clients"
    return f"{'ciphertexts' if mode == 'bfv' else 'masked uploads'} and the survivors' sum"


def observer_of(m: Material, observer: Observer, attacks: Sequence[ev.AttackEvidence]) -> ev.ObserverEvidence:
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
        best_attack=best_attack(attacks, observer.value),
    )
