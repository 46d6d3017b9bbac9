"""The least ε that leaves possible what membership inference reached, to hold a claim to.

Whatever tells members from non-members by a threshold is right about members at most ``e^ε`` times as often as it
is wrong about others, plus δ, and the other way round (Wasserman & Zhou 2010; Kairouz, Oh, Viswanath 2015,
Theorem 2.1). Measured rates have intervals, and so has the least ε: its lower end is what claims are held to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privfed.audit.membership import CONFIDENCE, MembershipInference, Unit

FALSE_ALARMS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5)
"""Shares of wrong answers that thresholds are put at, fixed beforehand, on either side."""


@dataclass(frozen=True)
class EpsilonFloor:
    """The lower end of an interval for the least ε that an attack's rates leave possible.

    Attributes:
        epsilon: 0 where the rates are within what any claim allows.
        confidence: Of all attacks on one model together, as if units were independent.
        members: Units that it rests on.
        non_members: Likewise.
        says: What the test behind it said of those beyond its threshold.
        right: Lower end of how often that is right.
        wrong: Upper end of how often it is said wrongly.
    """

    epsilon: float
    confidence: float
    members: int
    non_members: int
    says: Literal["member", "non-member"]
    right: float
    wrong: float


def epsilon_floor(found: MembershipInference, unit: Unit, delta: float, attacks: int = 1) -> EpsilonFloor | None:
    """The floor that one attack proves against a claim for ``unit`` at ``delta``; ``None`` where it says nothing.

    For a claim about clients one score of each client counts, drawn at random: those of one client come and go
    together. A claim about examples says nothing about clients; and where non-members are no clients drawn like
    the members, rates may differ for another reason than membership.

    A threshold lies at an order statistic of those who are wrongly answered, so that its rate has a Beta
    distribution and Clopper-Pearson's end holds although the scores chose it; the other side's rate is binomial
    given the threshold. All thresholds, both ends, and ``attacks`` attacks share the significance (Bonferroni).

    Args:
        found: What the attack came to.
        unit: Of the claim.
        delta: Of the claim.
        attacks: On the same model; the confidence is of all of them together.
    """
    if (unit == "client" and not found.alike) or (unit == "example" and found.unit == "client"):
        return None
    chosen = _one_of_each(found) if unit == "client" else np.arange(len(found.scores))
    scores, is_member = found.scores[chosen], found.is_member[chosen]
    members, others = np.sort(scores[is_member]), np.sort(scores[~is_member])
    tests = [*_tests("member", members, others), *_tests("non-member", -others[::-1], -members[::-1])]
    level = (1 - CONFIDENCE) / (2 * len(tests) * attacks)
    floors = [_floor(*test, level, delta, (len(members), len(others))) for test in tests]
    return max(floors, key=lambda floor: (floor.epsilon, floor.right - floor.wrong))


Says = Literal["member", "non-member"]
Test = tuple[Says, tuple[int, int], tuple[int, int]]
"""What is said; how often rightly, of how many; how often wrongly, of how many."""


def _tests(says: Says, right: NDArray[np.float64], wrong: NDArray[np.float64]) -> Iterator[Test]:
    """Of two sorted samples, those above the threshold that leaves so many of ``wrong`` above it."""
    for above in sorted({math.floor(share * len(wrong)) for share in FALSE_ALARMS}):
        threshold = wrong[len(wrong) - 1 - above]
        found = len(right) - int(np.searchsorted(right, threshold, side="right"))
        yield says, (found, len(right)), (above, len(wrong))


def _floor(
    says: Says, right: tuple[int, int], wrong: tuple[int, int], level: float, delta: float, units: tuple[int, int]
) -> EpsilonFloor:
    from scipy.stats import beta

    (found, of), (above, of_wrong) = right, wrong
    low = float(beta.ppf(level, found, of - found + 1)) if found else 0.0
    high = float(beta.isf(level, above + 1, of_wrong - above)) if above < of_wrong else 1.0
    epsilon = max(0.0, math.log((low - delta) / high)) if low > delta else 0.0
    return EpsilonFloor(epsilon, CONFIDENCE, *units, says, low, high)


def _one_of_each(found: MembershipInference) -> NDArray[np.intp]:
    """A score of each owner, drawn at random, members and non-members apart."""
    order = np.random.default_rng(list(b"one of each client")).permutation(len(found.scores))
    sides = np.stack([found.is_member[order], found.owners[order]], axis=1)
    _, first = np.unique(sides, axis=0, return_index=True)
    picked: NDArray[np.intp] = order[first]
    return picked
