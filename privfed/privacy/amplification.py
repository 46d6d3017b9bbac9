"""How much less an observer learns who does not see which clients take part, for any mechanism with a Rényi curve.

A curve gives the Rényi divergence of integer orders. All bounds here are on integer orders from 2 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from privfed.privacy.errors import PrivacyError

Curve = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Rényi divergences of integer orders (at least 2), elementwise."""


def hidden_cohort_rdp(own: Curve, others: Curve, rate: float, order: int) -> float:
    """Of a cohort of public size, every set of clients equally likely, when one client's vector changes.

    Given the size, a cohort either holds the client or holds another one in its place. Let A be the mechanism on a
    cohort without the client, B and B' that on the same cohort with the client's two vectors instead of the other
    client's. The observer sees ``(1-q)·A + q·B`` or ``(1-q)·A + q·B'``, in either order, averaged over the
    cohorts, which convexity allows to look at one by one. The result is the least of

    - ``own(α)``: as if the client always took part;
    - ``log(1 - q + q·exp((α-1)·own(α))) / (α-1)``, by joint convexity;
    - ``log(1 + q²·C(α,2)·m(2) + Σ_{j≥3} q^j·C(α,j)·m(j)) / (α-1)``, Theorem 9 of Wang, Balle & Kasiviswanathan
      (2019), where ``m(j)`` bounds ``E_A[|(B - B')/A|^j]``. They take ``4·(exp(ε(2)) - 1)`` and
      ``2·exp((j-1)·ε(j))`` with one ε for all pairs. Told apart, the pairs give a little less:
      ``|x - y|^j ≤ x^j + y^j`` yields ``exp((j-1)·others(j)) + exp((j-1)·own(j))``, and for j = 2 Minkowski
      also ``(sqrt(exp(others(2)) - 1) + sqrt(exp(own(2)) - 1))²``. Means over B or B' are smaller.

    Args:
        own: Bounds B against B', and A against B', in both directions.
        others: Bounds A against B in both directions; at least ``own``.
        rate: ``q``: the chance that the client takes part, given how many do.
        order: ``α``, at least 2.

    Raises:
        PrivacyError: An argument is out of range.
    """
    _check(rate, order)
    alone = float(own(np.array([order]))[0])
    if rate == 1 or not math.isfinite(alone):
        return alone
    convex = np.logaddexp(math.log1p(-rate), math.log(rate) + (order - 1) * alone) / (order - 1)
    j = np.arange(2, order + 1)
    near, far = own(j), others(j)
    terms = np.logaddexp((j - 1) * near, (j - 1) * far)
    if far[0] < 100:  # else no gain, and no range
        terms[0] = min(terms[0], 2 * math.log(math.sqrt(math.expm1(far[0])) + math.sqrt(math.expm1(near[0]))))
    powers = j * math.log(rate) + _log_binomial(order, j)
    total = float(logsumexp(np.append(powers + terms, 0.0))) / (order - 1)
    return float(min(alone, convex, total))


def poisson_subsampled_rdp(curve: Curve, rate: float, order: int) -> float:
    """Of Poisson-sampled clients, add-or-remove (Zhu & Wang 2019, Theorem 5: general, not their tight Theorem 6).

    ``log((1-q)^(α-1)·(αq - q + 1) + C(α,2)·q²·(1-q)^(α-2)·exp(ε(2)) + 3·Σ_{l≥3} C(α,l)·(1-q)^(α-l)·q^l·
    exp((l-1)·ε(l))) / (α-1)``, or ``curve(order)`` where that is less.

    It takes one curve for the mechanism with and without the client, so the noise must not depend on who takes
    part. Noise that the clients of a cohort bring along does: its variance tells of one client more or less, which
    in a million coordinates is plain to see. For such noise use ``hidden_cohort_rdp``.

    Raises:
        PrivacyError: An argument is out of range.
    """
    _check(rate, order)
    alone = float(curve(np.array([order]))[0])
    if rate == 1 or not math.isfinite(alone):
        return alone
    j = np.arange(2, order + 1)
    terms = j * math.log(rate) + (order - j) * math.log1p(-rate) + _log_binomial(order, j) + (j - 1) * curve(j)
    terms[1:] += math.log(3)
    first = (order - 1) * math.log1p(-rate) + math.log1p(rate * (order - 1))
    return float(min(alone, float(logsumexp(np.append(terms, first))) / (order - 1)))


def _log_binomial(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return result


def _check(rate: float, order: int) -> None:
    if not 0 < rate <= 1:
        raise PrivacyError("a sampling rate lies in (0, 1]", where="rate", value=rate)
    if not (isinstance(order, int) and order >= 2):
        raise PrivacyError("must be an integer of at least 2", where="order", value=order)
