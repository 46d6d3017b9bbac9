"""A lower bound on ε from one training (Steinke et al. 2023, "Privacy auditing with one (1) training run").

The auditor tosses a fair coin for each of ``m`` canaries, trains once with those that won, and guesses the coins
of some of them from what an observer saw. Under (ε, δ)-differential privacy few guesses can be right; so many
right ones refute small ε. This holds for every way to score canaries and to guess, and for every mechanism.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CONFIDENCE = 0.95
HIGHEST = 64.0
"""Bounds are sought up to here; ``m`` canaries cannot prove more than about ``ln(m / 3)``."""
_BISECTIONS = 40

CHOICES: tuple[tuple[float, bool], ...] = ((0.02, False), (0.1, False), (0.1, True), (0.4, True), (1.0, True))
"""Guesses tried, fixed beforehand: their share of the canaries, and whether half of them are "was not there"."""


@dataclass(frozen=True)
class OneRunBound:
    """A lower bound and the guesses that it rests on.

    Attributes:
        epsilon: With probability ``confidence`` at most the true ε; 0 where nothing is proved.
        guesses: Canaries guessed; the auditor abstains from the others.
        right: Guesses that were right.
        confidence: Of the bound, over all ways to guess together.
    """

    epsilon: float
    guesses: int
    right: int
    confidence: float


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Chance of so many right guesses under (``epsilon``, ``delta``)-DP, from above (Theorem 5.2).

    Args:
        canaries: Coins tossed, ``m``.
        guesses: Coins guessed, ``r``.
        right: Right guesses, ``v``.
        epsilon: The hypothesis.
        delta: The hypothesis; with 0 the bound is the tail of a binomial distribution.

    Raises:
        ValueError: Not ``0 <= right <= guesses <= canaries``.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"0 <= right <= guesses <= canaries is needed, got {right}, {guesses}, {canaries}")
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, chance))
    steps = np.arange(1, right + 1)
    alpha = float(np.max(np.cumsum(binom.pmf(right - steps, guesses, chance)) / steps, initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * alpha)


def refuted_epsilon(canaries: int, guesses: int, right: int, delta: float, level: float) -> float:
    """The largest ε that so many right guesses refute at significance ``level``; 0 where they refute none."""
    low, high = 0.0, HIGHEST
    if p_value(canaries, guesses, right, low, delta) > level:
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) <= level else (low, middle)
    return low


def one_run_bound(
    scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float, confidence: float = CONFIDENCE
) -> OneRunBound:
    """Guess that canaries of high score were there and canaries of low score were not, in each way of ``CHOICES``.

    The best of the ways counts, each tested at its share of the significance level (Bonferroni).

    Args:
        scores: Of each canary, from what the observer saw, ``[m]``.
        included: The coins, ``[m]``.
        delta: Of the claim.
        confidence: Of the bound.
    """
    count, order = len(scores), np.argsort(scores, kind="stable")
    level, best = (1 - confidence) / len(CHOICES), OneRunBound(0.0, 0, 0, confidence)
    for share, both in CHOICES:
        guesses = min(count, max(1, round(share * count)))
        absent = guesses // 2 if both else 0
        there = order[count - (guesses - absent) :]
        right = int(included[there].sum() + (~included[order[:absent]]).sum())
        found = refuted_epsilon(count, guesses, right, delta, level)
        if not best.guesses or found > best.epsilon:
            best = OneRunBound(found, guesses, right, confidence)
    return best
