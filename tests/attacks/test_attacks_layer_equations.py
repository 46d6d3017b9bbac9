"""Equations of a layer's input: the way by rows against the dense matrix that it avoids."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.base import NotInvertible
from attacks.layer_equations import Precision, solve


def equations(strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows ``[8, 24]``, the matrix ``[12, 12]`` of two channels, a right-hand side, and their full matrix."""
    rng = np.random.default_rng(3)
    rows, half = strength * rng.normal(size=(8, 24)), strength * rng.normal(size=(9, 12))
    shared = half.T @ half
    return rows, shared, rng.normal(size=24), rows.T @ rows + np.kron(shared, np.eye(2)) + np.eye(24)


@pytest.mark.parametrize("strength", [1.0, 1e6])
@pytest.mark.parametrize("dense", [True, False])
def test_solution_and_precision_are_those_of_the_full_matrix(strength: float, dense: bool) -> None:
    rows, shared, _, matrix = equations(strength)
    truth = np.random.default_rng(4).normal(size=24)
    solution, precision = solve(rows, shared, matrix @ truth, dense=dense)
    # Every direction is known to about its own standard deviation, and those that matter much better.
    distance = solution - truth
    assert distance @ matrix @ distance < 0.1
    assert (precision.root is None) == dense
    white = precision.whiten(np.eye(24))
    np.testing.assert_allclose(white.T @ white, matrix, rtol=1e-9, atol=1e-9 * np.abs(matrix).max())


def test_standard_deviations_are_those_of_the_inverse() -> None:
    rows, shared, right, matrix = equations(1.0)
    _, precision = solve(rows, shared, right, dense=True)
    # 4,000 probes: a relative standard error of 1.1 %; beyond 6 % in one of 24 at a rate below 1e-6.
    found = precision.stddevs(np.random.default_rng(5), probes=4000)
    np.testing.assert_allclose(found, np.sqrt(np.diag(np.linalg.inv(matrix))), rtol=0.06)


def test_diagonal_precision_is_a_root_as_it_stands() -> None:
    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(Precision(2 * np.eye(3)).whiten(x), 2 * x)


def test_equations_that_are_not_finite_are_refused() -> None:
    rows, shared, right, _ = equations(1.0)
    with pytest.raises(NotInvertible, match="not finite"):
        solve(rows, shared, np.full_like(right, np.inf), dense=False)
