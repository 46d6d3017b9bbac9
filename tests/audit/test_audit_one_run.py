"""The one-run lower bound: known values, monotony, and on a mechanism simulated exactly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from privfed.audit.one_run import one_run_bound, p_value, refuted_epsilon
from privfed.audit.one_shot import gaussian_pair_epsilon

DELTA = 1e-5


def simulated(sigma: float, canaries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores and coins of canaries that do not disturb each other, each in one sum with noise ``sigma``."""
    included = rng.random(canaries) < 0.5
    return included + sigma * rng.standard_normal(canaries), included


def test_without_delta_it_is_the_tail_of_a_binomial() -> None:
    chance = 1 / (1 + np.exp(-1.3))
    assert p_value(100, 40, 35, 1.3, 0.0) == pytest.approx(float(binom.sf(34, 40, chance)))


def test_delta_adds_the_worst_mean_of_the_masses_below() -> None:
    chance, right = 1 / (1 + np.exp(-0.5)), 30
    masses = [binom.pmf(right - i, 40, chance) for i in range(1, right + 1)]
    worst = max(sum(masses[: i + 1]) / (i + 1) for i in range(right))
    expected = binom.sf(right - 1, 40, chance) + 2 * 100 * 1e-3 * worst
    assert p_value(100, 40, right, 0.5, 1e-3) == pytest.approx(expected)


def test_a_hundred_right_guesses_prove_what_they_must() -> None:
    # With δ = 0 and all r right, q^r = 0.05.
    q = 0.05 ** (1 / 100)
    assert refuted_epsilon(100, 100, 100, 0.0, 0.05) == pytest.approx(np.log(q / (1 - q)), abs=1e-6)


def test_guesses_by_the_coin_prove_nothing() -> None:
    assert refuted_epsilon(100, 100, 50, 0.0, 0.05) == 0.0
    with pytest.raises(ValueError, match="right <= guesses"):
        p_value(10, 5, 6, 1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_the_bound_exceeds_the_truth_in_at_most_one_of_twenty_runs(sigma: float) -> None:
    rng, truth = np.random.default_rng(5), float(gaussian_pair_epsilon(1 / sigma, 1.0, DELTA))
    above = sum(one_run_bound(*simulated(sigma, 500, rng), DELTA).epsilon > truth for _ in range(60))
    # At a rate of 5 %, more than 8 of 60 come by chance in less than 1 % of test suites.
    assert above <= 8


def test_a_tenth_of_the_noise_is_caught() -> None:
    rng = np.random.default_rng(6)
    claim = float(gaussian_pair_epsilon(1 / 3.0, 1.0, DELTA))
    found = [one_run_bound(*simulated(0.3, 1000, rng), DELTA).epsilon for _ in range(20)]
    assert sum(epsilon > claim for epsilon in found) >= 19
