"""Membership inference: from scores to a ROC curve, and to what may be said at a low rate of false alarms.

Averages hide harm: an attack that is right about a few people with hardly any false alarm is worse for them than
one that is slightly right about everybody (Carlini et al. 2022, section III).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["example", "client"]
LOW_RATES = (0.001, 0.01)
CONFIDENCE = 0.95
ROC_POINTS = 101


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold with the most members found among those with a low enough rate of false alarms.

    Attributes:
        limit: False-positive rate not to be exceeded.
        fpr: The rate on the non-members scored, at most ``limit``.
        fpr_interval: Clopper-Pearson, ``CONFIDENCE``.
        tpr: Share of the members found.
        tpr_interval: Clopper-Pearson, ``CONFIDENCE``, for this threshold.
    """

    limit: float
    fpr: float
    fpr_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class MembershipInference:
    """How well one attack tells members from non-members; higher scores mean member.

    Attributes:
        method: Its name.
        unit: ``example`` or ``client``.
        assumption: What the attacker was given beyond the released model.
        scores: ``[n]``.
        is_member: ``[n]``.
        fpr: False-positive rates of the ROC curve, rising from 0 to 1, one point for each distinct score and one
            before.
        tpr: True-positive rates of the same points.
        auc: Area under the curve: the chance that a member scores above a non-member, ties halved.
        points: One by limit of ``LOW_RATES``; ``None`` where the non-members are too few to resolve it.
    """

    method: str
    unit: Unit
    assumption: str
    scores: NDArray[np.float64]
    is_member: NDArray[np.bool_]
    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    auc: float
    points: dict[float, OperatingPoint | None]

    @property
    def members(self) -> int:
        """How many members were scored."""
        return int(self.is_member.sum())

    @property
    def non_members(self) -> int:
        """How many others."""
        return len(self.is_member) - self.members

    def shown_roc(self) -> tuple[tuple[float, float], ...]:
        """``(fpr, tpr)`` of at most ``2 * ROC_POINTS`` points, dense where false alarms are few."""
        last = len(self.fpr) - 1
        even = np.linspace(0, last, ROC_POINTS)
        few = np.searchsorted(self.fpr, np.geomspace(0.5 / self.non_members, 1, ROC_POINTS), side="right") - 1
        shown = np.unique(np.concatenate([even.round().astype(int), few]))
        return tuple((float(self.fpr[i]), float(self.tpr[i])) for i in shown)


def judge(
    scores: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    *,
    method: str,
    unit: Unit = "example",
    assumption: str = "",
) -> MembershipInference:
    """ROC curve and operating points of an attack.

    Args:
        scores: ``[n]``, higher for members.
        is_member: ``[n]``; membership is all that tells the two groups apart (drawn at random from one pool), else
            the curve says how they differ and not what the model remembers.
        method: Name of the attack.
        unit: What a score is about.
        assumption: What the attacker was given.

    Raises:
        ValueError: No member, no non-member, or a score that is not finite.
    """
    members = int(is_member.sum())
    others = len(is_member) - members
    if not members or not others:
        raise ValueError("membership inference needs members and non-members; one of the two sets is empty")
    if scores.shape != is_member.shape or not np.isfinite(scores).all():
        raise ValueError("membership inference needs one finite score for each")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores fall on one side together
    true = np.concatenate([[0], np.cumsum(is_member[order])[ends]])
    false = np.concatenate([[0], np.cumsum(~is_member[order])[ends]])
    tpr, fpr = true / members, false / others
    auc = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
    points: dict[float, OperatingPoint | None] = {}
    for limit in LOW_RATES:
        at = int(np.flatnonzero(false <= math.floor(limit * others + 1e-9))[-1])
        points[limit] = (
            OperatingPoint(
                limit,
                float(fpr[at]),
                clopper_pearson(int(false[at]), others),
                float(tpr[at]),
                clopper_pearson(int(true[at]), members),
            )
            if resolvable(limit, others)
            else None
        )
    return MembershipInference(method, unit, assumption, scores, is_member, fpr, tpr, auc, points)


def resolvable(limit: float, non_members: int) -> bool:
    """Whether a single false alarm among so many non-members stays within ``limit``."""
    return non_members * limit >= 1 - 1e-9


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact two-sided interval of a binomial probability (Clopper & Pearson 1934).

    Raises:
        ValueError: Not 0 ≤ successes ≤ trials with at least one trial.
    """
    from scipy.stats import beta

    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes in {trials} trials have no interval")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high
