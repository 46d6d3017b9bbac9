"""What a training's canaries say of its claims: by observer, estimates and a bound of ε beside the claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privfed.audit.canaries import CanaryClients, Tally
from privfed.audit.one_run import OneRunBound, one_run_bound
from privfed.audit.one_shot import Estimate, composed_fit, gaussian_fit
from privfed.privacy.accounting import ObservedRelease, by_observer
from privfed.transcript import Observer

Real = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ObserverFinding:
    """What canaries show to one observer.

    Attributes:
        observer: Who.
        sees: What it scores canaries on.
        claim: The ε that is claimed against it; infinite for none.
        estimates: Heuristic and tight.
        bound: Rigorous and loose.
        scores: Of each canary, ``[k]``.
    """

    observer: Observer
    sees: str
    claim: float
    estimates: tuple[Estimate, ...]
    bound: OneRunBound
    scores: Real

    @property
    def flagged(self) -> bool:
        """Whether the claim is below what was measured: below an interval, or below the bound."""
        return any(low > self.claim for low in (self.bound.epsilon, *(e.low for e in self.estimates)))


def scaled_epsilon(
    spent: Sequence[Sequence[ObservedRelease]], delta: float, observer: Observer
) -> Callable[[float], float]:
    """From a factor on the noise of all releases to ε against ``observer``; infinite for who is not protected."""

    def epsilon(factor: float) -> float:
        scaled = [
            [
                replace(s, release=replace(s.release, noise_multiplier=factor * s.release.noise_multiplier))
                for s in one
            ]
            for one in spent
        ]
        found = by_observer(scaled, delta).get(observer.value)
        return math.inf if found is None else found.epsilon

    return epsilon


def findings(
    canaries: CanaryClients,
    tally: Tally,
    moved: Real,
    spent: Sequence[Sequence[ObservedRelease]],
    claims: Mapping[str, float],
    delta: float,
    *,
    masked: bool,
    rng: np.random.Generator,
) -> list[ObserverFinding]:
    """Judge the claims against every observer.

    Args:
        canaries: Who they are.
        tally: Of all rounds.
        moved: Released weights less initial weights, ``[d]``.
        spent: Releases on the ledger.
        claims: ε by observer; who is missing is promised nothing.
        delta: Of the claims.
        masked: Whether the server sees sums only.
        rng: For intervals.
    """
    there = canaries.included
    length = max(float(np.linalg.norm(moved)), 1e-300)
    final: Real = (canaries.directions @ moved.astype(np.float32)).astype(np.float64) / length

    def finding(
        observer: Observer, sees: str, scores: Real, estimates: Sequence[Estimate | None]
    ) -> ObserverFinding:
        return ObserverFinding(
            observer,
            sees,
            claims.get(observer.value, math.inf),
            tuple(e for e in estimates if e is not None),
            one_run_bound(scores, there, delta),
            scores,
        )

    found = []
    for observer in (Observer.SERVER, Observer.SERVER_WITH_COLLUDERS, Observer.ACTIVE_SERVER):
        if masked:
            fit = gaussian_fit(tally.largest_in_sum, there, delta, "Gaussian fit", rng)
            sees = "the largest inner product with a sum before the noise"
            found.append(finding(observer, sees, tally.largest_in_sum, [fit]))
        else:
            fit = perfect(tally.participations, there)
            sees = "whether an update of it arrived"
            found.append(finding(observer, sees, tally.participations, [fit]))
    # The likelihood ratio is the best score; the fit wants one that is near a Gaussian where there is no canary.
    rounds = int(tally.rounds.max(initial=0))
    found.append(
        finding(
            Observer.CLIENT,
            "all noised sums",
            tally.likelihood,
            [
                composed_fit(
                    tally.round_scores(),
                    len(moved),
                    rounds,
                    scaled_epsilon(spent, delta, Observer.CLIENT),
                    "noise fitted to single rounds, then composed",
                ),
                gaussian_fit(tally.largest_cosine, there, delta, "Gaussian fit to the largest cosine", rng),
            ],
        )
    )
    fit = gaussian_fit(final, there, delta, "Gaussian fit to the cosine", rng)
    found.append(finding(Observer.RELEASE, "the final model's difference from the first", final, [fit]))
    return found


def perfect(participations: Real, included: NDArray[np.bool_]) -> Estimate | None:
    """ε = ∞ where an update came from canaries that exist and from no other; ``None`` where that is not so."""
    if not (participations[included] > 0).any() or (participations[~included] > 0).any():
        return None
    return Estimate("updates come from who is there, and from nobody else", math.inf, math.inf, math.inf)
