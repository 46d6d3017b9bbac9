"""Noise of the claimed distribution, clipping of the claimed bound, randomness that is uniform.

Every statistical test here fails on correct code with probability below 1e-6; each has a negative with the wrong
scale that must be caught. Seeds are fixed, so a pass stays a pass.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mechanism_calls import on_client, on_server
from scipy.stats import chi2, kstest, norm

from privfed.privacy.clipping import clip_by_l2, l2_norm
from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError
from privfed.privacy.mechanisms import CentralGaussian, NoMechanism
from privfed.privacy.noise import bernoulli_exp, discrete_gaussian, discrete_laplace
from privfed.privacy.randomness import RandomSource, SeededSource, SystemSource, below, bernoulli, choice, uniform
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling

FALSE_ALARM = 1e-6
SIZE = 200_000


def chi_square_p(samples: np.ndarray, weight: np.ndarray, support: np.ndarray) -> float:
    expected = len(samples) * weight / weight.sum()
    inside = expected >= 8
    observed = np.array([(samples == v).sum() for v in support[inside]])
    rest_expected, rest_observed = len(samples) - expected[inside].sum(), len(samples) - observed.sum()
    statistic = (np.square(observed - expected[inside]) / expected[inside]).sum()
    statistic += (rest_observed - rest_expected) ** 2 / max(rest_expected, 8)
    return float(chi2.sf(statistic, inside.sum()))


@pytest.mark.parametrize("stddev", [1, 2, 5])
@pytest.mark.parametrize("claimed_over_true", [1.0, 1.05])
def test_discrete_gaussian_has_its_probabilities_and_a_wrong_scale_is_caught(
    stddev: int, claimed_over_true: float
) -> None:
    samples = discrete_gaussian(stddev, SIZE, SeededSource(1, stddev))
    support = np.arange(-12 * stddev, 12 * stddev + 1)
    weight = np.exp(-np.square(support / (stddev * claimed_over_true)) / 2)
    assert (chi_square_p(samples, weight, support) > FALSE_ALARM) == (claimed_over_true == 1)


@pytest.mark.parametrize("source", [SeededSource(7), SystemSource()])
def test_discrete_gaussian_of_a_fine_grid_is_gaussian(source: RandomSource) -> None:
    samples = discrete_gaussian(2**21 + 3, SIZE, source) / (2**21 + 3)
    assert kstest(samples, norm.cdf).pvalue > FALSE_ALARM
    assert kstest(samples * 1.05, norm.cdf).pvalue < FALSE_ALARM


def test_discrete_laplace_and_bernoulli_exp() -> None:
    support = np.arange(-60, 61)
    samples = discrete_laplace(3, SIZE, SeededSource(2))
    assert chi_square_p(samples, np.exp(-np.abs(support) / 3), support) > FALSE_ALARM
    assert chi_square_p(samples, np.exp(-np.abs(support) / 3.1), support) < FALSE_ALARM
    for numerator in (0, 1, 5, 7):
        hits = bernoulli_exp(np.full(SIZE, numerator), 7, SeededSource(3, numerator)).sum()
        p = math.exp(-numerator / 7)
        assert abs(hits - SIZE * p) <= 5 * math.sqrt(SIZE * p * (1 - p))  # 5σ: below 1e-6


@pytest.mark.parametrize("stddev", [0, -1, 2**40 + 1, 1.5])
def test_discrete_gaussian_refuses_scales_it_cannot_sample(stddev: int) -> None:
    with pytest.raises(PrivacyError, match="stddev"):
        discrete_gaussian(stddev, 3, SystemSource())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("claimed_over_true", [1.0, 0.95])
def test_central_gaussian_adds_the_noise_it_claims(secure: bool, claimed_over_true: float) -> None:
    mechanism = CentralGaussian(clip_norm=0.3, noise_multiplier=1.7, secure=secure)
    total = np.random.default_rng(0).normal(size=SIZE)
    source = SystemSource() if secure else SeededSource(5)
    noise = on_server(mechanism, total, source) - total
    p = kstest(noise / (claimed_over_true * 0.51), norm.cdf).pvalue
    assert (p > FALSE_ALARM) == (claimed_over_true == 1)
    if secure:
        noised = on_server(mechanism, total, source)
        np.testing.assert_array_equal(noised, np.rint(noised / mechanism.grid) * mechanism.grid)


def test_secure_mode_keeps_the_sensitivity_after_rounding_to_the_grid() -> None:
    mechanism = CentralGaussian(clip_norm=1.0, noise_multiplier=2.0, secure=True)
    rng = np.random.default_rng(0)
    for _ in range(50):
        others, mine = rng.normal(size=400), rng.normal(size=400).astype(np.float32)
        update = on_client(mechanism, mine, 0.0).vector.astype(np.float64)
        difference = np.rint((others + update) / mechanism.grid) - np.rint(others / mechanism.grid)
        assert np.linalg.norm(difference) * mechanism.grid <= mechanism.clip_norm


def test_floating_point_noise_is_refused_from_the_secure_source() -> None:
    with pytest.raises(PrivacyError, match="floating-point"):
        on_server(CentralGaussian(1.0, 1.0), np.zeros(3), SystemSource())


def test_mechanisms_protect_whom_they_say() -> None:
    mechanism = CentralGaussian(1.0, 2.0)
    (seen,) = mechanism.releases(PoissonSampling(0.1))
    assert seen.observers == {"client", "release"}
    assert seen.release.noise_multiplier == 2.0
    assert mechanism.sensitivity(PoissonSampling(0.1)).norm == 1.0
    assert mechanism.sensitivity(FixedSizeSampling(1, 3)).norm == 2.0
    assert not NoMechanism().releases(PoissonSampling(0.1))
    assert on_client(NoMechanism(), np.full(3, 9, np.float32), 0.0).vector[0] == 9
    np.testing.assert_array_equal(on_server(NoMechanism(1.0), np.arange(3.0), SystemSource()), np.arange(3.0))


def test_noise_that_rounding_would_drown_is_refused() -> None:
    with pytest.raises(PrivacyError, match="ring_bits = 64"):
        on_client(NoMechanism(1.0), np.ones(3, np.float32), 0.6)
    for values in ((0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan)):
        with pytest.raises(PrivacyError, match="positive"):
            CentralGaussian(*values)
    with pytest.raises(PrivacyError, match="not finite"):
        on_server(CentralGaussian(1.0, 1.0), np.array([np.nan]), SeededSource(1))


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(deadline=None, max_examples=300)
@given(st.lists(finite, min_size=1, max_size=40), st.floats(1e-6, 1e6))
def test_clipping_bounds_the_float32_result_and_keeps_the_direction(values: list[float], norm_: float) -> None:
    update = np.array(values, np.float32)
    clipped = clip_by_l2(update, norm_)
    assert l2_norm(clipped.vector) <= norm_
    assert clipped.was_clipped == (l2_norm(update) > norm_)
    if not clipped.was_clipped:
        np.testing.assert_array_equal(clipped.vector, update)
    else:
        cosine = np.dot(update.astype(float), clipped.vector) / l2_norm(update)
        assert cosine >= 0.999 * norm_ or norm_ < 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("ratio", [0.5, 1 - 1e-6, 1 + 1e-6, 3.0])
def test_long_updates_are_clipped_as_short_ones(scale: float, ratio: float) -> None:
    update = (np.random.default_rng(5).normal(size=20_000) * scale).astype(np.float32)
    exact = float(np.linalg.norm(update.astype(np.float64)))
    clipped = clip_by_l2(update, exact / ratio)
    assert clipped.was_clipped == (ratio > 1)
    assert clipped.norm_before == pytest.approx(exact, rel=2.0**-16)
    assert (1 - 2.0**-15) * min(exact, exact / ratio) <= l2_norm(clipped.vector) <= exact / ratio
    np.testing.assert_array_equal(clipped.vector, clipped.unscaled * clipped.factor)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [2, 20_000])
def test_no_clip_bounds_what_is_not_finite(bad: float, size: int) -> None:
    update = np.ones(size, np.float32)
    update[-1] = bad
    with pytest.raises(NonFiniteUpdateError):
        clip_by_l2(update, 1.0)


def test_randomness_is_uniform_reproducible_where_seeded_and_fresh_where_secure() -> None:
    np.testing.assert_array_equal(SeededSource(1, 2).words(5), SeededSource(1, 2).words(5))
    assert not np.array_equal(SeededSource(1, 2).words(5), SeededSource(1, 3).words(5))
    assert not np.array_equal(SystemSource().words(5), SystemSource().words(5))
    for source in (SeededSource(4), SystemSource()):
        assert kstest(uniform(source, SIZE), "uniform").pvalue > FALSE_ALARM
        draws = below(source, 7, SIZE)
        assert chi_square_p(draws, np.ones(7), np.arange(7)) > FALSE_ALARM
        hits = bernoulli(source, 0.3, SIZE).sum()
        assert abs(hits - 0.3 * SIZE) < 5 * math.sqrt(0.21 * SIZE)


def test_choice_takes_every_set_equally_often() -> None:
    source = SeededSource(9)
    sets = [tuple(choice(source, 5, 2)) for _ in range(20_000)]
    codes = np.array([5 * a + b for a, b in sets])
    support = np.unique(codes)
    assert len(support) == 10
    assert chi_square_p(codes, np.ones(10), support) > FALSE_ALARM
    with pytest.raises(PrivacyError, match="size"):
        choice(source, 3, 4)
