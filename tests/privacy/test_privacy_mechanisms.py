"""One contract for every mechanism: bounded contributions, noise of the claimed scale, state of arrays only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from mechanism_calls import TERMS
from scipy.stats import chi2

from privfed.privacy.accounting import EVERYBODY, MODELS_ONLY
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.errors import PrivacyError
from privfed.privacy.factorisation import banded, tree
from privfed.privacy.mechanisms import (
    AdaptiveClipping,
    CentralGaussian,
    CorrelatedGaussian,
    DistributedNoise,
    ExampleGaussian,
    ExampleNoise,
    LocalGaussian,
    Mechanism,
    NoMechanism,
    State,
    Terms,
)
from privfed.privacy.randomness import RandomSource, SeededSource, SystemSource
from privfed.privacy.sampling import KnownCohorts, LocalPoissonSampling, PoissonSampling, RoundRobinSampling

D, CLIP, Z, COHORT = 300, 0.5, 1.3, 8
FALSE_ALARM = 1e-6
"""Of each statistical test below, in either tail."""
SAMPLING = PoissonSampling(0.1)


def distributed(noise: str, secure: bool, masked: bool = True, colluders: int = 2) -> DistributedNoise:
    params = DistributedParams.for_cohort(noise, CLIP, D, Z, COHORT)  # type: ignore[arg-type]
    return DistributedNoise(noise, params, 100, 4, masked, colluders, secure=secure)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A mechanism, and what its noise must be."""

    build: Callable[[bool], Mechanism]
    clients_noise: float
    """Standard deviation of one client's noise."""
    server_noise: float
    """Of the noise that the server adds to the sum."""
    protects: frozenset[str]


ADAPTIVE = AdaptiveClipping(CLIP, Z, expected_cohort=COHORT)
CASES = {
    "none": Case(lambda secure: NoMechanism(CLIP), 0.0, 0.0, frozenset()),
    "gaussian": Case(lambda secure: CentralGaussian(CLIP, Z, secure), 0.0, Z * CLIP, MODELS_ONLY),
    "adaptive": Case(
        lambda secure: replace(ADAPTIVE, secure=secure), 0.0, ADAPTIVE.update_multiplier * CLIP, MODELS_ONLY
    ),
    "local": Case(lambda secure: LocalGaussian(CLIP, Z, secure), Z * CLIP, 0.0, EVERYBODY),
    "discrete_gaussian": Case(
        lambda secure: distributed("discrete_gaussian", secure),
        Z * CLIP / math.sqrt(COHORT),
        0.0,
        EVERYBODY - {"active server"},
    ),
    "skellam": Case(
        lambda secure: distributed("skellam", secure),
        Z * CLIP / math.sqrt(COHORT),
        0.0,
        EVERYBODY - {"active server"},
    ),
}
ROUND_ROBIN = RoundRobinSampling(25, 100, 8)  # back after 4 rounds, twice at most
BANDED, TREE = banded(8, 4), tree(8)


def correlated(strategy: Any, secure: bool = False) -> CorrelatedGaussian:
    drawn = Z * strategy.sensitivity(2, 4).value
    return CorrelatedGaussian(CLIP, drawn, strategy, ROUND_ROBIN, secure)


FIRST_ROW = Z * CLIP * BANDED.sensitivity(2, 4).value / abs(BANDED.row(0)[0])
CASES["banded"] = Case(lambda secure: correlated(BANDED, secure), 0.0, FIRST_ROW, MODELS_ONLY)
STEPS, RATE, SCALE = 5, 0.2, 0.3
CASES["dp_sgd"] = Case(
    lambda secure: ExampleGaussian(ExampleNoise(CLIP, Z, RATE, secure), STEPS, SCALE),
    Z * CLIP * SCALE * math.sqrt(STEPS),
    0.0,
    EVERYBODY,
)
NAMES = tuple(CASES)


def updates(clients: int, length: float) -> np.ndarray:
    rows = np.random.default_rng(3).normal(size=(clients, D))
    return (length * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def one_round(
    mechanism: Mechanism, rows: np.ndarray, source: Callable[[int], RandomSource], terms: Terms = TERMS
) -> tuple[np.ndarray, State]:
    """Both halves with a plain sum between them."""
    state = mechanism.initialize(D)
    rows = [trained(mechanism, row, source(i)) for i, row in enumerate(rows)]  # type: ignore[assignment]  # of rows
    sent = [mechanism.on_client(state, row, 0.0, terms, source(i)).vector for i, row in enumerate(rows)]
    total = np.sum(sent, axis=0).astype(np.float64)
    return mechanism.on_server(state, total, terms, source(-1))


def trained(mechanism: Mechanism, row: np.ndarray, source: RandomSource) -> np.ndarray:
    """An update as training leaves it: by DP-SGD, it has the noise of every step."""
    if not isinstance(mechanism, ExampleGaussian):
        return row
    noise = mechanism.example.noise(source, STEPS, D)
    return (row + SCALE * noise.sum(0)).astype(np.float32)


def seeded(seed: int) -> Callable[[int], RandomSource]:
    return lambda who: SeededSource(seed, who + 1)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_noise_of_the_sum_has_the_claimed_scale(name: str, secure: bool) -> None:
    case = CASES[name]
    rows = updates(COHORT, 0.9 * CLIP)  # within the bound, so the sum is known
    source = (lambda who: SystemSource()) if secure else seeded(1)
    noised, _ = one_round(case.build(secure), rows, source)
    noise = noised - rows.astype(np.float64).sum(0)
    variance = COHORT * case.clients_noise**2 + case.server_noise**2
    mechanism = case.build(secure)
    assert mechanism.client_noise == pytest.approx(case.clients_noise, rel=1e-4)
    if not mechanism.whole_run:  # else the fresh noise is one part of what is added
        assert mechanism.stddev(mechanism.initialize(D), COHORT) == pytest.approx(math.sqrt(variance), rel=1e-4)
    if variance == 0:
        np.testing.assert_allclose(noise, 0, atol=1e-6)
        return
    low, high = chi2.ppf([FALSE_ALARM, 1 - FALSE_ALARM], D)
    assert low < np.sum(noise**2) / variance < high
    # The negative: noise of 60 % of the scale, or of 160 %, is told from it.
    assert not low < np.sum(noise**2) / (variance / 0.36) < high
    assert not low < np.sum(noise**2) / (variance / 2.56) < high


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "dp_sgd"])  # which clips examples instead
def test_a_long_update_moves_the_sum_by_no_more_than_the_clip_norm(name: str, secure: bool) -> None:
    case = CASES[name]
    mechanism = case.build(secure)
    state = mechanism.initialize(D)
    assert mechanism.length(D) >= D
    (row,) = updates(1, 1e4)
    source = SystemSource() if secure else SeededSource(5)
    sent = mechanism.on_client(state, row, 0.0, TERMS, source)
    assert sent.was_clipped
    assert sent.norm_before == pytest.approx(1e4, rel=1e-5)
    assert sent.vector.shape == (mechanism.length(D),)
    assert np.issubdtype(sent.vector.dtype, np.integer) == mechanism.integral
    seen = mechanism.as_update(sent.vector.astype(np.float64), D, TERMS)
    if not case.clients_noise:
        assert np.linalg.norm(seen) <= CLIP
    direction = row / np.linalg.norm(row)
    # Along the update there is its clipped length and one coordinate's noise (8 standard deviations: 10⁻¹⁵).
    assert abs(seen @ direction - CLIP) <= 8 * case.clients_noise + 1e-3 * CLIP


@pytest.mark.parametrize("name", NAMES)
def test_releases_name_whom_the_mechanism_protects(name: str) -> None:
    case = CASES[name]
    mechanism = case.build(False)
    for survivors in (None, 5, COHORT):
        releases = mechanism.releases(SAMPLING, survivors)
        named = [observer for seen in releases for observer in seen.observers]
        assert set(named) == case.protects
        assert len(named) == len(set(named))
        # Whoever sees what arrives at the server cannot be promised the amplification of a cohort that it sees.
        for seen in releases:
            if seen.observers & (EVERYBODY - MODELS_ONLY):
                assert isinstance(seen.release.sampling, KnownCohorts | LocalPoissonSampling)


@pytest.mark.parametrize("name", NAMES)
def test_state_is_arrays_and_a_round_changes_nothing_in_place(name: str) -> None:
    mechanism = CASES[name].build(False)
    state = mechanism.initialize(D)
    assert all(isinstance(part, np.ndarray) for part in state)
    kept = [part.copy() for part in state]
    rows = updates(2, 9.0)
    before = rows.copy()
    one_round(mechanism, rows, seeded(2))
    np.testing.assert_array_equal(rows, before)
    for part, copy in zip(state, kept, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_secure_mode_never_noises_from_a_seed(name: str) -> None:
    with pytest.raises(PrivacyError, match="seed"):
        one_round(CASES[name].build(True), updates(2, 0.1), seeded(3))


@pytest.mark.parametrize("name", ["discrete_gaussian", "skellam"])
def test_fewer_survivors_leave_less_noise_and_that_is_what_is_stated(name: str) -> None:
    mechanism = CASES[name].build(False)
    by_survivors = {
        n: {o: seen.release for seen in mechanism.releases(SAMPLING, n) for o in seen.observers}
        for n in (4, COHORT)
    }
    full, half = by_survivors[COHORT], by_survivors[4]
    assert full["server"].noise_multiplier == pytest.approx(Z, rel=1e-4)
    assert half["server"].noise_multiplier == pytest.approx(Z / math.sqrt(2), rel=1e-4)
    assert full["server+colluders"].noise_multiplier == pytest.approx(Z * math.sqrt(6 / 8), rel=1e-4)
    assert not distributed(name, False, masked=False).releases(SAMPLING, COHORT)[1:]  # no masks, no server


@pytest.mark.parametrize("strategy", [BANDED, TREE], ids=["banded", "tree"])
def test_correlated_noise_takes_itself_back(strategy: Any) -> None:
    """The noise of all rounds together is less than that of independent noise of equal privacy."""
    mechanism = correlated(strategy)
    state, total = mechanism.initialize(D), np.zeros(D)
    for number in range(1, 9):
        noised, state = mechanism.on_server(state, np.zeros(D), Terms(number, 25), SeededSource(3, number))
        total += noised
    # Independent noise: a sensitivity of sqrt(2), eight times.
    independent = Z * CLIP * math.sqrt(2) * math.sqrt(8)
    assert np.std(total) < 0.9 * independent
    with pytest.raises(PrivacyError):  # rows are used once each
        mechanism.on_server(state, np.zeros(D), Terms(8, 25), SeededSource(3))


def test_correlated_noise_is_refused_where_its_claim_would_not_hold() -> None:
    with pytest.raises(PrivacyError, match="bands"):
        correlated(banded(8, 5))
    with pytest.raises(PrivacyError, match="rounds"):
        correlated(banded(7, 2))
    with pytest.raises(PrivacyError, match="secure mode has no noise for a tree"):
        correlated(TREE, secure=True)


def test_the_adaptive_bound_finds_the_quantile() -> None:
    lengths = np.random.default_rng(0).lognormal(size=400)
    mechanism = AdaptiveClipping(50.0, 1.0, expected_cohort=400, quantile=0.7, rate=0.3)
    rows = updates(400, 1.0) * lengths[:, None].astype(np.float32)
    state = mechanism.initialize(D)
    for number in range(60):
        terms = Terms(number + 1, 400)
        sent = [mechanism.on_client(state, row, 0.0, terms, SeededSource(0)).vector for row in rows]
        _, state = mechanism.on_server(state, np.sum(sent, axis=0), terms, SeededSource(7, number))
    # The bits' noise of 20 in 400 leaves the bound within a few percent of the quantile.
    assert (lengths <= float(state[0])).mean() == pytest.approx(0.7, abs=0.08)


def test_the_split_of_adaptive_clipping_is_accounted_exactly() -> None:
    mechanism = AdaptiveClipping(1.0, 0.8, expected_cohort=100)
    # Both halves as one Gaussian: inverse squares of the noise multipliers add up (Andrew et al. 2021, Theorem 1).
    together = mechanism.update_multiplier**-2 + (2 * mechanism.bit_noise) ** -2
    assert together == pytest.approx(0.8**-2)
    assert mechanism.update_multiplier <= 1.1 * 0.8
    with pytest.raises(PrivacyError, match="bit_stddev"):
        AdaptiveClipping(1.0, 0.8, expected_cohort=100, bit_stddev=0.4)
