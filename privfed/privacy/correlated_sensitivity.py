"""How far one client can move the strategy's image of all rounds, whichever rounds it takes part in.

(k, b)-participation (Choquette-Choo et al. 2023): at most k rounds, each b or more after the one before. For a set
π of rounds, ``C·X`` moves by at most ``sqrt(Σ_{s,t∈π} |CᵀC|[s, t])`` when every update has norm 1; that is
reached, by equal updates, where ``CᵀC`` has no negative entry (Choquette-Choo et al. 2023, "Multi-Epoch Matrix
Factorization …").
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError

Array = NDArray[np.float64]

SEARCH_STEPS = 2_000
"""Sets of rounds that the search extends before it settles for a bound."""
SEARCH_QUEUE = 300_000
"""Sets of rounds that it keeps."""
TOLERANCE = 1e-12
"""Relative: how close to the truth the search ends, and what is added to its result for that."""


@dataclass(frozen=True)
class Bound:
    """A sensitivity per unit of clip norm.

    Attributes:
        value: Never below the truth.
        exact: Whether it is the truth.
    """

    value: float
    exact: bool


def banded_sensitivity(squares: Array, participations: int, separation: int) -> Bound:
    """Exact, for columns that are orthogonal ``separation`` or more apart, from their squared norms ``[T]``.

    The largest sum of such squares, by dynamic programming over the first round that may be used.

    Raises:
        PrivacyError: A limit is below 1.
    """
    participations, separation = _limits(len(squares), participations, separation)
    best = np.zeros(len(squares) + separation)  # of the rounds from here on
    for _ in range(participations):
        best = _from_here(np.concatenate([squares + best[separation:], np.zeros(separation)]))
    return Bound(math.sqrt(best[0]), True)


def gram_sensitivity(gram: Array, participations: int, separation: int) -> Bound:
    """From ``CᵀC`` ``[T, T]`` of any ``C``, by search in the given order of rounds, and if need be in the reverse
    one.

    Raises:
        PrivacyError: A limit is below 1.
    """
    participations, separation = _limits(len(gram), participations, separation)
    magnitude = np.abs(gram)
    value, found = _search(magnitude, participations, separation)
    if not found:
        again, found = _search(magnitude[::-1, ::-1], participations, separation)
        value = again if found else min(value, again)
    nowhere_negative = bool(gram.min() >= -TOLERANCE * gram.max())
    return Bound(math.sqrt(value) * (1 + TOLERANCE), found and nowhere_negative)


def _search(gram: Array, participations: int, separation: int) -> tuple[float, bool]:
    """The largest ``Σ_{s,t∈π} gram[s, t]``, best set first, or a bound on it; and whether it is the former.

    A set is extended by later rounds. What these add is bounded by the rounds' own squares, by their products with
    the set, which are known, and by their products with the rounds after them, each as if it had those to choose
    alone. The maximum over sets of that bound is a dynamic programme.
    """
    rounds = len(gram)
    alone = np.diag(gram) + 2 * _later(gram, participations, separation)
    best, steps = 0.0, 0
    queue: list[tuple[float, tuple[int, ...]]] = [(-math.inf, ())]
    while queue and -queue[0][0] > best * (1 + TOLERANCE):
        if steps == SEARCH_STEPS or len(queue) > SEARCH_QUEUE:
            return -queue[0][0], False
        steps += 1
        _, chosen = heapq.heappop(queue)
        products = gram[list(chosen)].sum(axis=0)
        reached = float(products[list(chosen)].sum())
        best = max(best, reached)
        start = chosen[-1] + separation if chosen else 0
        if len(chosen) == participations or start >= rounds:
            continue
        worth = np.zeros(rounds + separation)
        rest = worth
        for left in range(participations - len(chosen)):
            worth = np.zeros(rounds + separation)
            worth[start:rounds] = 2 * products[start:] + alone[left, start:] + rest[start + separation :]
            rest = _from_here(worth)
        for t in start + np.flatnonzero(reached + worth[start:rounds] > best * (1 + TOLERANCE)):
            heapq.heappush(queue, (-(reached + worth[t]), (*chosen, int(t))))
    return best, True


def _later(gram: Array, participations: int, separation: int) -> Array:
    """At ``[n, s]`` the largest sum of ``gram[s, ·]`` over n rounds after round s, ``[participations, T]``."""
    rounds = len(gram)
    after = np.arange(rounds) + separation
    best = np.zeros((rounds + separation, rounds))
    rows = [np.zeros(rounds)]
    for _ in range(participations - 1):
        extended = np.zeros_like(best)
        extended[:rounds] = gram + best[separation:]
        best = _from_here(extended)
        rows.append(best[after, np.arange(rounds)])
    return np.array(rows)


def _from_here(values: Array) -> Array:
    """The largest of each value and those after it, along the first axis."""
    largest: Array = np.maximum.accumulate(values[::-1], axis=0)[::-1]
    return largest


def _limits(rounds: int, participations: int, separation: int) -> tuple[int, int]:
    """Both, no larger than ``rounds`` rounds leave room for."""
    for name, value in (("participations", participations), ("separation", separation)):
        if not (isinstance(value, int) and value >= 1):
            raise PrivacyError("must be an integer of at least 1", where=name, value=value)
    separation = min(separation, rounds)
    return min(participations, -(-rounds // separation)), separation
