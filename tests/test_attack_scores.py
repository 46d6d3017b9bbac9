"""What outcomes come to over many targets."""

from __future__ import annotations

import pytest

from attacks import AttackOutcome, Scores
from attacks.label_scoring import LabelScores
from attacks.text_scoring import TextScores
from privfed.attack_scores import mean, outcome_values, share, summarise
from privfed.transcript import Kind, Observer

WHO = (Observer.SERVER, Kind.CLIENT_UPDATE, 1, 1.0, "auto")


def _found(mse, identified):
    best = Scores(0, mse, 90.0, None, None)
    return AttackOutcome(
        *WHO, None, 0.1, 5, 0.0, 2, best, (best,), {"black": 10.0, "grey": 12.0}, 78.0, identified=identified
    )


FAILED = AttackOutcome(*WHO, "no way in", 0.1, 0, float("nan"))


def test_wilson_s_interval_is_the_known_one():
    # Newcombe 1998, table I: 81 of 263.
    assert share(81, 263) == pytest.approx({"value": 81 / 263, "low": 0.2553, "high": 0.3662}, abs=5e-5)
    assert share(0, 20)["low"] == pytest.approx(0, abs=1e-12)


def test_mean_has_student_s_interval():
    found = mean([1.0, 2.0, 3.0])
    assert found == pytest.approx(
        {"value": 2.0, "low": 2 - 4.3027 / 3**0.5, "high": 2 + 4.3027 / 3**0.5}, abs=1e-3
    )
    assert mean([4.0]) == {"value": 4.0, "low": None, "high": None}
    assert mean([]) is None


def test_failures_count_against_the_shares():
    rows = [outcome_values(o) for o in (_found(1e-12, True), _found(1e-7, False), FAILED, FAILED)]
    assert [row["exact"] for row in rows] == [True, False, False, False]
    assert rows[0]["exact_examples"] == 0.5
    assert rows[2]["residual"] is None
    (summary,) = summarise(rows)
    assert (summary["targets"], summary["failed"]) == (4, 2)
    assert summary["exact"]["value"] == 0.25
    assert summary["identified"]["value"] == 0.25
    assert summary["trivial_psnr"]["value"] == 12.0


def test_labels_have_their_own_scores():
    def outcome(overlap, exact):
        scores = LabelScores(overlap, exact, 1.0, {"all alike": 0.5, "held-out labels": 0.6}, (1, 1), (1, 1))
        return AttackOutcome(*WHO, None, 0.1, 0, 0.0, 2, labels=scores)

    rows = [outcome_values(o) for o in (outcome(1.0, True), outcome(0.8, False), FAILED)]
    assert rows[0]["labels"]["found"] == (1, 1)
    (summary,) = summarise(rows)
    assert summary["exact"] is None
    labels = summary["labels"]
    assert labels["overlap"] == pytest.approx({"value": 0.9, "low": 0.0, "high": 1.0})  # of two values: wider
    assert labels["trivial"]["value"] == pytest.approx(0.6)
    assert labels["exact"]["value"] == pytest.approx(1 / 3)
    del rows[0]["labels"], rows[1]["labels"], rows[2]["labels"]  # as rows were before
    assert summarise(rows)[0]["labels"] is None


def test_text_has_its_own_scores():
    text = TextScores(1.0, 0.5, 0.0, 0.9, 0.8, 0.7)
    rows = [outcome_values(AttackOutcome(*WHO, None, 0.1, 5, 0.0, 2, text=text))]
    assert rows[0]["text"]["rouge_l"] == 0.7
    (summary,) = summarise(rows)
    assert summary["exact"] is None
    assert summary["text"]["token_set"]["value"] == 1.0
