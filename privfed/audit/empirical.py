"""What a training's canaries say of its claims: by observer, estimates and a bound of ε beside the claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privfed.audit.notes import Notes, Tally
from privfed.audit.one_run import OneRunBound, one_run_bound
from privfed.audit.one_shot import Estimate, RoundScores, composed_fit, gaussian_fit
from privfed.audit.watched import Watched
from privfed.privacy.accounting import ObservedRelease, Release, by_observer
from privfed.privacy.errors import PrivacyError
from privfed.privacy.mechanisms import CorrelatedGaussian, DistributedNoise
from privfed.transcript import Observer, sees_sums_only

Real = NDArray[np.float64]

SERVERS = (Observer.SERVER, Observer.SERVER_WITH_COLLUDERS, Observer.ACTIVE_SERVER)
COMPOSED = "noise fitted to single rounds, then composed"


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
        try:
            scaled = [[replace(s, release=_scaled(s.release, factor)) for s in one] for one in spent]
            found = by_observer(scaled, delta).get(observer.value)
        except PrivacyError:  # integer noise so weak that no theorem speaks of it
            return math.inf
        return math.inf if found is None else found.epsilon

    return epsilon


def _scaled(release: Release, factor: float) -> Release:
    shares = release.shares
    if shares is not None:
        stddev = factor * shares.params.local_stddev
        if shares.params.noise == "discrete_gaussian":
            stddev = max(1.0, float(round(stddev)))
        shares = replace(shares, params=replace(shares.params, local_stddev=stddev))
    return replace(release, noise_multiplier=factor * release.noise_multiplier, shares=shares)


@dataclass(frozen=True, eq=False)
class Vantage:
    """What an observer scores canaries on.

    Attributes:
        sees: In words.
        scores: Of each canary, higher where it is rather there, ``[k]``.
        rounds: Scores of single rounds, for the composed estimate; ``None`` where noise does not tell.
        fitted: Scores near a Gaussian where there is no canary, for the direct fit, and its name.
        told: Whether a positive score alone tells a canary that is there.
    """

    sees: str
    scores: Real
    rounds: RoundScores | None = None
    fitted: tuple[str, Real] | None = None
    told: bool = False


@dataclass(frozen=True, eq=False)
class Seen:
    """All that the canaries' figures follow from, but for the ledger.

    Attributes:
        vantages: By observer.
        included: Canaries that are there, ``[k]``.
        dimension: Of the sums.
        rounds: That sums were scored in.
    """

    vantages: Mapping[Observer, Vantage]
    included: NDArray[np.bool_]
    dimension: int
    rounds: int


def seen_by_observers(watched: Watched, notes: Notes, moved: Real, *, mode: str) -> Seen:
    """What each observer scores canaries on.

    Args:
        watched: The mechanism as it was audited.
        notes: After the last round.
        moved: Released weights less initial weights, ``[d]``.
        mode: Of the aggregation, which says what servers see sums only.
    """
    length = max(float(np.linalg.norm(moved)), 1e-300)
    final: Real = (watched.canaries.directions @ moved.astype(np.float32)).astype(np.float64) / length
    models = _models(watched, notes)
    release = Vantage(
        "the final model's difference from the first", final, None, ("Gaussian fit to the cosine", final)
    )
    servers = {o: _server(watched, notes, masked=sees_sums_only(mode, o)) for o in SERVERS}
    vantages = servers | {Observer.CLIENT: models, Observer.RELEASE: release}
    rounds = int(np.isfinite(notes.survivors).sum())
    return Seen(vantages, watched.canaries.included, len(moved), rounds)


def findings(
    seen: Seen, spent: Sequence[Sequence[ObservedRelease]], claims: Mapping[str, float], delta: float
) -> list[ObserverFinding]:
    """Judge the claims against every observer; the same for the same scores and ledger.

    Args:
        seen: What each observer scores canaries on.
        spent: Releases on the ledger.
        claims: ε by observer; who is missing is promised nothing.
        delta: Of the claims.
    """
    there, found = seen.included, []
    for observer in Observer:
        vantage = seen.vantages[observer]
        claim = claims.get(observer.value, math.inf)
        estimates: list[Estimate | None] = []
        if vantage.rounds is not None and claim < math.inf:  # else there is no release for the accountant to scale
            epsilon_of = scaled_epsilon(spent, delta, observer)
            estimates.append(composed_fit(vantage.rounds, seen.dimension, seen.rounds, epsilon_of, COMPOSED))
        if vantage.fitted is not None:
            # Resampling protects nobody: its seed is public, so that intervals can be computed again.
            rng = np.random.default_rng(list(observer.value.encode()))
            estimates.append(gaussian_fit(vantage.fitted[1], there, delta, vantage.fitted[0], rng))
        if vantage.told:
            estimates.append(perfect(vantage.scores, there))
        found.append(
            ObserverFinding(
                observer,
                vantage.sees,
                claim,
                tuple(e for e in estimates if e is not None),
                one_run_bound(vantage.scores, there, delta),
                vantage.scores,
            )
        )
    return found


def _server(watched: Watched, notes: Notes, *, masked: bool) -> Vantage:
    """Servers know who takes part. Masked, they have sums; else every contribution."""
    tally = Tally(notes.tally)
    if watched.inner.client_noise:
        if masked:
            sees = "all noised sums, and who is in them"
            return Vantage(sees, tally.known_likelihood, tally.round_scores())
        return Vantage("its noisy updates", tally.own_likelihood, tally.round_scores("own_"))
    if masked:
        largest = tally.largest_in_sum
        sees = "the largest inner product with a sum before the noise"
        return Vantage(sees, largest, None, ("Gaussian fit", largest))
    what = "an update of it that is not zero" if watched.canaries.zero_out else "an update of it"
    return Vantage(f"whether {what} arrived", tally.participations, told=True)


def _models(watched: Watched, notes: Notes) -> Vantage:
    """Who sees every model has every noised sum."""
    tally, inner = Tally(notes.tally), watched.inner
    if isinstance(inner, CorrelatedGaussian):
        return _correlated(inner, notes, watched)
    if inner.client_noise and not isinstance(inner, DistributedNoise):
        return Vantage("all noised sums, and who is in them", tally.known_likelihood, tally.round_scores())
    # The likelihood ratio is the best score; the fit wants one that is near a Gaussian where there is no canary.
    largest = ("Gaussian fit to the largest cosine", tally.largest_cosine)
    return Vantage("all noised sums", tally.likelihood, tally.round_scores(), largest)


def _correlated(inner: CorrelatedGaussian, notes: Notes, watched: Watched) -> Vantage:
    """All noised sums ``X + C⁻¹·Z`` with their noise made independent again: ``C·X + Z`` (Denisov et al. 2022).

    Who takes part when is no secret, so a canary's sums lie along ``C`` times its rounds.
    """
    tally, sees = Tally(notes.tally), "all noised sums, their noise made independent, and who is in them"
    rounds = np.isfinite(notes.scores).all(axis=1)
    used = int(rounds.sum())
    if not used or not rounds[:used].all():  # a round that was aborted released nothing
        return Vantage("all noised sums", tally.likelihood)
    matrix = inner.strategy.matrix()[:used, :used]
    signal = matrix @ notes.drawn[:used]
    lengths = np.linalg.norm(signal, axis=0)
    took_part = lengths > 0
    along = (signal * (matrix @ notes.scores[:used])).sum(axis=0) / np.where(took_part, lengths, 1.0) ** 2
    spread = inner.fresh / watched.clip_norm_in(None)
    likelihood = np.square(lengths) * (2 * along - 1) / (2 * spread**2)
    there, absent = took_part & watched.canaries.included, took_part & ~watched.canaries.included
    noise = along[absent] * lengths[absent] / spread
    scores = RoundScores(
        int(there.sum()),
        float(along[there].sum()),
        float(np.square(along[there]).sum()),
        int(absent.sum()),
        float(noise.sum()),
        float(np.square(noise).sum()),
    )
    return Vantage(sees, likelihood, scores)


def perfect(participations: Real, included: NDArray[np.bool_]) -> Estimate | None:
    """ε = ∞ where an update came from canaries that exist and from no other; ``None`` where that is not so."""
    if not (participations[included] > 0).any() or (participations[~included] > 0).any():
        return None
    return Estimate("updates come from who is there, and from nobody else", math.inf, math.inf, math.inf)
