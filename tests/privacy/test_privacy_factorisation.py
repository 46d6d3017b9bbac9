"""Strategies of correlated noise against brute force, closed forms, and the best factorisation there is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from privfed.privacy.correlated_sensitivity import gram_sensitivity
from privfed.privacy.errors import PrivacyError
from privfed.privacy.factorisation import (
    Banded,
    BinaryTree,
    Strategy,
    banded,
    identity,
    prefix_error,
    tree,
)
from privfed.privacy.toeplitz import log_error, square_root_coefficients

LIMITS = [(1, 1), (1, 12), (2, 5), (3, 3), (3, 4), (4, 2), (4, 3), (6, 2), (2, 1), (12, 1), (5, 20)]


def participations_of(rounds: int, k: int, b: int, chosen: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    yield chosen
    if len(chosen) < k:
        for t in range(chosen[-1] + b if chosen else 0, rounds):
            yield from participations_of(rounds, k, b, (*chosen, t))


def brute_force(matrix: np.ndarray, k: int, b: int) -> float:
    """Equal updates of norm 1, the worst case where ``CᵀC`` has no negative entry."""
    gram = matrix.T @ matrix
    return math.sqrt(max(gram[np.ix_(s, s)].sum() for s in participations_of(matrix.shape[1], k, b)))


def all_nodes(rounds: int) -> np.ndarray:
    """The tree as it is usually stated: one row for each finished node, in the order that they are finished."""
    rows = []
    for t in range(1, rounds + 1):
        size = 1
        while t % size == 0:
            rows.append([t - size <= s < t for s in range(rounds)])
            size *= 2
    return np.array(rows, float)


@pytest.mark.parametrize(("k", "b"), LIMITS)
@pytest.mark.parametrize(
    "strategy",
    [identity(12), banded(12, 2), banded(12, 5), Banded(12, banded(12, 3).coefficients, normalised=False)],
)
def test_sensitivity_of_banded_strategies_is_that_of_brute_force(strategy: Banded, k: int, b: int) -> None:
    bound = strategy.sensitivity(k, b)
    assert bound.exact
    assert bound.value == pytest.approx(brute_force(strategy.matrix(), k, b), rel=1e-11)


@pytest.mark.parametrize(("k", "b"), LIMITS)
@pytest.mark.parametrize("rounds", [1, 2, 7, 11, 12])
def test_sensitivity_of_trees_is_that_of_brute_force_and_below_that_of_all_nodes(
    rounds: int, k: int, b: int
) -> None:
    bound = tree(rounds).sensitivity(k, b)
    assert bound.exact
    assert bound.value == pytest.approx(brute_force(tree(rounds).matrix(), k, b), rel=1e-11)
    assert bound.value <= brute_force(all_nodes(rounds), k, b) * (1 + 1e-11)


def test_a_search_cut_short_bounds_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = tree(16).matrix()
    truths = {(k, b): brute_force(matrix, k, b) for k, b in [(1, 1), (2, 5), (3, 3), (4, 3), (5, 2), (2, 1)]}
    for steps in (1, 2, 3, 10):
        monkeypatch.setattr("privfed.privacy.correlated_sensitivity.SEARCH_STEPS", steps)
        for (k, b), truth in truths.items():
            bound = gram_sensitivity(matrix.T @ matrix, k, b)
            assert truth <= bound.value <= 1.15 * truth
            assert not bound.exact or bound.value == pytest.approx(truth)
    monkeypatch.setattr("privfed.privacy.correlated_sensitivity.SEARCH_STEPS", 1)
    assert not tree(16).sensitivity(3, 3).exact


def test_a_gram_matrix_with_negative_entries_is_bounded_for_any_updates() -> None:
    rng = np.random.default_rng(3)
    matrix = np.tril(rng.normal(size=(8, 8)))
    bound = gram_sensitivity(matrix.T @ matrix, 3, 2)
    assert not bound.exact
    for chosen in participations_of(8, 3, 2):
        for signs in np.ndindex(*(2,) * len(chosen)):
            moved = matrix[:, list(chosen)] @ (2.0 * np.array(signs) - 1)
            assert np.linalg.norm(moved) <= bound.value * (1 + 1e-12)


def test_realistic_round_robins_are_solved_exactly() -> None:
    matrix = tree(48).matrix()
    bound = tree(48).sensitivity(5, 10)
    assert bound.exact
    assert bound.value == pytest.approx(brute_force(matrix, 5, 10), rel=1e-11)
    assert bound.value > np.linalg.norm(matrix[:, ::10].sum(axis=1))  # the regular set is not the worst
    assert tree(200).sensitivity(20, 10).exact
    assert tree(500).sensitivity(5, 100).exact


@pytest.mark.parametrize("rounds", [1, 2, 5, 8, 13])
def test_the_tree_is_the_best_estimate_from_finished_nodes(rounds: int) -> None:
    nodes, prefixes = all_nodes(rounds), np.tril(np.ones((rounds, rounds)))
    finished = np.cumsum([(t & -t).bit_length() for t in range(1, rounds + 1)])
    by_nodes = np.zeros((rounds, len(nodes)))
    for t, count in enumerate(finished):  # least squares from the nodes finished by round t
        by_nodes[t, :count] = prefixes[t] @ np.linalg.pinv(nodes[:count])
    np.testing.assert_allclose(by_nodes @ nodes, prefixes, atol=1e-12)
    ours = prefixes @ np.linalg.inv(tree(rounds).matrix())
    np.testing.assert_allclose(ours @ ours.T, by_nodes @ by_nodes.T, atol=1e-12)


def test_variances_of_the_estimate_from_below() -> None:
    # Honaker (2015); Kairouz et al. (2021): 1 / (2·(1 - 2^-κ)) for a node on level κ, leaves on level 1.
    kappa = np.arange(1, 8)
    np.testing.assert_allclose(tree(64).weights, 1 / (2 * (1 - 2.0**-kappa)))
    factor = np.tril(np.ones((64, 64))) @ np.linalg.inv(tree(64).matrix())
    np.testing.assert_allclose(np.square(factor).sum(axis=1)[2 ** (kappa - 1) - 1], tree(64).weights)


@pytest.mark.parametrize("rounds", [1, 10, 300])
def test_independent_noise_has_its_closed_form(rounds: int) -> None:
    error = prefix_error(identity(rounds), 1, 1)
    assert error.root_mean_square == pytest.approx(math.sqrt((rounds + 1) / 2))
    assert error.largest == pytest.approx(math.sqrt(rounds))
    assert identity(rounds).sensitivity(4, 3).value == pytest.approx(math.sqrt(min(4, math.ceil(rounds / 3))))


def test_the_square_root_has_landaus_constants_as_largest_error() -> None:
    # B = C = sqrt(A): its rows and columns have squared norms Σ (C(2j, j) / 4^j)², Landau's constants, which are
    # (ln n + γ + 4·ln 2) / π + O(1/n) (Watson 1930).
    rounds = 1000
    strategy = Banded(rounds, tuple(square_root_coefficients(rounds)), normalised=False)
    landau = (math.log(rounds) + np.euler_gamma + 4 * math.log(2)) / math.pi
    error = prefix_error(strategy, 1, rounds)
    assert error.largest == pytest.approx(landau, rel=1e-3)
    assert error.root_mean_square < error.largest
    np.testing.assert_allclose(
        np.convolve(square_root_coefficients(50), square_root_coefficients(50))[:50], np.ones(50)
    )


def best_error(rounds: int) -> float:
    """Of any factorisation, one participation: the fixed point of Denisov et al. (2022), Theorem 3.2."""
    prefixes = np.tril(np.ones((rounds, rounds)))
    gram, v = prefixes.T @ prefixes, np.ones(rounds)
    for _ in range(100):
        root = np.sqrt(v)
        values, vectors = np.linalg.eigh(root[:, None] * gram * root)
        v = np.square(vectors) @ np.sqrt(np.maximum(values, 0))
    return math.sqrt(v.sum() / rounds)


@pytest.mark.parametrize("rounds", [16, 60, 128])
def test_all_bands_come_within_three_percent_of_the_best_matrix(rounds: int) -> None:
    error = prefix_error(banded(rounds, rounds), 1, rounds).root_mean_square
    # Σ of the singular values of the prefix sums over T bounds all factorisations from below.
    singular = 1 / (2 * np.sin((2 * np.arange(1, rounds + 1) - 1) * math.pi / (4 * rounds + 2)))
    assert singular.sum() / rounds <= best_error(rounds) <= error * (1 + 1e-3) <= 1.03 * best_error(rounds)


def test_strategies_rank_as_they_should() -> None:
    def errors(k: int, b: int) -> list[float]:
        strategies: list[Strategy] = [banded(128, min(b, 128)), banded(128, 8), tree(128), identity(128)]
        return [prefix_error(strategy, k, b).root_mean_square for strategy in strategies]

    once = errors(1, 128)
    assert once == sorted(once)
    # 2.35 for all bands, 3.73 for the tree, 8.03 without correlation.
    assert once[2] / once[0] > 1.5
    assert once[3] / once[2] > 2
    often = errors(8, 16)
    assert often[:2] == sorted(often[:2])
    assert often[0] < min(often[2:])


def test_gradient_of_the_error() -> None:
    tail = square_root_coefficients(9)[1:] + 0.01
    value, gradient = log_error(tail, 30)
    np.testing.assert_allclose(gradient, approx_fprime(tail, lambda c: log_error(c, 30)[0], 1e-7), atol=1e-5)
    matrix = Banded(30, (1.0, *tail), normalised=False).matrix()
    factor = np.tril(np.ones((30, 30))) @ np.linalg.inv(matrix)
    exact = math.log(np.square(factor).sum()) + math.log(1 + tail @ tail)
    assert value == pytest.approx(exact, abs=1e-3)  # the matrix has rounded entries


@pytest.mark.parametrize(("rounds", "bands"), [(60, 10), (100, 5), (64, 64)])
def test_optimised_coefficients_beat_the_square_root_and_normalised_columns_the_plain_ones(
    rounds: int, bands: int
) -> None:
    best, root = banded(rounds, bands), tuple(square_root_coefficients(bands))
    plain = Banded(rounds, best.coefficients, normalised=False)
    errors = [
        prefix_error(s, 1, rounds).root_mean_square for s in (best, plain, Banded(rounds, root, normalised=False))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.995 * errors[2]


def test_two_thousand_rounds_take_seconds() -> None:
    start = time.perf_counter()
    strategy = banded(2000, 100)
    assert strategy.sensitivity(20, 100).value == pytest.approx(math.sqrt(20), rel=1e-3)
    assert time.perf_counter() - start < 5


def test_entries_are_on_the_grid_and_columns_have_norm_one() -> None:
    strategy = banded(40, 7)
    assert (strategy.diagonals * 2.0**16 % 1 == 0).all()
    np.testing.assert_allclose(np.linalg.norm(strategy.matrix(), axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(strategy.row(3), strategy.matrix()[3, 3::-1])
    np.testing.assert_array_equal(strategy.row(20), strategy.matrix()[20, 20:13:-1])


def test_parameters_out_of_range_are_refused() -> None:
    for bands in (0, 6):
        with pytest.raises(PrivacyError, match="bands"):
            banded(5, bands)
    with pytest.raises(PrivacyError, match="rounds"):
        BinaryTree(0)
    with pytest.raises(PrivacyError, match="finite"):
        Banded(5, (1.0, math.nan))
    with pytest.raises(PrivacyError, match="first one"):
        Banded(5, (1e-3, 1.0))
    for k, b in ((0, 1), (1, 0)):
        with pytest.raises(PrivacyError, match="at least 1"):
            tree(5).sensitivity(k, b)
        with pytest.raises(PrivacyError, match="at least 1"):
            identity(5).sensitivity(k, b)
