"""Noise that clients bring: ε of releases, the ring against tails, clients against their sum.

Every statistical test here fails on correct code with probability below 1e-6; each has a negative that must be
caught. Seeds are fixed, so a pass stays a pass.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.stats import chi2

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
    epsilon_of,
    rdp_of,
)
from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError
from privfed.privacy.randomness import SeededSource, SystemSource
from privfed.privacy.rotation import Rotation
from privfed.privacy.sampling import REPLACE
from privfed.privacy.skellam import log_pmf

DELTA = 1e-5


def gaussian_epsilon(noise_multiplier: float, rounds: int = 1) -> float:
    orders = np.array(ORDERS, float)
    rdp = rounds * orders / (2 * noise_multiplier**2)
    return float((rdp + np.log1p(-1 / orders) - (math.log(DELTA) + np.log(orders)) / (orders - 1)).min())


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
