"""ROC curves and operating points against scikit-learn, hand-made scores and published values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import roc_auc_score, roc_curve

from privfed.audit.membership import ROC_POINTS, MembershipInference, WorstOff, clopper_pearson, judge, worst_off

scores = st.lists(st.integers(0, 20), min_size=1, max_size=60)


def judged(members: object, others: object, owners: object = None) -> MembershipInference:
    inside, outside = np.asarray(members, float), np.asarray(others, float)
    is_member = np.arange(len(inside) + len(outside)) < len(inside)
    whose = None if owners is None else np.asarray(owners)
    return judge(np.concatenate([inside, outside]), is_member, method="loss", owners=whose)


@settings(deadline=None)
@given(scores, scores)
def test_agrees_with_scikit_learn_also_with_ties(members: list[int], others: list[int]) -> None:
    result = judged(members, others)
    assert result.auc == pytest.approx(roc_auc_score(result.is_member, result.scores))
    false, true, _ = roc_curve(result.is_member, result.scores, drop_intermediate=False)
    np.testing.assert_allclose(result.fpr, false)
    np.testing.assert_allclose(result.tpr, true)
    shown = result.shown_roc()
    assert (shown[0], shown[-1]) == ((0, 0), (1, 1))
    assert shown == tuple(sorted(shown))


def test_a_curve_by_hand() -> None:
    # Ranked: member, member, other | member, other tied | other.
    result = judged([5, 4, 2], [3, 2, 1])
    assert list(zip(result.fpr * 3, result.tpr * 3, strict=True)) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 2),
        (2, 3),
        (3, 3),
    ]
    assert result.auc == pytest.approx((6 + 1 + 0.5) / 9)  # of 9 pairs, in the order of members: 3, 3, 1.5
    assert (result.members, result.non_members) == (3, 3)


def test_operating_points_are_those_of_the_definition() -> None:
    # 2,000 others at 0 … 1999: up to 2 false alarms are 0.1 %, up to 20 are 1 %. Members tie with some of them.
    result = judged([2500.0] * 30 + [1997.5] * 20 + [1985.0] * 40 + [-1.0] * 10, np.arange(2000.0))
    low, high = result.points[0.001], result.points[0.01]
    assert low is not None
    assert high is not None
    assert (low.fpr, low.tpr, high.fpr, high.tpr) == (0.001, 0.5, 0.01, 0.9)
    assert low.tpr_interval == clopper_pearson(50, 100)
    assert low.fpr_interval == clopper_pearson(2, 2000)


@pytest.mark.parametrize(("others", "resolved"), [(99, ()), (100, (0.01,)), (999, (0.01,)), (1000, (0.001, 0.01))])
def test_a_rate_is_stated_when_one_false_alarm_stays_within_it(others: int, resolved: tuple[float, ...]) -> None:
    result = judged([1.0], np.zeros(others))
    assert tuple(limit for limit, point in result.points.items() if point is not None) == resolved


def test_clopper_pearson_values() -> None:
    # Both ends closed forms: 1 - (0.025)^(1/n) for no success; and 10 of 20, as scipy.stats.binomtest gives it.
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    low, high = clopper_pearson(10, 20)
    assert (low, high) == (pytest.approx(0.27196, abs=1e-5), pytest.approx(0.72804, abs=1e-5))
    # By definition each end leaves 2.5 % of the binomial beyond the count.
    low, high = clopper_pearson(3, 50)
    assert binom.sf(2, 50, low) == pytest.approx(0.025)
    assert binom.cdf(3, 50, high) == pytest.approx(0.025)
    for wrong in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="no interval"):
            clopper_pearson(*wrong)


def test_perfect_separation_and_the_wrong_way_round() -> None:
    low, high = np.linspace(0, 1, 500), np.linspace(2, 3, 7000)
    worst, best = judged(low, high), judged(high, low)
    assert (worst.auc, best.auc) == (0.0, 1.0)
    assert len(best.shown_roc()) <= 2 * ROC_POINTS


def test_empty_and_non_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        judged([], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        judged([np.nan], [1, 2])


def test_the_areas_interval_by_hand_and_where_variance_says_nothing() -> None:
    # Placements: members 3/3, 3/3, 1.5/3; others 2/3, 2.5/3, 3/3 (each: share of the other side that is in order).
    result = judged([5, 4, 2], [3, 2, 1])
    variance = np.var([1, 1, 0.5], ddof=1) / 3 + np.var([2 / 3, 2.5 / 3, 1], ddof=1) / 3
    low = result.auc - 1.959963984540054 * np.sqrt(variance)
    assert result.auc_interval == (pytest.approx(low), 1.0)
    assert judged(np.arange(10) + 100, np.arange(20)).auc_interval == clopper_pearson(10, 10)


def test_the_areas_interval_covers_as_often_as_it_says() -> None:
    """95 % of 400 draws: fewer than 360 would have a chance below 1e-4."""
    true = 0.6914624612740131  # N(1/sqrt 2, 1) above N(0, 1) with this chance: the normal distribution at 0.5
    covered = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        low, high = judged(rng.normal(2**-0.5, 1, 60), rng.normal(0, 1, 80)).auc_interval
        covered += low <= true <= high
    assert covered >= 360


def test_the_worst_off_are_those_found_without_false_alarms() -> None:
    others = np.arange(200.0)
    members = [500.0, 300.0, 10.0, 199.5, 20.0, 198.0]
    clients = np.array([7, 7, 3, 5, 5, 4, *([99] * 200)])
    found = worst_off(judged(members, others, clients), 3)
    # Of 200 others two may score as high: 198 and 199 do as high as 198.
    assert found == (WorstOff(7, 2, 2, 0.0), WorstOff(4, 1, 1, 0.01), WorstOff(5, 2, 1, 0.0))
    assert len(worst_off(judged(members, others, clients), 10)) == 4  # non-members are not named
