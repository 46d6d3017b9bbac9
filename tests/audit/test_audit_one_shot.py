"""Estimates from one run: two Gaussians against integration, and fits to a mechanism simulated exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from privfed.audit.one_shot import RoundScores, composed_fit, gaussian_fit, gaussian_pair_epsilon
from privfed.privacy.accounting import account
from privfed.privacy.sampling import PoissonSampling

DELTA = 1e-5


def integrated(shift: float, ratio: float, epsilon: float) -> float:
    """δ of the pair at ε, by summing densities."""
    reach = 14 * max(1.0, ratio)
    x = np.linspace(min(0, shift) - reach, max(0, shift) + reach, 400_001)
    p, q = norm.pdf(x, shift, ratio), norm.pdf(x)
    both = (np.maximum(a - np.exp(epsilon) * b, 0).sum() for a, b in ((p, q), (q, p)))
    return float(max(both) * (x[1] - x[0]))


@pytest.mark.parametrize(("shift", "ratio"), [(1, 1), (-1, 1), (2, 1), (1, 1.2), (1, 0.8), (0, 1.5), (0, 0.7)])
def test_the_pair_is_indistinguishable_at_its_epsilon_and_not_below(shift: float, ratio: float) -> None:
    epsilon = float(gaussian_pair_epsilon(shift, ratio, DELTA))
    assert integrated(shift, ratio, epsilon) == pytest.approx(DELTA, rel=1e-3)
    assert integrated(shift, ratio, 0.99 * epsilon) > DELTA


def test_known_values_of_the_pair() -> None:
    assert float(gaussian_pair_epsilon(1.0, 1.0, DELTA)) == pytest.approx(4.3772, abs=1e-4)
    assert float(gaussian_pair_epsilon(0.0, 1.0, DELTA)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "canaries"), [(1.0, 200), (0.5, 1000), (3.0, 200)])
def test_the_interval_lies_above_the_truth_in_hardly_any_run(sigma: float, canaries: int) -> None:
    rng, truth = np.random.default_rng(3), float(gaussian_pair_epsilon(1 / sigma, 1.0, DELTA))
    above = 0
    for _ in range(20):
        included = rng.random(canaries) < 0.5
        scores = sigma * rng.standard_normal(canaries) + included
        fit = gaussian_fit(scores, included, DELTA, "fit", rng)
        assert fit is not None
        assert fit.low <= fit.epsilon <= fit.high
        above += fit.low > truth
    assert above <= 1  # at a rate of 0.5 %, two of twenty come by chance once in 200


def test_scores_that_do_not_vary_and_tell_are_infinite() -> None:
    included = np.arange(20) < 10
    fit = gaussian_fit(included.astype(float), included, DELTA, "fit", np.random.default_rng(0))
    assert fit is not None
    assert fit.low == np.inf
    assert gaussian_fit(np.ones(20), included, DELTA, "fit", np.random.default_rng(0)) is None


def rounds_of(factor: float, rng: np.random.Generator) -> RoundScores:
    """60 rounds of 200 canaries at rate 0.1 and noise multiplier 1, times ``factor``."""
    included, scores = rng.random(200) < 0.5, factor * rng.standard_normal((60, 200))
    there = (rng.random((60, 200)) < 0.1) & included
    with_it, without = (scores + 1)[there], scores[~there]
    return RoundScores(
        len(with_it),
        float(with_it.sum()),
        float((with_it**2).sum()),
        len(without),
        float(without.sum()),
        float((without**2).sum()),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "flagged"), [(1.0, 0), (0.5, 10), (0.1, 10)])
def test_half_the_noise_is_flagged_in_every_run_and_the_right_noise_in_none(factor: float, flagged: int) -> None:
    rng = np.random.default_rng(4)

    def epsilon_of(by: float) -> float:
        # Coarse steps of the argument, always to less noise or all to more, would bias; the accountant caches.
        return account(round(by, 2), PoissonSampling(0.1), 60, DELTA).epsilon

    claim, found = epsilon_of(1.0), 0
    for _ in range(10):
        fit = composed_fit(rounds_of(factor, rng), 7850, 60, epsilon_of, "fit")
        assert fit is not None
        found += fit.low > claim
    assert found == flagged
