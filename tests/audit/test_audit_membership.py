"""Loss-threshold membership inference against scikit-learn's ROC, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from privfed.audit.membership import ROC_POINTS, loss_threshold_membership

losses = st.lists(st.integers(0, 20), min_size=1, max_size=60)


@settings(deadline=None)
@given(losses, losses)
def test_agrees_with_scikit_learn_also_with_ties(members: list[int], others: list[int]) -> None:
    result = loss_threshold_membership(np.array(members, float), np.array(others, float))
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    score = -np.r_[members, others].astype(float)
    assert result.auc == pytest.approx(roc_auc_score(truth, score))
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert result.tpr_at_fpr[0.01] == pytest.approx(true[false <= 0.01].max())
    assert result.roc[0] == (0, 0)
    assert result.roc[-1] == (1, 1)


def test_perfect_separation_and_the_wrong_way_round() -> None:
    low, high = np.linspace(0, 1, 500), np.linspace(2, 3, 700)
    best = loss_threshold_membership(low, high)
    assert (best.auc, best.tpr_at_fpr[0.001], best.members, best.non_members) == (1.0, 1.0, 500, 700)
    assert loss_threshold_membership(high, low).auc == 0.0
    assert len(best.roc) <= ROC_POINTS


def test_empty_and_non_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        loss_threshold_membership(np.zeros(0), np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        loss_threshold_membership(np.array([np.nan]), np.zeros(3))
