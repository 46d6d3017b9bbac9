"""Correlated noise row by row against dense matrices, its covariance, its integers, and what it spends.

Statistical tests fail on correct code with probability below 1e-6 and have negatives that must be caught.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2, norm

from privfed.privacy.accounting import Release, compose
from privfed.privacy.correlated import CorrelatedNoise, SecureCorrelatedNoise, State
from privfed.privacy.correlated_accounting import (
    effective_noise_multiplier,
    gaussian_delta,
    gaussian_epsilon,
    noise_multiplier_for,
)
from privfed.privacy.errors import PrivacyError
from privfed.privacy.factorisation import Banded, BinaryTree, banded, identity, tree
from privfed.privacy.mechanisms import CorrelatedGaussian
from privfed.privacy.noise import discrete_gaussian, gaussian
from privfed.privacy.randomness import SeededSource, SystemSource
from privfed.privacy.sampling import KnownCohorts, RoundRobinSampling

FALSE_ALARM = 1e-6
STRATEGIES: list[Banded | BinaryTree] = [
    identity(13),
    banded(13, 2),
    banded(13, 5),
    banded(13, 13),
    Banded(13, banded(13, 4).coefficients, normalised=False),
    tree(1),
    tree(13),
    tree(16),
]


def rows(strategy: Banded | BinaryTree, fresh: np.ndarray) -> np.ndarray:
    stream = CorrelatedNoise(strategy)
    state, noise = stream.initialize(fresh.shape[1]), []
    for t, row in enumerate(fresh, start=1):
        one, state = stream.step(state, t, row)
        noise.append(one)
    return np.array(noise)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.describe()} {s.rounds}")
def test_rows_are_those_of_the_dense_inverse(strategy: Banded | BinaryTree) -> None:
    fresh = np.random.default_rng(1).normal(size=(strategy.rounds, 3))
    np.testing.assert_allclose(rows(strategy, fresh), np.linalg.solve(strategy.matrix(), fresh), atol=1e-12)


@pytest.mark.parametrize("strategy", [banded(13, 5), tree(13)])
def test_states_are_small_never_changed_and_go_on_from_a_copy(strategy: Banded | BinaryTree) -> None:
    stream = CorrelatedNoise(strategy)
    fresh = np.random.default_rng(2).normal(size=(13, 4))
    states: list[State] = [stream.initialize(4)]
    for t in range(1, 14):
        noise, state = stream.step(states[-1], t, fresh[t - 1])
        states.append(state)
        assert not (noise.flags.writeable and any(np.shares_memory(noise, part) for part in state))
        assert len(states[-1]) == 1 + stream.memory
    assert sum(part.size for part in states[-1]) <= 1 + 4 * stream.memory
    expected = rows(strategy, fresh)
    for t in range(1, 14):  # from every state, as it was then
        copied = tuple(part.copy() for part in states[t - 1])
        np.testing.assert_array_equal(stream.step(copied, t, fresh[t - 1])[0], expected[t - 1])


def test_a_tree_keeps_one_vector_for_each_binary_digit() -> None:
    stream = CorrelatedNoise(tree(1000))
    state = stream.initialize(2)
    for t in range(1, 1001):
        _, state = stream.step(state, t, np.ones(2))
        assert sum(part.size > 0 for part in state[1:]) == t.bit_count()


def whiteness(strategy: Banded | BinaryTree, prefix_noise: np.ndarray, stddev: float) -> float:
    """p-value, two-sided, of prefix sums' noise ``[T, d]`` having covariance ``B·Bᵀ·stddev²``."""
    rounds, dimension = prefix_noise.shape
    factor = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(strategy.matrix())
    white = np.linalg.solve(factor, prefix_noise) / stddev
    size = chi2.cdf(np.square(white).sum(), white.size)
    pairs = (white @ white.T)[np.triu_indices(rounds, 1)] / math.sqrt(dimension)  # standard normal, nearly
    products = chi2.cdf(np.square(pairs).sum(), len(pairs))
    return float(min(1.0, 4 * min(size, 1 - size, products, 1 - products)))


@pytest.mark.parametrize("strategy", [banded(12, 4), tree(12)])
def test_noise_has_the_covariance_that_it_claims(strategy: Banded | BinaryTree) -> None:
    source = SeededSource(3)
    fresh = np.array([gaussian(0.7, 20_000, source) for _ in range(12)])
    prefix_noise = np.cumsum(rows(strategy, fresh), axis=0)
    assert whiteness(strategy, prefix_noise, 0.7) > FALSE_ALARM
    assert whiteness(strategy, prefix_noise, 0.7 * 1.02) < FALSE_ALARM
    assert whiteness(strategy, prefix_noise, 0.7 / 1.02) < FALSE_ALARM
    assert whiteness(banded(12, 3), prefix_noise, 0.7) < FALSE_ALARM
    shuffled = np.cumsum(rows(strategy, fresh)[::-1], axis=0)
    assert whiteness(strategy, shuffled, 0.7) < FALSE_ALARM


def test_rows_out_of_order_and_beyond_the_plan_are_refused() -> None:
    stream = CorrelatedNoise(banded(2, 2))
    state = stream.initialize(1)
    with pytest.raises(PrivacyError, match="after row 0"):
        stream.step(state, 2, np.zeros(1))
    for t in (1, 2):
        _, state = stream.step(state, t, np.zeros(1))
    with pytest.raises(PrivacyError, match="after row 2"):
        stream.step(state, 2, np.zeros(1))
    with pytest.raises(PrivacyError, match="made for 2 rounds"):
        stream.step(state, 3, np.zeros(1))


class Recorded:
    """Seeded words that do not say so, to draw the same integers twice."""

    def __init__(self, seed: int) -> None:
        self.words, self.normal = SeededSource(seed).words, SystemSource().normal


@pytest.mark.parametrize("strategy", [identity(9), banded(9, 4), banded(9, 9)])
def test_secure_releases_are_sums_and_dense_noise_from_the_integers_drawn(strategy: Banded) -> None:
    stddev, dimension = 1.37, 5
    mechanism = SecureCorrelatedNoise(strategy, stddev)
    sums = np.random.default_rng(4).normal(scale=30, size=(9, dimension))
    state, released = mechanism.initialize(dimension), []
    for t in range(1, 10):
        one, state = mechanism.release(state, t, sums[t - 1], Recorded(t))
        released.append(one)
        assert len(state) == 1 + 2 * (strategy.bands - 1)
    step = mechanism.grid * 2.0**-16
    integers = [discrete_gaussian(math.ceil(stddev / step), dimension, Recorded(t)) for t in range(1, 10)]
    expected = np.rint(sums / mechanism.grid) * mechanism.grid
    expected += np.linalg.solve(strategy.matrix(), np.array(integers) * step)
    np.testing.assert_allclose(released, expected, atol=1e-10)


def test_secure_releases_depend_on_nothing_but_integer_rows() -> None:
    """Other sums with other integers, but the same ``C·X + Z``: the same releases, to the last bit."""
    strategy = banded(6, 3)
    mechanism = SecureCorrelatedNoise(strategy, 1.0)
    steps = np.random.default_rng(5).integers(-(2**22), 2**22, (6, 500))
    moved = steps + np.random.default_rng(6).integers(-(2**22), 2**22, (6, 500))
    matrix = np.rint(strategy.matrix() * 2**16).astype(np.int64)
    fresh = np.random.default_rng(7).integers(-(2**36), 2**36, (6, 500))

    def run(totals: np.ndarray, integers: np.ndarray) -> np.ndarray:
        state, out = mechanism.initialize(500), []
        for t in range(6):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "privfed.privacy.correlated.discrete_gaussian", lambda *_, drawn=integers[t]: drawn.copy()
                )
                one, state = mechanism.release(state, t + 1, totals[t] * mechanism.grid, SystemSource())
            out.append(one)
        return np.array(out)

    same = run(moved, fresh + matrix @ (steps - moved))
    np.testing.assert_array_equal(run(steps, fresh), same)
    # What adding rounded noise to a sum would do: it tells the two apart.
    naive = [
        totals * mechanism.grid + rows(strategy, integers * mechanism.grid * 2.0**-16)
        for totals, integers in ((steps, fresh), (moved, fresh + matrix @ (steps - moved)))
    ]
    assert (naive[0] != naive[1]).any()


@pytest.mark.parametrize("claimed_over_true", [1.0, 1.03])
def test_secure_noise_has_the_covariance_that_it_claims(claimed_over_true: float) -> None:
    strategy = banded(6, 3)
    mechanism = SecureCorrelatedNoise(strategy, 2.5)
    totals = np.random.default_rng(8).normal(scale=5, size=(6, 15_000))
    state, noise = mechanism.initialize(15_000), []
    for t, total in enumerate(totals, start=1):
        one, state = mechanism.release(state, t, total, Recorded(100 + t))
        noise.append(one - total)
    p = whiteness(strategy, np.cumsum(noise, axis=0), 2.5 * claimed_over_true)
    assert (p > FALSE_ALARM) == (claimed_over_true == 1)


def test_secure_mode_refuses_what_it_cannot_do_soundly() -> None:
    with pytest.raises(PrivacyError, match="Use a banded strategy"):
        SecureCorrelatedNoise(tree(4), 1.0)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="stddev"):
        SecureCorrelatedNoise(banded(4, 2), 0.0)
    mechanism = SecureCorrelatedNoise(banded(4, 2), 1.0)
    state = mechanism.initialize(2)
    with pytest.raises(PrivacyError, match="seed"):
        mechanism.release(state, 1, np.zeros(2), SeededSource(1))
    with pytest.raises(PrivacyError, match="not finite"):
        mechanism.release(state, 1, np.array([0.0, np.nan]), SystemSource())
    edge = (mechanism.largest - 1) * mechanism.grid
    assert edge > 1e6
    with pytest.raises(PrivacyError, match="cannot hold"):
        mechanism.release(state, 1, np.array([0.0, 2 * edge]), SystemSource())
    for t in (1, 2, 3, 4):  # the largest sums in every round still fit
        released, state = mechanism.release(state, t, np.array([edge, -edge]), SystemSource())
        np.testing.assert_allclose(released, [edge, -edge], rtol=1e-4)


@pytest.mark.parametrize(("z", "delta"), [(0.5, 1e-5), (1.0, 1e-5), (4.0, 1e-6), (30.0, 1e-9)])
def test_closed_form_and_discretised_privacy_loss_agree(z: float, delta: float) -> None:
    closed = gaussian_epsilon(z, delta)
    assert gaussian_delta(z, closed) == pytest.approx(delta, rel=1e-6)
    a, b = 1 / (2 * z), closed * z  # Balle & Wang (2018), Theorem 8, as printed
    assert norm.cdf(a - b) - math.exp(closed) * norm.cdf(-a - b) == pytest.approx(delta, rel=1e-4)
    assert closed - 1e-6 <= compose([Release(KnownCohorts(), z, 1)], delta).epsilon <= closed + 2e-3


def test_known_values_of_one_gaussian() -> None:
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.3772, abs=1e-4)  # dp_accounting's PLD at interval 1e-4
    assert gaussian_delta(1.0, 0.0) == pytest.approx(2 * norm.cdf(0.5) - 1)  # total variation distance
    assert gaussian_epsilon(1.0, 0.5) == 0.0
    assert 1e8 > gaussian_epsilon(1e-4, 1e-5) > 0.5e8


def test_calibration_gives_the_least_noise_within_epsilon() -> None:
    for epsilon, delta, attempts in ((1.0, 1e-5, 1), (8.0, 1e-6, 1), (0.1, 1e-5, 3)):
        z = noise_multiplier_for(epsilon, delta, attempts)
        assert gaussian_epsilon(z / math.sqrt(attempts), delta) <= epsilon
        assert gaussian_epsilon((z - 1e-4) / math.sqrt(attempts), delta) > epsilon


def test_the_noise_multiplier_is_that_of_a_rounds_own_noise() -> None:
    """Without correlation it is Gaussian noise as ever; a tree's is that of a node (Kairouz et al. 2021)."""
    order = RoundRobinSampling(25, 100, 16)  # back after 4 rounds, four times
    alone = CorrelatedGaussian(0.5, 3.0, banded(16, 1), order)
    assert alone.fresh == 1.5
    assert alone.run_multiplier == pytest.approx(3.0 / math.sqrt(4), rel=1e-3)
    assert CorrelatedGaussian(0.5, 3.0, banded(16, 4), order).run_multiplier == pytest.approx(1.5, rel=1e-3)
    once = CorrelatedGaussian(0.5, 3.0, tree(16), RoundRobinSampling(1, 100, 16))
    # The first round is in five nodes, of which Honaker's estimate uses all but little.
    assert 3.0 / math.sqrt(5) <= once.run_multiplier * (1 + 1e-9) < 3.0 / math.sqrt(4)


def test_a_second_attempt_composes_as_a_second_mechanism() -> None:
    stddev = 1.3 * 0.5 * 2.2
    assert effective_noise_multiplier(stddev, 0.5, 2.2) == pytest.approx(1.3)
    twice = effective_noise_multiplier(stddev, 0.5, 2.2, attempts=2)
    pair = compose([Release(KnownCohorts(), 1.3, 2)], 1e-5).epsilon
    assert gaussian_epsilon(twice, 1e-5) == pytest.approx(pair, abs=2e-3)


def test_attempts_from_a_checkpoint_are_within_two_mechanisms() -> None:
    """Rows up to the checkpoint once, the later ones twice: brute force over one client's rounds in both."""
    strategy, k, b, kept = banded(8, 3), 2, 3, 4
    matrix, limit = strategy.matrix(), strategy.sensitivity(k, b).value
    sets = [s for s in np.ndindex(*(2,) * 8) if sum(s) <= k and all(sum(s[t : t + b]) <= 1 for t in range(8))]
    first = np.array(sets, float)
    squares = [
        np.square(matrix @ one).sum() + np.square(matrix[kept:] @ other).sum()
        for one in first
        for other in first
        if (one[:kept] == other[:kept]).all()
    ]
    assert limit < math.sqrt(max(squares)) <= limit * math.sqrt(2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_epsilon(1.0, 0.0),
        lambda: gaussian_epsilon(0.0, 1e-5),
        lambda: noise_multiplier_for(0.0, 1e-5),
        lambda: noise_multiplier_for(1.0, 1e-5, attempts=0),
        lambda: effective_noise_multiplier(1.0, 0.0, 1.0),
        lambda: effective_noise_multiplier(1.0, 1.0, 1.0, attempts=0),
    ],
)
def test_parameters_out_of_range_are_refused(call: Callable[[], float]) -> None:
    with pytest.raises(PrivacyError):
        call()
