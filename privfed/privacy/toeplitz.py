"""Coefficients of banded Toeplitz strategies with the least noise in the prefix sums."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import lfilter

Array = NDArray[np.float64]


def square_root_coefficients(bands: int) -> Array:
    """First Taylor coefficients of ``1/sqrt(1-x)``: ``C(2j, j) / 4^j``, ``[bands]``.

    Uncut they are the Toeplitz square root of the prefix sums (Fichtenberger, Henzinger & Upadhyay 2022).
    """
    j = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])


@lru_cache(maxsize=32)
def best_coefficients(rounds: int, bands: int) -> tuple[float, ...]:
    """Coefficients ``c``, the first one 1, that minimise ``|A·C⁻¹|² · |c|²`` over Toeplitz ``C`` with ``bands``
    bands.

    That is the mean squared error of the prefix sums at equal privacy when a client's columns do not overlap.
    L-BFGS from the square root's coefficients: about ten evaluations of ``rounds · bands`` operations.
    """
    if bands == 1:
        return (1.0,)
    start = square_root_coefficients(bands)[1:]
    found = minimize(log_error, start, args=(rounds,), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    best = found.x if found.fun <= log_error(start, rounds)[0] else start
    return (1.0, *map(float, best))


def log_error(tail: Array, rounds: int) -> tuple[float, Array]:
    """``log(|A·C⁻¹|² · |c|²)`` with ``c = (1, *tail)``, and its gradient in ``tail``.

    ``A·C⁻¹`` is Toeplitz; its coefficients ``b`` are those of ``1 / ((1-x)·c(x))``, and ``b_s`` is in
    ``rounds - s`` of its entries. The gradient follows from ``∂b/∂c_j = -x^j · b(x) / c(x)``.
    """
    c = np.concatenate([[1.0], tail])
    unit = np.zeros(rounds)
    unit[0] = 1.0
    b = np.cumsum(lfilter([1.0], c, unit))
    weighted = np.arange(rounds, 0, -1) * b
    squares, norm = float(weighted @ b), float(c @ c)
    lags = np.correlate(weighted, lfilter([1.0], c, b), "full")[rounds - 1 :]
    gradient = -2 * lags[1 : len(c)] / squares + 2 * tail / norm
    return float(np.log(squares) + np.log(norm)), gradient
