"""Membership inference on the released model by its loss (Yeom et al. 2018, Adversary 1), at every threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROC_POINTS = 101


@dataclass(frozen=True)
class LossThresholdMembership:
    """How well "small loss means member" tells members from non-members.

    Attributes:
        auc: Area under the ROC curve: the chance that a member's loss is below a non-member's, ties halved.
        tpr_at_fpr: True-positive rate by false-positive rate (the largest not above it), for 0.1 % and 1 %.
        roc: ``(false-positive rate, true-positive rate)`` from (0, 0) to (1, 1), at most ``ROC_POINTS`` of them.
        members: How many members were scored.
        non_members: How many others.
    """

    auc: float
    tpr_at_fpr: dict[float, float]
    roc: tuple[tuple[float, float], ...]
    members: int
    non_members: int


def loss_threshold_membership(
    member_losses: NDArray[np.float64], other_losses: NDArray[np.float64]
) -> LossThresholdMembership:
    """Score the attack from each example's loss under the released model.

    Args:
        member_losses: Of training examples, ``[n]``.
        other_losses: Of examples from the same source that were held out, ``[m]``.

    Raises:
        ValueError: One of the two is empty or not finite.
    """
    if not len(member_losses) or not len(other_losses):
        raise ValueError("membership inference needs members and non-members; one of the two sets is empty")
    losses = np.concatenate([member_losses, other_losses])
    if not np.isfinite(losses).all():
        raise ValueError("membership inference needs finite losses; the released model gives some that are not")
    is_member = np.concatenate([np.ones(len(member_losses), bool), np.zeros(len(other_losses), bool)])
    order = np.argsort(losses, kind="stable")
    ends = np.flatnonzero(np.diff(losses[order], append=np.inf))  # equal losses fall on one side together
    true = np.concatenate([[0], np.cumsum(is_member[order])[ends]]) / len(member_losses)
    false = np.concatenate([[0], np.cumsum(~is_member[order])[ends]]) / len(other_losses)
    auc = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
    at = {rate: float(true[false <= rate].max()) for rate in (0.001, 0.01)}
    shown = np.unique(np.linspace(0, len(true) - 1, ROC_POINTS).round().astype(int))
    roc = tuple((float(false[i]), float(true[i])) for i in shown)
    return LossThresholdMembership(auc, at, roc, len(member_losses), len(other_losses))
