"""Skellam noise of the claimed distribution.

Every statistical test here fails on correct code with probability below 1e-6; each has a negative with the wrong
scale that must be caught. Seeds are fixed, so a pass stays a pass.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ive
from scipy.stats import chi2, kstest, norm
from scipy.stats import skellam as reference

from privfed.privacy.errors import PrivacyError
from privfed.privacy.randomness import RandomSource, SeededSource, SystemSource
from privfed.privacy.skellam import MAX_VARIANCE, MIN_VARIANCE, _levels, _reach, log_pmf, skellam

FALSE_ALARM = 1e-6
SIZE = 200_000


def chi_square_p(samples: np.ndarray, variance: float) -> float:
    """Of Pearson's test; values rarer than 8 times in the sample are one cell."""
    support = np.arange(-_reach(variance), _reach(variance) + 1)
    expected = len(samples) * reference.pmf(support, variance / 2, variance / 2)
    inside = expected >= 8
    observed = np.array([(samples == value).sum() for value in support[inside]])
    rest_expected, rest_observed = len(samples) - expected[inside].sum(), len(samples) - observed.sum()
    statistic = (np.square(observed - expected[inside]) / expected[inside]).sum()
    statistic += (rest_observed - rest_expected) ** 2 / max(rest_expected, 8)
    return float(chi2.sf(statistic, inside.sum()))


@pytest.mark.parametrize("variance", [0.02, 0.5, 3.0, 40.0, 1500.0])
@pytest.mark.parametrize("source", [SeededSource(11), SystemSource()], ids=["seeded", "system"])
def test_skellam_has_its_probabilities_and_a_wrong_variance_is_caught(
    variance: float, source: RandomSource
) -> None:
    samples = skellam(variance, SIZE, source)
    assert chi_square_p(samples, variance) > FALSE_ALARM
    assert chi_square_p(samples, 1.15 * variance) < FALSE_ALARM


@pytest.mark.parametrize("variance", [1e6, 1e8, MAX_VARIANCE])
def test_skellam_of_a_fine_grid_is_gaussian(variance: float) -> None:
    samples = skellam(variance, SIZE, SeededSource(12)) / math.sqrt(variance)
    assert kstest(samples, norm.cdf).pvalue > FALSE_ALARM
    assert kstest(samples * 1.05, norm.cdf).pvalue < FALSE_ALARM


def test_a_sum_of_shares_is_skellam_of_the_summed_variance() -> None:
    total = sum(skellam(0.3, SIZE, SeededSource(13, client)) for client in range(20))
    assert chi_square_p(total, 6.0) > FALSE_ALARM
    assert chi_square_p(total, 5.7) < FALSE_ALARM


@pytest.mark.parametrize("variance", [1000.0, 5000.0, 1e5])
def test_the_expansion_agrees_with_the_bessel_function(variance: float) -> None:
    # Far beyond what is ever drawn; SciPy's own error is some 1e-12.
    values = np.arange(int(20 * math.sqrt(variance)))
    np.testing.assert_allclose(log_pmf(values, variance), np.log(ive(values, variance)), atol=3e-12)


@pytest.mark.parametrize("variance", [MIN_VARIANCE, 0.02, 1.0, 77.0, 1e4, 1e8])
def test_the_tables_hold_the_distribution_down_to_its_tail(variance: float) -> None:
    """Undoes the tables into probabilities: within the factor that the docstring claims, and nothing cut off."""
    reach, passed, probabilities = _reach(variance), 1.0, []
    for level in _levels(variance):
        ends = np.append(level.thresholds.astype(np.float64)[::-1] / 2.0**63, [])
        probabilities.append(passed * -np.diff(ends, prepend=1.0))
        passed *= ends[-1]
    assert passed == 0
    table = np.concatenate(probabilities)
    assert len(table) == reach + 1
    exact = np.exp(log_pmf(np.arange(reach + 1), variance)) * np.where(np.arange(reach + 1) > 0, 2, 1)
    assert 1 - exact.sum() < 1e-11
    # At the very end the normalisation by what lies inside matters, which is no factor any more.
    near = exact > 2.0**-78
    np.testing.assert_allclose(table[near] / exact[near], 1, atol=2.0**-35)


def test_the_distribution_ends_where_less_than_2_to_minus_80_is_left() -> None:
    for variance in (0.02, 1.0, 500.0):
        beyond = np.exp(log_pmf(np.arange(_reach(variance) + 1, _reach(variance) + 60), variance)).sum()
        assert 2 * beyond < 2.0**-80


def test_seeded_noise_repeats_and_secure_noise_does_not() -> None:
    np.testing.assert_array_equal(skellam(9.0, 100, SeededSource(1)), skellam(9.0, 100, SeededSource(1)))
    assert not np.array_equal(skellam(9.0, 100, SystemSource()), skellam(9.0, 100, SystemSource()))
    assert skellam(9.0, 0, SystemSource()).shape == (0,)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, MIN_VARIANCE / 2, MAX_VARIANCE * 2])
def test_variances_out_of_range_are_refused(variance: float) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        skellam(variance, 3, SystemSource())
