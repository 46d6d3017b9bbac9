"""What noise brought by the clients protects, also from the server: Rényi curves, composition, calibration.

Whose view is bounded: anyone's who learns of a round no more than the sum of noised vectors, that is the server's
under secure aggregation, and everyone's after it. Only shares of survivors count, less those of colluders, who
know their own.

What may differ between neighbours, with ``Δ2 = params.norm_bound`` and ``Δ1 = params.l1_bound``:

- ``ZERO_OUT``: one client sends zeros (and its noise) instead of its update. Sensitivities Δ2 and Δ1. This is
  add-or-remove where participation is no secret. It says nothing about hiding that a client took part: a missing
  share of noise may be noticed.
- ``REPLACE``: one client sends another update. Sensitivities 2·Δ2 and 2·Δ1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.amplification import hidden_cohort_rdp
from privfed.privacy.calibration import smallest_where
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import REPLACE, ZERO_OUT

Floats = NDArray[np.float64]
Orders = NDArray[np.int64]

ORDERS: tuple[int, ...] = (*range(2, 129), *(int(128 * 2 ** (i / 8)) for i in range(1, 41)))
"""Integers, since the bounds for Skellam noise and for hidden cohorts hold for these; up to 4096."""
TAU_TERMS = 1000


@dataclass(frozen=True)
class DistributedRelease:
    """``count`` rounds alike.

    Attributes:
        params: The rounds' grid and noise.
        survivors: Clients whose vectors are in the sum.
        colluders: How many of them tell the observer their noise and their vectors.
        population: For an observer who does not see who takes part: of how many honest clients the honest
            survivors are a uniformly random set, given their number, which the strength of the noise gives away.
            (With Poisson or fixed-size cohorts, and dropouts that hit any client alike, all honest clients.)
            ``None`` for an observer who sees it, such as the server: no amplification.
        count: How many rounds.

    Raises:
        PrivacyError: A value is out of range.
    """

    params: DistributedParams
    survivors: int
    colluders: int = 0
    population: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.survivors <= self.params.cohort_size:
            raise PrivacyError(
                f"must be from 1 to the cohort size, {self.params.cohort_size}",
                where="survivors",
                value=self.survivors,
            )
        if not 0 <= self.colluders < self.survivors:
            raise PrivacyError(
                "must be from 0 to one less than the survivors", where="colluders", value=self.colluders
            )
        if self.population is not None and self.population < self.honest:
            raise PrivacyError(
                f"must be at least the {self.honest} honest survivors", where="population", value=self.population
            )
        if self.count < 0:
            raise PrivacyError("must be 0 or more", where="count", value=self.count)

    @property
    def honest(self) -> int:
        """Shares of noise that the observer does not know."""
        return self.survivors - self.colluders


def convolution_gap(local_stddev: float, shares: int) -> float:
    """τ of Kairouz et al. 2021, Theorem 1: how far a sum of discrete Gaussians is from one of the sum's variance.

    ``10·Σ_{k=1}^{n-1} exp(-2π²·σ²·k/(k+1))``. The logarithm of the ratio of their probabilities never exceeds half
    of it. Holds for ``σ ≥ 1/2``. Terms decrease; the last one computed stands for those after it.
    """
    if not local_stddev >= 0.5:
        raise PrivacyError("must be at least half a step", where="local_stddev", value=local_stddev)
    k = np.arange(1, min(shares, TAU_TERMS + 1))
    terms = np.exp(-2 * (math.pi * local_stddev) ** 2 * k / (k + 1))
    rest = max(0, shares - 1 - TAU_TERMS) * float(terms[-1]) if shares > 1 else 0.0
    return 10 * (float(terms.sum()) + rest)


def ddg_rdp(orders: Orders, l2: float, l1: float, dimension: int, local_stddev: float, shares: int) -> Floats:
    """Rényi divergence of a sum of ``shares`` discrete Gaussians (Kairouz et al. 2021, Proposition 14).

    With ``s² = shares · local_stddev²`` and τ of ``convolution_gap``, for each order α the least of
    ``α·l2²/(2s²) + τ·d``, ``α/2·(l2²/s² + 2τ·l1/s + τ²·d)`` and ``α/2·(l2/s + τ·sqrt(d))²``.

    Args:
        orders: Above 1.
        l2: L2 sensitivity in steps.
        l1: L1 sensitivity in steps.
        dimension: ``d``, padding included.
        local_stddev: Parameter of one share, in steps, at least 1/2.
        shares: How many are in the sum and unknown to the observer.
    """
    gap = convolution_gap(local_stddev, shares)
    ratio = l2 / (local_stddev * math.sqrt(shares))
    l1_ratio = l1 / (local_stddev * math.sqrt(shares))
    alpha = orders.astype(np.float64)
    added = alpha / 2 * ratio**2 + gap * dimension
    mixed = ratio**2 + 2 * gap * l1_ratio + gap**2 * dimension
    joined = (ratio + gap * math.sqrt(dimension)) ** 2
    return np.minimum(added, alpha / 2 * min(mixed, joined))


def skellam_rdp(orders: Orders, l2: float, l1: float, variance: float) -> Floats:
    """Rényi divergence of Skellam noise of ``variance`` μ in all (Agarwal, Kairouz & Liu 2021, Theorem 3.5).

    ``α·l2²/(2μ) + min(((2α - 1)·l2² + 6·l1)/(4μ²), 3·l1/(2μ))`` for integer orders α from 2 on.

    Args:
        orders: Integers.
        l2: L2 sensitivity in steps.
        l1: L1 sensitivity in steps.
        variance: Of the sum of the shares that the observer does not know, in steps².
    """
    alpha = orders.astype(np.float64)
    excess = np.minimum(((2 * alpha - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    result: Floats = alpha * l2**2 / (2 * variance) + excess
    return result


def curve_of(release: DistributedRelease, factor: float = 1.0) -> Callable[[Orders], Floats]:
    """Rényi curve of one round of ``release`` for an observer who sees who takes part.

    Args:
        release: Its ``count`` and ``population`` are left out of account.
        factor: Of the sensitivities: 1 for ``ZERO_OUT``, 2 for ``REPLACE``.
    """
    params = release.params
    l2, l1 = factor * params.norm_bound, factor * params.l1_bound
    if params.noise == "skellam":
        variance = release.honest * params.local_stddev**2
        return lambda orders: skellam_rdp(orders, l2, l1, variance)
    return lambda orders: ddg_rdp(orders, l2, l1, params.padded, params.local_stddev, release.honest)


def rdp_of(releases: Iterable[DistributedRelease], neighbouring: str = ZERO_OUT) -> Floats:
    """Rényi divergences of all releases together, at ``ORDERS``.

    Raises:
        PrivacyError: The neighbouring relation is unknown.
    """
    if neighbouring not in (ZERO_OUT, REPLACE):
        raise PrivacyError(f"must be '{ZERO_OUT}' or '{REPLACE}'", where="neighbouring", value=neighbouring)
    total = np.zeros(len(ORDERS))
    for release in releases:
        if release.count:
            once = DistributedRelease(release.params, release.survivors, release.colluders, release.population)
            total += release.count * np.array(_rdp_once(once, neighbouring))
    return total


def epsilon_of(releases: Iterable[DistributedRelease], delta: float, neighbouring: str = ZERO_OUT) -> float:
    """ε at ``delta`` of all releases together (Canonne, Kamath & Steinke 2020, Proposition 12).

    ``min over α of D(α) + log(1 - 1/α) - (log δ + log α)/(α - 1)``, which holds whatever earlier rounds led to.

    Raises:
        PrivacyError: An argument is out of range.
    """
    if not 0 < delta < 1:
        raise PrivacyError("lies in (0, 1)", where="delta", value=delta)
    divergences = rdp_of(releases, neighbouring)
    if not divergences.any():
        return 0.0
    orders = np.array(ORDERS, np.float64)
    epsilons = divergences + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(epsilons.min()))


def calibrate(
    epsilon: float,
    delta: float,
    rounds: int,
    choose: Callable[[float], DistributedParams],
    survivors: int,
    *,
    colluders: int = 0,
    population: int | None = None,
    neighbouring: str = ZERO_OUT,
) -> float:
    """A noise multiplier, in steps of ``RESOLUTION``, with which ``rounds`` rounds spend at most ``epsilon``.

    The smallest there is, up to the unevenness that whole grid steps bring.

    Args:
        epsilon: Target.
        delta: In (0, 1).
        rounds: How many.
        choose: The parameters for a noise multiplier, such as a partial ``DistributedParams.for_cohort``.
        survivors: To expect in each round; ε is larger with fewer.
        colluders: As in ``DistributedRelease``.
        population: As in ``DistributedRelease``.
        neighbouring: ``ZERO_OUT`` or ``REPLACE``.

    Raises:
        PrivacyError: A parameter is out of range, or no noise multiplier reaches the target.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise PrivacyError("must be a positive number", where="epsilon", value=epsilon)
    if rounds < 1:
        raise PrivacyError("must be at least 1", where="rounds", value=rounds)

    def spent(noise_multiplier: float) -> float:
        release = DistributedRelease(choose(noise_multiplier), survivors, colluders, population, rounds)
        return epsilon_of([release], delta, neighbouring)

    return smallest_where(spent, epsilon)


@lru_cache(maxsize=4096)
def _rdp_once(release: DistributedRelease, neighbouring: str) -> tuple[float, ...]:
    own = curve_of(release, 1.0 if neighbouring == ZERO_OUT else 2.0)
    if release.population is None:
        return tuple(own(np.array(ORDERS)))
    # In place of the client there may be anyone, at up to twice the norm from it.
    others = curve_of(release, 2.0)
    rate = release.honest / release.population
    return tuple(hidden_cohort_rdp(own, others, rate, order) for order in ORDERS)
