"""The runner: what it picks, when it looks at the truth, and what it does with faults."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import DenseLayer, GradientMatching, ThreatModel, run_attacks
from attacks.base import Guess
from attacks.runner import choose
from privfed.transcript import Kind, Observer


class _Spy:
    """Guesses grey, and writes down when."""

    name = "spy"
    threat = ThreatModel((Observer.SERVER,), ("nothing",), ("nothing",))

    def __init__(self, log):
        self.log = log

    def invert(self, view, index, rng):
        self.log.append("attack")
        return Guess(np.full((1, 8, 8, 1), 0.5), None, 1.0, 0)


class _Broken(_Spy):
    name = "broken"

    def invert(self, view, index, rng):
        raise ZeroDivisionError("a bug")


@pytest.fixture
def place(lab):
    return lab()


def _run(place, view, attacks, mean_image, **options):
    return run_attacks(view, attacks, place.truth, mean_image, np.random.default_rng(2), **options)


def test_outcomes_carry_what_the_report_needs(place, mean_image):
    view = place.view(place.observe([3]), place.observe([4, 5], round=2))
    first, second = _run(place, view, [DenseLayer()], mean_image)
    assert (first.observer, first.kind, first.round, first.attack) == (
        Observer.SERVER,
        Kind.CLIENT_UPDATE,
        1,
        "dense_layer",
    )
    assert (first.failure, first.examples, first.contributors) == (None, 1, 1.0)
    assert first.best.psnr >= 140
    assert first.best.label_correct
    assert first.scores == (first.best,)
    assert set(first.trivial) == {"black", "grey", "dataset mean"}
    assert first.margin_db == pytest.approx(first.best.psnr - max(first.trivial.values()))
    np.testing.assert_array_equal(first.original, place.images[3])
    np.testing.assert_allclose(first.reconstruction, place.images[3], atol=1e-7)
    assert (second.round, second.examples) == (2, 2)
    assert len(second.scores) > 1


def test_truth_is_asked_for_only_after_all_attacks_have_returned(place, mean_image):
    log = []

    def truth(observation):
        log.append("truth")
        return place.truth(observation)

    view = place.view(place.observe([0]))
    run_attacks(view, [_Spy(log), _Spy(log)], truth, mean_image, np.random.default_rng(0))
    assert log == ["attack", "attack", "truth"]


def test_a_failure_is_an_outcome_and_asks_for_no_truth(place, mean_image):
    def truth(observation):
        raise AssertionError("nothing to score")

    view = place.view(place.observe([0], np.zeros(650)))
    (outcome,) = run_attacks(view, [DenseLayer()], truth, mean_image, np.random.default_rng(0))
    assert "is zero" in outcome.failure
    assert outcome.best is outcome.margin_db is outcome.trivial is outcome.original is None
    assert outcome.scores == ()


def test_an_unexpected_fault_is_not_swallowed(place, mean_image):
    view = place.view(place.observe([0]))
    with pytest.raises(
        RuntimeError, match=r"attack broken broke on observation 0 \(client update, round 1\)"
    ) as info:
        _run(place, view, [_Broken([])], mean_image)
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_attacks_outside_their_threat_model_are_left_out(place, mean_image):
    log = []
    view = place.view(place.observe([0]), observer=Observer.RELEASE)
    assert [o.attack for o in _run(place, view, [_Spy(log), DenseLayer()], mean_image)] == ["dense_layer"]
    assert log == []


def test_same_seed_same_outcomes(lab, mean_image):
    place = lab("mlp")
    view = place.view(*(place.observe([row, row + 1]) for row in range(3)))
    first, second = (_run(place, view, [GradientMatching(30)], mean_image) for _ in range(2))
    assert [o.scores for o in first] == [o.scores for o in second]


def test_another_attack_or_observation_does_not_change_the_outcome(lab, mean_image):
    place = lab("mlp")
    observations = [place.observe([row, row + 1]) for row in range(2)]
    (alone,) = _run(place, place.view(observations[0]), [GradientMatching(30)], mean_image)
    both = _run(place, place.view(*observations), [GradientMatching(30), DenseLayer()], mean_image)
    assert alone.scores == both[0].scores


def test_progress_counts_up_to_the_total(place, mean_image):
    calls = []
    view = place.view(*(place.observe([row]) for row in range(3)))
    outcomes = _run(
        place,
        view,
        [DenseLayer(), _Spy([])],
        mean_image,
        max_observations=2,
        progress=lambda done, total, outcome: calls.append((done, total, outcome)),
    )
    assert [(done, total) for done, total, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [outcome for *_, outcome in calls] == outcomes


def test_an_empty_view_gives_no_outcomes(place, mean_image):
    assert _run(place, place.view(), [DenseLayer()], mean_image) == []


# Which observations are chosen


def _view_of(place, *kinds_and_rounds):
    seen = place.observe([0])
    return place.view(*(dataclasses.replace(seen, kind=kind, round=r) for kind, r in kinds_and_rounds))


def test_choice_spreads_over_kinds(place):
    view = _view_of(place, *[(Kind.MASKED_UPLOAD, 1)] * 9, (Kind.SUM, 1))
    assert choose(view, 2) == [0, 9]
    assert choose(view, 5) == [0, 1, 2, 3, 9]


def test_choice_spreads_over_rounds(place):
    view = _view_of(place, *((Kind.CLIENT_UPDATE, r) for r in range(1, 10) for _ in range(3)))
    rounds = [[view.observations[i].round for i in choose(view, count)] for count in (1, 2, 3, 5, 9)]
    assert rounds == [[1], [1, 9], [1, 5, 9], [1, 3, 5, 7, 9], list(range(1, 10))]


def test_choice_takes_all_when_there_are_few(place):
    view = _view_of(place, (Kind.SUM, 1), (Kind.SUM, 1), (Kind.MASKED_UPLOAD, 2))
    assert choose(view, 99) == [0, 1, 2]


def test_choosing_none_is_refused(place):
    with pytest.raises(ValueError, match="max_observations is 0"):
        choose(place.view(), 0)
