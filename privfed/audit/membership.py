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
        auc_interval: Of DeLong et al. (1988), ``CONFIDENCE``, as if scores were independent.
        points: One by limit of ``LOW_RATES``; ``None`` where the non-members are too few to resolve it.
        owners: Identifier of the client that each score is of, ``[n]``.
        alike: Whether the owners of members and non-members differ in membership alone, as clients.
    """

    method: str
    unit: Unit
    assumption: str
    scores: NDArray[np.float64]
    is_member: NDArray[np.bool_]
    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    auc: float
    auc_interval: tuple[float, float]
    points: dict[float, OperatingPoint | None]
    owners: NDArray[np.int64]
    alike: bool

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
    owners: NDArray[np.int64] | None = None,
    alike: bool = True,
) -> MembershipInference:
    """ROC curve and operating points of an attack.

    Args:
        scores: ``[n]``, higher for members.
        is_member: ``[n]``; membership is all that tells the two groups apart (drawn at random from one pool), else
            the curve says how they differ and not what the model remembers.
        method: Name of the attack.
        unit: What a score is about.
        assumption: What the attacker was given.
        owners: Whose each score is, ``[n]``; each its own without.
        alike: Whether owners are clients drawn alike.

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
    interval = _auc_interval(scores, is_member, auc)
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
    whose = np.arange(len(scores)) if owners is None else owners
    return MembershipInference(
        method, unit, assumption, scores, is_member, fpr, tpr, auc, interval, points, whose, alike
    )


def _auc_interval(scores: NDArray[np.float64], is_member: NDArray[np.bool_], auc: float) -> tuple[float, float]:
    """Normal interval about the area, from the variances of each side's placements on the other.

    DeLong, DeLong & Clarke-Pearson (1988). Of fewer than two on a side, and where the two do not overlap, nothing
    is known of the variance: then the interval is that of the smaller side's number, Clopper-Pearson.
    """
    from scipy.stats import norm, rankdata

    members, others = scores[is_member], scores[~is_member]
    m, n = len(members), len(others)
    everything = rankdata(np.concatenate([members, others]))
    of_members = (everything[:m] - rankdata(members)) / n
    of_others = 1 - (everything[m:] - rankdata(others)) / m
    variance = 0.0
    if min(m, n) > 1:
        variance = float(of_members.var(ddof=1) / m + of_others.var(ddof=1) / n)
    if variance == 0:
        return clopper_pearson(round(auc * min(m, n)), min(m, n))
    half = float(norm.isf((1 - CONFIDENCE) / 2)) * math.sqrt(variance)
    return max(0.0, auc - half), min(1.0, auc + half)


@dataclass(frozen=True)
class WorstOff:
    """A client that an attack finds at a low rate of false alarms.

    Attributes:
        client: Its identifier in the population.
        units: Of it that were scored: its examples, or itself.
        found: Of them that score above all but 1 % of the non-members.
        lowest_fpr: Share of the non-members that score as high as the highest of its units.
    """

    client: int
    units: int
    found: int
    lowest_fpr: float


def worst_off(found: MembershipInference, count: int) -> tuple[WorstOff, ...]:
    """At most ``count`` clients of whom the attack is most sure: the largest share found, then the lowest rate."""
    others = np.sort(found.scores[~found.is_member])
    rate = (len(others) - np.searchsorted(others, found.scores, side="left")) / len(others)
    all_of_them = []
    for client in np.unique(found.owners[found.is_member]):
        own = rate[found.is_member & (found.owners == client)]
        all_of_them.append(WorstOff(int(client), len(own), int((own <= 0.01).sum()), float(own.min())))
    all_of_them.sort(key=lambda one: (-one.found / one.units, one.lowest_fpr, one.client))
    return tuple(all_of_them[:count])


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
