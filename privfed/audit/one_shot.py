"""Estimates of ε from one training (Andrew et al. 2023, "One-shot empirical privacy estimation for FL").

Scores of canaries that took part, and of canaries that did not, are each taken for Gaussian; the ε of that pair of
Gaussians estimates what one client's presence gives away. It is an estimate and no bound: it trusts the fit, far
into tails that no canary reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

Real = NDArray[np.float64]

CONFIDENCE = 0.99
"""Of intervals: wider than usual, since one report compares several of them with its claims."""
HIGHEST = 1e4
"""ε is sought up to here."""
_BISECTIONS = 60
_RESAMPLES = 1000
_EQUAL = 1e-9


@dataclass(frozen=True)
class Estimate:
    """An estimate of ε with an interval.

    Attributes:
        method: In words.
        epsilon: The estimate.
        low: Lower end of the interval.
        high: Upper end.
        confidence: Of the interval, as far as the model behind it is right.
    """

    method: str
    epsilon: float
    low: float
    high: float
    confidence: float = CONFIDENCE


def gaussian_pair_epsilon(shift: Any, ratio: Any, delta: float) -> Real:
    """The smallest ε for which N(0, 1) and N(``shift``, ``ratio``²) are (ε, ``delta``)-indistinguishable.

    Both directions count. Scores with means ``a``, ``b`` and deviations ``s``, ``t`` are such a pair with a shift
    of ``(b - a) / s`` and a ratio of ``t / s``. Arguments broadcast.
    """
    shift, ratio = np.broadcast_arrays(np.asarray(shift, np.float64), np.asarray(ratio, np.float64))
    low, high = np.zeros(shift.shape), np.full(shift.shape, HIGHEST)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # The other direction is the same pair seen from the second Gaussian.
        beyond = np.maximum(_hockey_stick(shift, ratio, middle), _hockey_stick(-shift / ratio, 1 / ratio, middle))
        low, high = np.where(beyond > delta, middle, low), np.where(beyond > delta, high, middle)
    none = np.maximum(_hockey_stick(shift, ratio, low * 0), _hockey_stick(-shift / ratio, 1 / ratio, low * 0))
    return np.where(none <= delta, 0.0, high)


def _hockey_stick(shift: Real, ratio: Real, epsilon: Real) -> Real:
    """``P(S) - e^ε Q(S)`` for Q = N(0, 1), P = N(shift, ratio²) and S where the density of P is ``e^ε`` of Q's.

    The log ratio of densities is a parabola, so S is a half-line, an interval, or what lies outside one.
    """
    bend = (1 - ratio**-2) / 2
    slope = shift / ratio**2
    level = -np.log(ratio) - slope * shift / 2 - epsilon
    straight = np.abs(bend) < _EQUAL
    with np.errstate(all="ignore"):
        spread = np.sqrt(np.maximum(slope**2 - 4 * bend * level, 0.0))
        # The stable way to the roots of bend·x² + slope·x + level.
        half = -(slope + np.copysign(spread, slope)) / 2
        one, other = half / bend, level / half
        first, last = np.fmin(one, other), np.fmax(one, other)
        real = slope**2 - 4 * bend * level > 0
        edge = -level / slope

        def mass(mean: Any, deviation: Any, weight: Any) -> Real:
            a, b = (first - mean) / deviation, (last - mean) / deviation
            outside = np.exp(weight + log_ndtr(a)) + np.exp(weight + log_ndtr(-b))
            mirrored = a + b > 0  # so that the difference is taken in the lower tail
            near, far = np.where(mirrored, -b, a), np.where(mirrored, -a, b)
            inside = np.exp(weight + log_ndtr(far)) - np.exp(weight + log_ndtr(near))
            curved = np.where(
                bend > 0,
                np.where(real, outside, np.exp(weight + np.zeros_like(bend))),
                np.where(real, inside, 0.0),
            )
            beyond = np.exp(weight + log_ndtr(np.copysign(1.0, slope) * (mean - edge) / deviation))
            nothing_to_tell = np.where(level > 0, np.exp(weight + np.zeros_like(bend)), 0.0)
            return np.where(straight, np.where(slope == 0, nothing_to_tell, beyond), curved)

        found = mass(shift, ratio, np.zeros_like(epsilon)) - mass(0.0, 1.0, epsilon)
    return np.maximum(found, 0.0)


def gaussian_fit(
    scores: Real, included: NDArray[np.bool_], delta: float, method: str, rng: np.random.Generator
) -> Estimate | None:
    """ε of the Gaussians fitted to scores ``[m]`` of canaries that took part and that did not (Algorithm 2).

    The interval is a parametric bootstrap's, reflected at the estimate: the estimate leans upwards, since it
    turns chance differences of the two deviations into ε, and the reflection takes that off. ``None`` where one of
    the two has fewer than three canaries; infinite where scores that do not vary tell the two apart.
    """
    seen, unseen = scores[included], scores[~included]
    if min(len(seen), len(unseen)) < 3:
        return None
    deviations = unseen.std(ddof=1), seen.std(ddof=1)
    if min(deviations) <= 0:
        if seen.min() > unseen.max() or seen.max() < unseen.min():
            return Estimate(method, math.inf, math.inf, math.inf)
        return None

    def fitted(means: Sequence[Any], spreads: Sequence[Any]) -> Real:
        return gaussian_pair_epsilon((means[1] - means[0]) / spreads[0], spreads[1] / spreads[0], delta)

    means = unseen.mean(), seen.mean()
    epsilon = float(fitted(means, deviations))
    sizes = len(unseen), len(seen)
    resampled = fitted(
        tuple(
            rng.normal(m, s / math.sqrt(n), _RESAMPLES) for m, s, n in zip(means, deviations, sizes, strict=True)
        ),
        tuple(
            s * np.sqrt(rng.chisquare(n - 1, _RESAMPLES) / (n - 1)) for s, n in zip(deviations, sizes, strict=True)
        ),
    )
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(
        method, epsilon, max(0.0, 2 * epsilon - float(upper)), max(epsilon, 2 * epsilon - float(lower))
    )


@dataclass(frozen=True)
class RoundScores:
    """What the inner products of canaries with all rounds' noised sums come to.

    Attributes:
        with_count: Pairs of canary and round where the canary was in the sum.
        with_sum: Sum of their inner products, in units of the clip norm: about one each.
        with_squares: Sum of their squares.
        without_count: Pairs where it was not.
        without_sum: Sum of their inner products, in units of the claimed noise's standard deviation.
        without_squares: Sum of their squares: about one each.
    """

    with_count: int
    with_sum: float
    with_squares: float
    without_count: int
    without_sum: float
    without_squares: float


def composed_fit(
    scores: RoundScores,
    dimension: int,
    rounds: int,
    epsilon_of: Callable[[float], float],
    method: str,
) -> Estimate | None:
    """The noise fitted to single rounds, and the ε that the accountant gives a training with that noise.

    Andrew et al.'s pair of Gaussians for one round: ``N(0, τ²)`` without the canary and ``N(μ, τ²)`` with it, so
    the noise is ``τ / μ`` times the claimed one. Rounds compose, and cohorts amplify, as the accountant says: what
    the estimate tests is noise and clip, not sampling or composition. Other clients' updates count as noise.

    Args:
        scores: Of all rounds.
        dimension: Of the sums; ``rounds`` sums of so many coordinates is all the noise there is to measure.
        rounds: Sums scored.
        epsilon_of: From the factor between real and claimed noise multiplier to ε.
        method: In words.
    """
    if scores.with_count < 3 or scores.without_count < 3:
        return None
    mean = scores.without_sum / scores.without_count
    deviation = math.sqrt(max(0.0, scores.without_squares / scores.without_count - mean**2))
    shift = scores.with_sum / scores.with_count
    if deviation <= 0:
        return Estimate(method, math.inf, math.inf, math.inf) if shift > 0 else None
    # Relative standard errors of both; scores of one round share its noise.
    of_deviation = math.sqrt(0.5 / scores.without_count + 0.5 / (dimension * max(1, rounds)))
    of_shift = math.sqrt(max(0.0, scores.with_squares / scores.with_count - shift**2) / scores.with_count)
    quantile = 2.5758293035489004  # of the standard normal at 99.5 %
    largest = deviation * (1 + quantile * of_deviation)
    smallest = deviation * max(1e-6, 1 - quantile * of_deviation)

    def at(spread: float, distance: float) -> float:
        return epsilon_of(spread / distance) if distance > 0 else 0.0

    return Estimate(
        method,
        at(deviation, shift),
        at(largest, shift - quantile * of_shift),
        at(smallest, shift + quantile * of_shift),
    )
