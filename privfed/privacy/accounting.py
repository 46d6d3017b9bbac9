"""What ε a training spends: privacy-loss distributions first, Rényi DP as the cross-check.

``dp_accounting`` does the numerics; this file decides which event a sampling scheme may claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import (
    FixedSizeSampling,
    FullParticipation,
    KnownCohorts,
    LocalPoissonSampling,
    PoissonSampling,
    RoundRobinSampling,
    SamplingScheme,
    unit_of,
)

if TYPE_CHECKING:
    from privfed.privacy.distributed_accounting import DistributedRelease

UNIT = "client"
PLD_INTERVAL = 1e-3
"""Discretisation of the privacy loss; pessimistic, and within 0.001 of ten times finer ones."""
PLD_SHARE = 1e-4
"""Where ε is large, the discretisation as a share of it, so that memory does not grow with ε."""


@dataclass(frozen=True)
class Release:
    """``count`` releases of a mechanism with one noise multiplier under one sampling scheme.

    Attributes:
        sampling: How cohorts are drawn, as far as the observer's ignorance of them counts.
        noise_multiplier: Standard deviation of the noise that the observer does not know, over the sensitivity.
        count: How many such releases.
        shares: Integer noise that clients bring, in place of a Gaussian; ``noise_multiplier`` then only describes.
    """

    sampling: SamplingScheme
    noise_multiplier: float
    count: int = 1
    shares: DistributedRelease | None = None


MODELS_ONLY = frozenset({"client", "release"})
"""Observers that see models only, noised before they see them."""
EVERYBODY = MODELS_ONLY | {"server", "server+colluders", "active server"}


NO_CLIENT = "For a client as a whole, all of its examples together: ε = ∞ against everybody."
"""What goes with every statement on examples."""


@dataclass(frozen=True)
class ObservedRelease:
    """A release, and the observers that see it and nothing less noised."""

    observers: frozenset[str]
    release: Release


@dataclass(frozen=True)
class Guarantee:
    """An ε and everything that it depends on.

    Attributes:
        epsilon: Upper bound; infinite without noise.
        delta: Probability mass that ε does not cover.
        unit: Whose data is protected as one.
        neighbouring: Which datasets count as neighbours.
        sampling: How cohorts are drawn, in words.
        accountant: What computed ``epsilon``.
        cross_check_epsilon: The same by another accountant; always an upper bound too.
        cross_check_accountant: Its name.
        rounds: Releases in all.
        noise_multiplier: Standard deviation of the noise over the clip norm; ``None`` when it varies.
    """

    epsilon: float
    delta: float
    unit: str
    neighbouring: str
    sampling: str
    accountant: str
    cross_check_epsilon: float
    cross_check_accountant: str
    rounds: int
    noise_multiplier: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def terms(self, observers: Collection[str] = MODELS_ONLY) -> str:
        """What the ε depends on, without it, for the ``observers`` that it holds against."""
        return (
            f"at δ = {self.delta:g} for {self.unit}-level privacy against {', '.join(sorted(observers))}; "
            f"neighbours: {self.neighbouring}; sampling: {self.sampling}"
        )

    def statement(self, observers: Collection[str] = MODELS_ONLY) -> str:
        """One paragraph that leaves nothing out, for the ``observers`` that the guarantee holds against."""
        noise = "" if self.noise_multiplier is None else f"noise multiplier {self.noise_multiplier:.5g}, "
        return (
            f"ε = {self.epsilon:.4g} {self.terms(observers)}; {noise}releases: {self.rounds}; "
            f"by {self.accountant} ({self.cross_check_accountant}: {self.cross_check_epsilon:.4g})."
        )


def shared(guarantees: Mapping[str, Guarantee]) -> dict[Guarantee, list[str]]:
    """The observers of each guarantee."""
    found: dict[Guarantee, list[str]] = {}
    for observer, guarantee in guarantees.items():
        found.setdefault(guarantee, []).append(observer)
    return found


def statements(guarantees: Mapping[str, Guarantee]) -> list[str]:
    """One paragraph for the observers that share a guarantee, and one for those with ε = ∞."""
    texts = [guarantee.statement(observers) for guarantee, observers in shared(guarantees).items()]
    rest = sorted(EVERYBODY - guarantees.keys())
    if rest:
        texts.append(f"Against {', '.join(rest)}: ε = ∞.")
    if any(guarantee.unit == "example" for guarantee in guarantees.values()):
        texts.append(NO_CLIENT)
    return texts


def account(noise_multiplier: float, sampling: SamplingScheme, rounds: int, delta: float) -> Guarantee:
    """The guarantee of ``rounds`` rounds of central Gaussian noise.

    Args:
        noise_multiplier: Standard deviation of the noise on the sum over the clip norm; 0 for none.
        sampling: How cohorts are drawn.
        rounds: How many.
        delta: In (0, 1).

    Raises:
        PrivacyError: A parameter is out of range.
    """
    return compose([Release(sampling, noise_multiplier, rounds)], delta)


def compose(releases: Sequence[Release], delta: float, unit: str | None = None) -> Guarantee:
    """The guarantee of several kinds of releases together; with ``unit``, they must be for that one.

    Raises:
        PrivacyError: A parameter is out of range, or the releases have different neighbouring relations, or are
            of another unit.
    """
    if not 0 < delta < 1:
        raise PrivacyError("lies in (0, 1)", where="delta", value=delta)
    for release in releases:
        if not (release.noise_multiplier >= 0 and math.isfinite(release.noise_multiplier)):
            raise PrivacyError("must be 0 or more", where="noise_multiplier", value=release.noise_multiplier)
        if release.count < 0:
            raise PrivacyError("must be 0 or more", where="rounds", value=release.count)
    units = {unit_of(release.sampling) for release in releases} | ({unit} if unit else set())
    if len(units) > 1:
        raise PrivacyError(f"no one guarantee covers different units: {', '.join(sorted(units))}")
    unit = next(iter(units), UNIT)
    relations = {release.sampling.neighbouring for release in releases}
    if len(relations) > 1:
        raise PrivacyError(
            f"releases with different neighbouring relations do not compose: {', '.join(sorted(relations))}"
        )
    releases = [release for release in releases if release.count]
    multipliers = {release.noise_multiplier for release in releases}
    first, second = _epsilons(tuple(releases), delta)
    return Guarantee(
        first[0],
        delta,
        unit,
        next(iter(relations), f"add or remove one {unit}"),
        " and ".join(dict.fromkeys(release.sampling.describe() for release in releases)) or "nothing released",
        first[1],
        second[0],
        second[1],
        sum(release.count for release in releases),
        next(iter(multipliers)) if len(multipliers) == 1 else None,
    )


def by_observer(
    spent: Sequence[Sequence[ObservedRelease]], delta: float, unit: str | None = None
) -> dict[str, Guarantee]:
    """By observer, the guarantee of all releases together; who is not named by each of them has ε = ∞.

    Args:
        spent: One item a release, each with the noise that hides it from some observers.
        delta: Of every guarantee.
        unit: Whose data is protected as one; as the releases say when not given.
    """
    named = [frozenset().union(*(seen.observers for seen in releases)) for releases in spent]
    observers = frozenset.intersection(*named) if named else MODELS_ONLY
    guarantees: dict[str, Guarantee] = {}
    known: dict[tuple[Release, ...], Guarantee] = {}
    for observer in sorted(observers):
        counts: dict[Release, int] = {}
        for releases in spent:
            for seen in releases:
                if observer in seen.observers:
                    one = replace(seen.release, count=1)
                    counts[one] = counts.get(one, 0) + seen.release.count
        terms = tuple(replace(one, count=count) for one, count in counts.items())
        if terms not in known:
            known[terms] = compose(terms, delta, unit)
        guarantees[observer] = known[terms]
    return guarantees


def times(releases: Sequence[ObservedRelease], count: int) -> list[ObservedRelease]:
    """The same releases ``count`` times over."""
    return [replace(seen, release=replace(seen.release, count=seen.release.count * count)) for seen in releases]


def marks(rounds: int, points: int = 25) -> list[int]:
    """About ``points`` of ``rounds`` rounds evenly spread, the last among them: where to say what ε is spent."""
    return sorted({math.ceil(rounds * (i + 1) / points) for i in range(points)}) if rounds else []


@lru_cache(maxsize=256)
def _epsilons(releases: tuple[Release, ...], delta: float) -> tuple[tuple[float, str], tuple[float, str]]:
    """ε with the name of its accountant, twice: to report, and to check it by."""
    if any(release.noise_multiplier == 0 for release in releases):
        return (math.inf, "none: no noise"), (math.inf, "none: no noise")
    if any(release.shares is not None for release in releases):
        return _distributed(releases, delta)
    if any(isinstance(release.sampling, FixedSizeSampling) for release in releases):
        rows = [
            (
                _or_infinity(lambda: _rdp_fixed(releases, delta)),
                "RDP, sampling without replacement (Wang et al. 2019)",
            ),
            (_or_infinity(lambda: _pld_unsampled_replace(releases, delta)), "PLD, without amplification"),
        ]
    else:
        bound = _or_infinity(lambda: _rdp(releases, delta))
        exact = _or_infinity(lambda: _pld([event_of(r) for r in releases], delta, _scale(bound, releases, delta)))
        rows = [(exact, "PLD"), (bound, "RDP")]
    # Both are upper bounds, so the smaller one holds. PLD is it, save where its discretisation is coarse (a very
    # large ε) or its truncated tail outweighs δ.
    rows.sort()
    return rows[0], rows[1]


def _or_infinity(bound: Callable[[], float]) -> float:
    """What an accountant states; infinite, which is never too small, where it leaves the range of its numbers."""
    try:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # seen in the result
            epsilon = bound()
    except PrivacyError:
        raise
    except (ArithmeticError, ValueError):
        return math.inf
    return math.inf if math.isnan(epsilon) else epsilon


def _scale(bound: float, releases: Sequence[Release], delta: float) -> float:
    """``bound``, or where RDP has none, the ε of unsampled zCDP (Bun & Steinke 2016, Proposition 1.3)."""
    if math.isfinite(bound):
        return bound
    rho = sum(_draws(release) / (2 * release.noise_multiplier**2) for release in releases)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def _draws(release: Release) -> int:
    """Gaussians in a kind of release."""
    steps = release.sampling.steps if isinstance(release.sampling, LocalPoissonSampling) else 1
    return release.count * steps


def event_of(release: Release) -> Any:
    """The add-or-remove event of one release kind, under Poisson sampling or none.

    Raises:
        PrivacyError: No event is known for its sampling scheme.
    """
    import dp_accounting as dp

    scheme, draws = release.sampling, _draws(release)
    if isinstance(scheme, PoissonSampling | LocalPoissonSampling) and scheme.rate < 1:
        gaussian = dp.GaussianDpEvent(release.noise_multiplier)
        return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(scheme.rate, gaussian), draws)
    unsampled = PoissonSampling | LocalPoissonSampling | FullParticipation | KnownCohorts | RoundRobinSampling
    if isinstance(scheme, unsampled):
        # T unsampled Gaussians are one Gaussian of T times the signal-to-noise ratio squared: exact, and fast.
        return dp.GaussianDpEvent(release.noise_multiplier / math.sqrt(draws))
    raise PrivacyError("no event is known for this sampling scheme", value=release.sampling.describe())


def _pld(events: Sequence[Any], delta: float, bound: float) -> float:
    """ε of add-or-remove events; ``bound`` is any upper bound on it, and says how fine the loss must be cut."""
    from dp_accounting import NeighboringRelation, pld

    interval = max(PLD_INTERVAL, PLD_SHARE * bound)
    accountant = pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta)) if events else 0.0


def _rdp(releases: Sequence[Release], delta: float) -> float:
    from dp_accounting import NeighboringRelation, rdp

    accountant = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    for release in releases:
        accountant.compose(event_of(release))
    return float(accountant.get_epsilon(delta)) if releases else 0.0


def _distributed(releases: Sequence[Release], delta: float) -> tuple[tuple[float, str], tuple[float, str]]:
    """Rényi curves of integer noise; the cross-check gives up all amplification."""
    from privfed.privacy.distributed_accounting import epsilon_of

    if any(release.shares is None for release in releases):
        raise PrivacyError("integer noise composes with integer noise only")
    shares = [replace(release.shares, count=release.count) for release in releases if release.shares is not None]
    known = [replace(one, population=None) for one in shares]
    return (
        (epsilon_of(shares, delta), "RDP of integer noise"),
        (epsilon_of(known, delta), "RDP of integer noise, cohorts known"),
    )


def _rdp_fixed(releases: Sequence[Release], delta: float) -> float:
    """Replace-one moves the sum by two clip norms, so the event's noise multiplier is half of ours."""
    import dp_accounting as dp
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    for release in releases:
        scheme = release.sampling
        if not isinstance(scheme, FixedSizeSampling):
            raise PrivacyError("fixed-size cohorts compose with each other only")
        gaussian = dp.GaussianDpEvent(release.noise_multiplier / 2)
        event = dp.SampledWithoutReplacementDpEvent(scheme.population, scheme.size, gaussian)
        accountant.compose(dp.SelfComposedDpEvent(event, release.count))
    return float(accountant.get_epsilon(delta)) if releases else 0.0


def _pld_unsampled_replace(releases: Sequence[Release], delta: float) -> float:
    """An upper bound whatever the cohorts are: as if the replaced client were in each of them."""
    doubled = [Release(FullParticipation(), release.noise_multiplier / 2, release.count) for release in releases]
    bound = _or_infinity(lambda: _rdp(doubled, delta))
    return _pld([event_of(release) for release in doubled], delta, _scale(bound, doubled, delta))
