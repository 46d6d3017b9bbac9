"""Noise that clients bring: bounds against exact divergences, the ring against tails, clients against their sum.

Every statistical test here fails on correct code with probability below 1e-6; each has a negative that must be
caught. Seeds are fixed, so a pass stays a pass.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chi2, norm

from privfed.privacy.amplification import hidden_cohort_rdp, poisson_subsampled_rdp
from privfed.privacy.distributed import (
    NOISES,
    DistributedParams,
    Noise,
    _reach,
    centred,
)
from privfed.privacy.distributed_accounting import (
    ORDERS,
    ZERO_OUT,
    DistributedRelease,
    calibrate,
    convolution_gap,
    ddg_rdp,
    epsilon_of,
    rdp_of,
    skellam_rdp,
)
from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError
from privfed.privacy.randomness import SeededSource, SystemSource
from privfed.privacy.rotation import Rotation
from privfed.privacy.sampling import REPLACE
from privfed.privacy.skellam import log_pmf

DELTA = 1e-5
INTEGERS = np.array([2, 3, 4, 8, 16, 32])


def divergence(log_p: np.ndarray, log_q: np.ndarray, order: float) -> float:
    """Rényi divergence of two distributions given by their logarithms on a grid of unit weight."""
    return float(logsumexp(order * log_p + (1 - order) * log_q)) / (order - 1)


def gaussian_epsilon(noise_multiplier: float, rounds: int = 1) -> float:
    orders = np.array(ORDERS, float)
    rdp = rounds * orders / (2 * noise_multiplier**2)
    return float((rdp + np.log1p(-1 / orders) - (math.log(DELTA) + np.log(orders)) / (orders - 1)).min())


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


# --- ε of releases ----------------------------------------------------------------------------------------------


def params_of(
    noise: Noise, noise_multiplier: float = 1.0, survivors: int = 100, **changes: object
) -> DistributedParams:
    settings: dict[str, object] = {"clip_norm": 0.3, "dimension": 100_000, **changes}
    return DistributedParams.for_cohort(
        noise,
        noise_multiplier=noise_multiplier,
        expected_survivors=survivors,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("noise_multiplier", "rounds"), [(0.8, 1), (3.0, 50), (20.0, 100)])
def test_a_fine_grid_costs_next_to_nothing_over_the_gaussian(
    noise: Noise, noise_multiplier: float, rounds: int
) -> None:
    release = DistributedRelease(params_of(noise, noise_multiplier), 100, count=rounds)
    gaussian = gaussian_epsilon(noise_multiplier, rounds)
    assert gaussian <= epsilon_of([release], DELTA) <= 1.001 * gaussian
    coarse = DistributedRelease(params_of(noise, noise_multiplier, ring_bits=16), 100, count=rounds)
    assert epsilon_of([release], DELTA) < epsilon_of([coarse], DELTA)


@pytest.mark.parametrize("noise", NOISES)
def test_epsilon_agrees_with_the_librarys_conversion(noise: Noise) -> None:
    from dp_accounting import rdp

    releases = [DistributedRelease(params_of(noise), 90), DistributedRelease(params_of(noise), 60, 10, 500, 30)]
    expected = rdp.compute_epsilon(ORDERS, rdp_of(releases), DELTA)[0]
    assert epsilon_of(releases, DELTA) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("noise", NOISES)
def test_less_noise_more_colluders_and_more_rounds_cost_more(noise: Noise) -> None:
    params = params_of(noise)
    base = epsilon_of([DistributedRelease(params, 90, count=3)], DELTA)
    assert base > epsilon_of([DistributedRelease(params, 100, count=3)], DELTA)
    assert base < epsilon_of([DistributedRelease(params, 90, count=4)], DELTA)
    assert base < epsilon_of([DistributedRelease(params, 90, count=3)], DELTA / 10)
    assert base < epsilon_of([DistributedRelease(params, 90, count=3)], DELTA, REPLACE)
    # Colluders take their shares with them: 90 survivors of whom 40 tell are as good as 50.
    told = epsilon_of([DistributedRelease(params, 90, 40, count=3)], DELTA)
    assert told == epsilon_of([DistributedRelease(params, 50, count=3)], DELTA) > base
    hidden = epsilon_of([DistributedRelease(params, 90, population=900, count=3)], DELTA)
    assert hidden < epsilon_of([DistributedRelease(params, 90, population=300, count=3)], DELTA) < base
    assert epsilon_of([DistributedRelease(params, 90, population=90, count=3)], DELTA) == base
    # Rounds add up whatever their order, and each with its own survivors.
    mixed = [DistributedRelease(params, 90, count=2), DistributedRelease(params, 50)]
    assert epsilon_of(mixed, DELTA) == pytest.approx(epsilon_of(mixed[::-1], DELTA))
    assert base < epsilon_of(mixed, DELTA) < told
    assert epsilon_of([], DELTA) == epsilon_of([DistributedRelease(params, 90, count=0)], DELTA) == 0


def test_replace_one_is_zero_out_of_twice_the_sensitivity() -> None:
    release = DistributedRelease(params_of("skellam", 2.0), 100)
    assert epsilon_of([release], DELTA, REPLACE) == pytest.approx(gaussian_epsilon(1.0), rel=1e-4)
    assert epsilon_of([release], DELTA, ZERO_OUT) == pytest.approx(gaussian_epsilon(2.0), rel=1e-4)


@pytest.mark.parametrize(("noise", "epsilon"), [("discrete_gaussian", 8.0), ("skellam", 0.5)])
def test_calibration_reaches_its_target_and_a_step_less_does_not(noise: Noise, epsilon: float) -> None:
    choose = partial(params_of, noise)
    multiplier = calibrate(epsilon, DELTA, 20, choose, 100)

    def spent(steps: int) -> float:
        return epsilon_of([DistributedRelease(choose(multiplier + steps * 1e-4), 100, count=20)], DELTA)

    assert spent(0) <= epsilon < spent(-1)
    assert gaussian_epsilon(multiplier, 20) == pytest.approx(epsilon, rel=1e-3)
    # Fewer survivors than the shares were cut for need larger shares; a hidden cohort needs smaller ones.
    assert calibrate(epsilon, DELTA, 20, choose, 80) > multiplier
    assert calibrate(epsilon, DELTA, 20, choose, 100, colluders=20) == calibrate(epsilon, DELTA, 20, choose, 80)
    assert calibrate(epsilon, DELTA, 20, choose, 100, neighbouring=REPLACE) > multiplier
    if noise == "discrete_gaussian":
        assert calibrate(epsilon, DELTA, 20, choose, 100, population=2000) < multiplier


def test_calibration_finds_the_window_that_a_narrow_ring_leaves() -> None:
    choose = partial(params_of, "skellam", ring_bits=11)
    with pytest.raises(PrivacyError, match="sensitivity"):
        choose(1.0)  # by then the grid is too coarse
    multiplier = calibrate(13.5, DELTA, 1, choose, 100)
    assert 0.7 < multiplier < 0.9
    assert epsilon_of([DistributedRelease(choose(multiplier), 100)], DELTA) <= 13.5


def test_unreachable_targets_and_wrong_arguments_are_refused() -> None:
    choose = partial(params_of, "skellam", ring_bits=10)
    with pytest.raises(PrivacyError, match=r"no noise multiplier .*ring_bits"):
        calibrate(1e-3, DELTA, 1000, choose, 100)
    params = params_of("skellam")
    for survivors, colluders, population, count, name in (
        (0, 0, None, 1, "survivors"),
        (101, 0, None, 1, "survivors"),
        (5, 5, None, 1, "colluders"),
        (5, -1, None, 1, "colluders"),
        (5, 1, 3, 1, "population"),
        (5, 0, None, -1, "count"),
    ):
        with pytest.raises(PrivacyError, match=name):
            DistributedRelease(params, survivors, colluders, population, count)
    with pytest.raises(PrivacyError, match="delta"):
        epsilon_of([DistributedRelease(params, 5)], 0.0)
    with pytest.raises(PrivacyError, match="neighbouring"):
        epsilon_of([DistributedRelease(params, 5)], DELTA, "add or remove one client")
    for epsilon, rounds in ((0.0, 1), (math.inf, 1), (1.0, 0)):
        with pytest.raises(PrivacyError):
            calibrate(epsilon, DELTA, rounds, choose, 100)


# --- The grid and the ring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
def test_shares_add_up_to_the_noise_asked_for(noise: Noise) -> None:
    for bits in (14, 18, 32, 64):
        params = params_of(noise, 1.7, 100, cohort_size=130, ring_bits=bits)
        assert params.noise_multiplier(100) == pytest.approx(1.7)
        assert params.stddev(25) == pytest.approx(1.7 * 0.3 / 2)
        assert params.padded == 131_072
        assert params.l1_bound <= params.norm_bound**2
        assert 1 <= params.inflation <= 2
    scales = [params_of(noise, ring_bits=bits).scale for bits in (14, 16, 20, 32)]
    assert scales == sorted(scales)
    assert params_of(noise, ring_bits=16).scale > params_of(noise, 1.0, 50, cohort_size=200, ring_bits=16).scale


@pytest.mark.parametrize("variance", [1e-3, 0.2, 4.0, 900.0])
def test_the_reach_of_skellam_noise_covers_its_exact_tail(variance: float) -> None:
    """Without a signal, so that the tail is known: below 2⁻⁴⁰, and not far below."""
    reach = _reach("skellam", math.sqrt(variance), 1e-9, 1, 1) - 2  # less what the rounding may add
    tail = np.exp(log_pmf(np.arange(math.ceil(reach - 1e-6), math.ceil(reach) + 400), variance))
    assert 2 * tail[np.isfinite(tail)].sum() < 2.0**-40
    nearer = np.exp(log_pmf(np.arange(math.ceil(0.6 * reach), math.ceil(reach) + 400), variance))
    assert 2 * nearer[np.isfinite(nearer)].sum() > 2.0**-40


@pytest.mark.parametrize("noise", NOISES)
def test_the_largest_sums_stay_in_the_ring_and_use_a_good_part_of_it(noise: Noise) -> None:
    """All clients send the same vector of full length."""
    params = params_of(noise, 1.0, 40, dimension=2000, ring_bits=16)
    largest = 0.0
    for seed in range(20):
        rotation = Rotation(2000, (seed,))
        update = np.random.default_rng(seed).normal(size=2000)
        update *= 0.3 / np.linalg.norm(update)
        steps = 40 * rotation.apply(update) * params.scale
        largest = max(largest, float(np.abs(steps + 40**0.5 * params.draw(SeededSource(seed))).max()))
    assert 0.3 * 2**15 < largest < 2**15


def test_a_ring_too_narrow_is_refused_with_the_way_out() -> None:
    with pytest.raises(PrivacyError, match=r"ring_bits.*300 clients.*wider ring, Skellam noise") as refusal:
        params_of("discrete_gaussian", 0.1, 300, dimension=1000, ring_bits=12)
    assert "got 12" in str(refusal.value)
    with pytest.raises(PrivacyError, match=r"multiplies the sensitivity.*smaller cohort"):
        params_of("skellam", 1.0, 300, ring_bits=10)
    with pytest.raises(PrivacyError, match="no grid"):
        params_of("skellam", 1.0, 300, ring_bits=8)
    # Skellam noise has no smallest share: it goes on where the discrete Gaussian cannot.
    params = params_of("skellam", 0.1, 3000, dimension=1000, ring_bits=17)
    assert params.local_stddev < 1
    assert params.noise_multiplier(3000) == pytest.approx(0.1)
    with pytest.raises(PrivacyError, match="ring_bits"):
        params_of("discrete_gaussian", 0.1, 3000, dimension=1000, ring_bits=17)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "laplace"},
        {"ring_bits": 7},
        {"ring_bits": 65},
        {"noise_multiplier": 0.0},
        {"clip_norm": math.nan},
        {"survivors": 0},
        {"survivors": 9, "cohort_size": 8},
        {"dimension": 0},
        {"beta": 1.0},
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PrivacyError):
        params_of(**{"noise": "skellam", **changes})  # type: ignore[arg-type]


def test_params_by_hand_are_checked() -> None:
    good = {"noise": "discrete_gaussian", "clip_norm": 1.0, "dimension": 5, "padded": 8, "scale": 10.0}
    good |= {"local_stddev": 3.0, "cohort_size": 4}
    DistributedParams(**good)  # type: ignore[arg-type]
    for name, value in (
        ("padded", 16),
        ("local_stddev", 2.5),
        ("scale", 0.0),
        ("cohort_size", 0),
        ("scale", 2.0**50),
    ):
        with pytest.raises(PrivacyError):
            DistributedParams(**{**good, name: value})  # type: ignore[arg-type]


def test_centred_is_the_signed_representative() -> None:
    values = np.array([0, 1, 127, 128, 255, 256, -1, -128, -129, 2**62, -(2**63)], np.int64)
    np.testing.assert_array_equal(centred(values, 8), (values.astype(object) + 128) % 256 - 128)
    np.testing.assert_array_equal(centred(values, 63), (values.astype(object) + 2**62) % 2**63 - 2**62)
    np.testing.assert_array_equal(centred(values.astype(np.uint64), 64), values)
    np.testing.assert_array_equal(centred(np.array([2**32 - 1, 2**31], np.uint32), 32), [-1, -(2**31)])


# --- From clients to their sum ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("ring_bits", "dimension"), [(14, 3000), (32, 20_000), (64, 20_000)])
def test_the_decoded_sum_is_unbiased_with_the_variance_claimed(
    noise: Noise, ring_bits: int, dimension: int
) -> None:
    clients, survivors = 20, 17
    params = params_of(noise, 1.5, clients, dimension=dimension, ring_bits=ring_bits)
    rotation = Rotation(dimension, (7, 1))
    rng = np.random.default_rng(1)
    total, expected = np.zeros(params.padded, np.uint64), np.zeros(dimension)
    rounding = np.zeros(params.padded)
    for client in range(survivors):
        update = (rng.normal(size=dimension) + 0.2).astype(np.float32)
        update *= np.float32(0.29 / np.linalg.norm(update))
        expected += update
        total += params.encode(update, rotation, SeededSource(2, client)).astype(np.uint64)
        share = rotation.apply(update).astype(np.float64) * params.scale % 1
        rounding += share * (1 - share)
    ring_total = total & np.uint64(2**ring_bits - 1)
    errors = params.decode(ring_total, rotation) - expected
    # Rotated back, each error is a mean of all padded ones; in the first dimension of them it is their variance.
    variance = params.stddev(survivors) ** 2 + rounding.mean() / params.scale**2
    statistic = float(np.square(errors).sum()) / variance
    spread = 5 * math.sqrt(2 * dimension)  # 5σ of a chi-square of so many degrees: below 1e-6
    assert abs(statistic - dimension) < spread
    assert abs(statistic * 1.12 - dimension) > spread or dimension < 10_000
    assert abs(errors.mean()) < 5 * math.sqrt(variance / dimension)
    along = float(np.dot(errors, expected)) / float(np.linalg.norm(expected))
    assert abs(along) < 5 * math.sqrt(variance)  # not biased in the direction of the sum either


def test_whatever_a_client_holds_its_integers_keep_the_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DistributedParams, "draw", lambda self, source: 0)
    params = params_of("skellam", 1.0, 10, dimension=100)
    rotation = Rotation(100, (1,))
    for update in (np.full(100, 1e6, np.float32), np.eye(100)[3] * 0.3, np.zeros(100)):
        encoded = params.encode(update, rotation, SystemSource())
        assert sum(int(v) ** 2 for v in encoded) <= params.norm_bound**2
    with pytest.raises(NonFiniteUpdateError):
        params.encode(np.full(100, np.nan), rotation, SystemSource())
    with pytest.raises(PrivacyError, match="rotation"):
        params.encode(np.zeros(101), Rotation(101, (1,)), SystemSource())
    with pytest.raises(PrivacyError, match="total"):
        params.decode(np.zeros(128), rotation)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("claimed_over_true", [1.0, 1.05])
def test_the_noise_of_the_shares_in_a_sum_is_what_the_accountant_counts(
    noise: Noise, claimed_over_true: float
) -> None:
    params = params_of(noise, 1.0, 12, dimension=2**15, ring_bits=14)
    total = sum(params.draw(SeededSource(9, client)) for client in range(12))
    statistic = float(np.square(total).sum()) / (12 * (params.local_stddev * claimed_over_true) ** 2)
    p = 2 * min(chi2.sf(statistic, params.padded), chi2.cdf(statistic, params.padded))
    assert (p > 1e-6) == (claimed_over_true == 1)
