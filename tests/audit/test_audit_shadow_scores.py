"""Scores with shadow models against their definitions, and on models whose memory is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from privfed.audit.membership import judge
from privfed.audit.pool import draw_halves
from privfed.audit.shadow_scores import METHODS, OFFLINE_SLOPE, OWN_VARIANCE_FROM, Shadows, Signals

UNITS = 2000


def simulated(rng: np.random.Generator, models: int, gain: float) -> tuple[Signals, Shadows, np.ndarray]:
    """Models that are ``gain`` surer of what they trained on: units of very different difficulty, noise of 1."""
    trained_on = draw_halves(UNITS, models, rng)
    is_member = rng.permutation(UNITS) < UNITS // 2
    difficulty = rng.normal(0, 4, UNITS)

    def signals(seen: np.ndarray, shape: tuple[int, ...]) -> Signals:
        odds = (difficulty + gain * seen.T + rng.normal(0, 1, shape).T).T
        return Signals(-np.logaddexp(0, -odds), odds)

    return (
        signals(is_member, (UNITS,)),
        Shadows(signals(trained_on, (UNITS, models)), trained_on),
        is_member,
    )


def test_every_unit_is_in_half_of_the_models_and_every_model_has_half_of_the_units() -> None:
    halves = draw_halves(101, 8, np.random.default_rng(0))
    assert (halves.sum(axis=1) == 4).all()
    assert set(halves.sum(axis=0)) == {50, 51}
    assert (halves[:, 0] == ~halves[:, 1]).all()
    assert (halves[:, 0] != halves[:, 2]).any()


@pytest.mark.parametrize("models", [6, 2 * OWN_VARIANCE_FROM])
def test_lira_is_the_ratio_of_two_gaussians(models: int) -> None:
    target, shadows, _ = simulated(np.random.default_rng(1), models, 1.0)
    sides = []
    for side in (shadows.trained_on, ~shadows.trained_on):
        values = [shadows.signals.log_odds[i, side[i]] for i in range(UNITS)]
        mean = np.array([v.mean() for v in values])
        own = np.array([v.var(ddof=1) for v in values])
        # Equally many values in each row: the pooled variance is the mean of the rows'.
        deviation = np.sqrt(own if models // 2 >= OWN_VARIANCE_FROM else np.full(UNITS, own.mean()))
        sides.append((mean, deviation))
    (mean_in, deviation_in), (mean_out, deviation_out) = sides
    expected = norm.logpdf(target.log_odds, mean_in, deviation_in) - norm.logpdf(
        target.log_odds, mean_out, deviation_out
    )
    np.testing.assert_allclose(METHODS["lira"].score(target, shadows), expected, rtol=1e-9, atol=1e-9)
    tail = norm.cdf(METHODS["lira_offline"].score(target, shadows))
    np.testing.assert_allclose(tail, norm.cdf(target.log_odds, mean_out, deviation_out), atol=1e-12)


@pytest.mark.parametrize("method", ["rmia", "rmia_offline"])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_ranks_as_the_pairwise_definition_does(method: str, gamma: float) -> None:
    target, shadows, _ = simulated(np.random.default_rng(2), 4, 1.0)
    p, references = np.exp(target.log_confidence), np.exp(shadows.signals.log_confidence)
    outside = np.array([references[i, ~shadows.trained_on[i]].mean() for i in range(UNITS)])
    inside = np.array([references[i, shadows.trained_on[i]].mean() for i in range(UNITS)])
    if method == "rmia_offline":
        inside = OFFLINE_SLOPE * outside + 1 - OFFLINE_SLOPE
    ratio = p / ((inside + outside) / 2)
    pairwise = np.array([np.mean(own / ratio >= gamma) for own in ratio])
    score = METHODS[method].score(target, shadows)
    np.testing.assert_allclose(score, np.log(ratio), atol=1e-9)
    assert (np.diff(pairwise[np.argsort(score)]) >= 0).all()


def test_few_models_are_refused_where_they_do_not_do() -> None:
    target, shadows, _ = simulated(np.random.default_rng(3), 2, 1.0)
    with pytest.raises(ValueError, match="two shadow models"):
        METHODS["lira"].score(target, shadows)
    assert np.isfinite(METHODS["rmia"].score(target, shadows)).all()
    lone = Shadows(shadows.signals, np.zeros_like(shadows.trained_on))
    with pytest.raises(ValueError, match="with and without"):
        METHODS["rmia"].score(target, lone)


@pytest.mark.parametrize("method", METHODS)
def test_models_that_forget_leave_every_attack_at_chance(method: str) -> None:
    """False alarms: |z| > 4.4 once in 90,000 runs under the rank-sum's null, five methods, seed fixed."""
    target, shadows, is_member = simulated(np.random.default_rng(4), 8, 0.0)
    auc = judge(METHODS[method].score(target, shadows), is_member, method=method).auc
    assert abs(auc - 0.5) < 4.4 * math.sqrt((UNITS + 1) / (3 * UNITS**2))


def test_shadow_models_tell_memory_from_ease() -> None:
    target, shadows, is_member = simulated(np.random.default_rng(5), 8, 3.0)
    found = {
        name: judge(method.score(target, shadows), is_member, method=name) for name, method in METHODS.items()
    }
    assert found["loss"].auc < 0.75
    # Two draws differ by 3 beside noise of 1 each, and of 1/8 from the midpoint of two means of four models.
    assert found["lira"].auc == pytest.approx(norm.cdf(3 / math.sqrt(2.25)), abs=0.02)
    assert found["lira_offline"].auc > 0.95
    assert found["rmia"].auc > found["loss"].auc
    assert found["rmia_offline"].auc > found["loss"].auc
