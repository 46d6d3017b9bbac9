"""Rényi bounds of noise that clients bring, and of cohorts that nobody sees, against exact divergences."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from privfed.privacy.amplification import hidden_cohort_rdp, poisson_subsampled_rdp
from privfed.privacy.distributed_accounting import (
    convolution_gap,
    ddg_rdp,
    skellam_rdp,
)
from privfed.privacy.errors import PrivacyError
from privfed.privacy.skellam import log_pmf

INTEGERS = np.array([2, 3, 4, 8, 16, 32])


def divergence(log_p: np.ndarray, log_q: np.ndarray, order: float) -> float:
    """Rényi divergence of two distributions given by their logarithms on a grid of unit weight."""
    return float(logsumexp(order * log_p + (1 - order) * log_q)) / (order - 1)


# --- Rényi bounds of the two noises -----------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1.0, 5.0, 60.0, 3000.0])
@pytest.mark.parametrize("shift", [1, 2, 7])
def test_skellam_bound_holds_and_is_close_for_fine_grids(variance: float, shift: int) -> None:
    support = np.arange(-60 - int(25 * math.sqrt(variance)), 60 + int(25 * math.sqrt(variance)))
    log_p, log_q = log_pmf(support - shift, variance), log_pmf(support, variance)
    seen = np.isfinite(log_p) & np.isfinite(log_q)
    bounds = skellam_rdp(INTEGERS, shift, shift, variance)
    for order, bound in zip(INTEGERS, bounds, strict=True):
        exact = divergence(log_p[seen], log_q[seen], int(order))
        assert exact <= bound * (1 + 1e-9)
        if variance == 3000 and order <= 8:
            assert bound <= exact * 1.01
        if variance >= 60 and order <= 8:
            assert (
                exact > skellam_rdp(np.array([order]), shift, shift, variance * 1.15)[0] * 0.99
            )  # too much noise


def discrete_gaussian_log_pmf(support: np.ndarray, stddev: float) -> np.ndarray:
    exponent = -np.square(support / stddev) / 2
    return exponent - logsumexp(exponent)


@pytest.mark.parametrize("stddev", [0.5, 0.6, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("shares", [2, 3, 6])
def test_sums_of_discrete_gaussians_are_as_close_as_claimed_and_their_bound_holds(
    stddev: float, shares: int
) -> None:
    half = int(12 * stddev) + 2
    share = np.exp(discrete_gaussian_log_pmf(np.arange(-half, half + 1), stddev))
    total = share
    for _ in range(shares - 1):
        total = np.convolve(total, share)
    support = np.arange(-half * shares, half * shares + 1)
    centre = np.abs(support) <= 5 * stddev * math.sqrt(shares)  # beyond, the truncation of a share shows
    one = discrete_gaussian_log_pmf(support, stddev * math.sqrt(shares))
    gap = convolution_gap(stddev, shares)
    assert np.abs(np.log(total[centre]) - one[centre]).max() <= gap / 2 + 1e-9
    log_q = np.log(np.maximum(total, 1e-300))
    for shift in (1, 2, 3):
        log_p = np.roll(log_q, shift)
        for order in (2, 3, 4):
            exact = divergence(log_p[shift:], log_q[shift:], order)
            assert exact <= ddg_rdp(np.array([order]), shift, shift, 1, stddev, shares)[0] * (1 + 1e-6)


def test_the_gap_of_coarse_grids_makes_epsilon_grow_and_fine_grids_have_none() -> None:
    # By hand: σ = 1/2, two shares: 10·exp(-2π²/4·1/2).
    assert convolution_gap(0.5, 2) == pytest.approx(10 * math.exp(-(math.pi**2) / 4))
    assert convolution_gap(0.5, 1) == 0
    assert convolution_gap(10.0, 1000) < 1e-300
    slow = 10 * sum(math.exp(-2 * math.pi**2 * 0.36 * k / (k + 1)) for k in range(1, 5000))
    assert slow <= convolution_gap(0.6, 5000) <= slow * 1.01  # the tail is bounded, not summed
    coarse = ddg_rdp(np.array([8]), 10.0, 30.0, 1024, 0.8, 100)[0]
    assert coarse > 1.5 * 8 * 100 / (2 * 64)
    for bad in (0.4, 0.0, math.nan):
        with pytest.raises(PrivacyError, match="half a step"):
            convolution_gap(bad, 3)


# --- Cohorts that an observer does not see ----------------------------------------------------------------------

GRID = np.arange(-60, 60, 0.002)


def gaussian_mixture(means: tuple[float, float], rate: float, stddev: float) -> np.ndarray:
    parts = norm.logpdf(GRID[:, None], np.array(means), stddev) + math.log(0.002)
    return np.asarray(logsumexp(parts, axis=1, b=np.array([1 - rate, rate])))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("stddev", [0.7, 2.0, 6.0])
def test_hidden_cohort_bound_holds_against_exact_mixtures(rate: float, stddev: float) -> None:
    """The client's vector is 1 or 0, the other client's anything of norm 1; replace-one: 1 or -1."""

    def curve(sensitivity: float) -> partial:
        return partial(lambda s, orders: orders * s**2 / (2 * stddev**2), sensitivity)

    for order in (2, 3, 5, 12):
        zero_out = hidden_cohort_rdp(curve(1.0), curve(2.0), rate, order)
        replace = hidden_cohort_rdp(curve(2.0), curve(2.0), rate, order)
        for other in (-1.0, 0.0, 1.0):
            with_one, with_zero, with_minus = (
                gaussian_mixture((other, mine), rate, stddev) for mine in (1.0, 0.0, -1.0)
            )
            for p, q, bound in (
                (with_one, with_zero, zero_out),
                (with_zero, with_one, zero_out),
                (with_one, with_minus, replace),
            ):
                assert divergence(p, q, order) <= bound + 1e-9


def test_hidden_cohort_bound_amplifies_where_it_should() -> None:
    own, others = (lambda orders: orders / 50.0), (lambda orders: orders * 4 / 50.0)  # noise multiplier 5
    assert hidden_cohort_rdp(own, others, 1.0, 4) == own(np.array([4]))[0]
    assert hidden_cohort_rdp(own, others, 0.01, 4) < own(np.array([4]))[0] / 500
    rates = [hidden_cohort_rdp(own, others, rate, 8) for rate in (0.001, 0.01, 0.1, 0.5, 1.0)]
    assert rates == sorted(rates)
    assert hidden_cohort_rdp(lambda o: o * math.inf, others, 0.1, 2) == math.inf
    # Theorem 9 as printed, with one curve for all pairs, is never below.
    for rate in (0.01, 0.2):
        for order in (2, 3, 9):
            one = [math.comb(order, j) * rate**j * 2 * math.exp((j - 1) * j * 4 / 50) for j in range(3, order + 1)]
            two = rate**2 * math.comb(order, 2) * min(4 * math.expm1(8 / 50), 2 * math.exp(8 / 50))
            printed = math.log(1 + two + sum(one)) / (order - 1)
            assert hidden_cohort_rdp(others, others, rate, order) <= printed * (1 + 1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("noise_multiplier", [0.8, 2.0])
def test_poisson_bound_is_above_the_exact_one_of_the_gaussian(rate: float, noise_multiplier: float) -> None:
    import dp_accounting as dp
    from dp_accounting import rdp

    orders = [2, 3, 5, 16, 40]
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier)))
    for order, exact in zip(orders, accountant.rdp, strict=True):
        bound = poisson_subsampled_rdp(lambda o: o / (2 * noise_multiplier**2), rate, order)
        # Optimal up to log(3)/(α-1), says the paper's abstract.
        assert exact * (1 - 1e-9) <= bound <= exact + math.log(3) / (order - 1) + 1e-9
    assert poisson_subsampled_rdp(lambda o: o * 1.0, 1.0, 3) == 3.0
    for bad_rate, bad_order in ((0.0, 2), (1.1, 2), (0.5, 1)):
        with pytest.raises(PrivacyError):
            poisson_subsampled_rdp(lambda o: o * 1.0, bad_rate, bad_order)
