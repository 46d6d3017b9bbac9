"""Labels counted from recorded vectors: clipped, noised, summed, of several steps, and what they are scored by."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import Auxiliary, LabelInference, attempt, infer_label_counts, infer_labels, run_attacks
from attacks.counting import Counting, softmax
from attacks.gradient import estimate_gradient, may_be_clipped
from attacks.label_inference import examples_behind
from attacks.label_scoring import score_labels
from privfed.transcript import Kind, Observer


def counted(place, seen, **changes):
    view = dataclasses.replace(place.view(seen), **changes)
    found = attempt(LabelInference(), view, 0, np.random.default_rng(0))
    assert found.failure is None
    assert len(found.images) == 0
    return np.bincount(found.labels, minlength=place.model.classes)


def counts(place, rows):
    return np.bincount(place.labels[list(rows)], minlength=place.model.classes)


def overlap(one, two):
    return np.minimum(one / one.sum(), two / two.sum()).sum()


@pytest.mark.parametrize("model", ["softmax", "mlp", "lenet", "cnn"])
def test_labels_of_one_step(lab, model):
    place = lab(model)
    for first in (0, 100, 200):
        rows = range(first, first + 8)
        assert counted(place, place.observe(rows)).tolist() == counts(place, rows).tolist()


@pytest.mark.parametrize(("model", "greedily"), [("softmax", 25), ("mlp", 20), ("lenet", 10)])
def test_clipping_hides_no_labels(lab, model, greedily):
    """What LLG (``infer_labels``) gets from the same bias; even probabilities, the softmax's, suit it."""
    place, right, greedy = lab(model, clip_norm=1e-3), 0, 0
    for first in range(0, 200, 8):
        rows = range(first, first + 8)
        update = place.update(rows)
        seen = place.observe(rows, update * 1e-3 / np.linalg.norm(update))
        truth = counts(place, rows)
        right += (counted(place, seen) == truth).all()
        theirs = infer_labels(-place.model.unflatten(seen.vector)[-1].astype(np.float64), 8)
        greedy += (np.bincount(theirs, minlength=10) == truth).all()
    assert right >= 23
    assert greedy <= greedily


def test_rounding_to_coarse_fixed_point_does_not_make_a_clipped_update_look_whole(lab):
    """Before it is rounded an update is clipped to less, so that rounding does not take it beyond the bound."""
    place, rng, right = lab("mlp", clip_norm=0.1, mode="ring"), np.random.default_rng(0), 0
    for first in range(0, 80, 8):
        rows = range(first, first + 8)
        update, step = place.update(rows), 1e-5
        bound = 0.1 - step * update.size**0.5
        steps = update * bound / np.linalg.norm(update) / step
        rounded = step * (np.floor(steps) + (rng.random(steps.shape) < steps - np.floor(steps)))
        assert np.linalg.norm(rounded) < 0.0995
        assert may_be_clipped(rounded, place.plan)
        assert not estimate_gradient(place.observe(rows, rounded), place.plan).scale_known
        right += (counted(place, place.observe(rows, rounded)) == counts(place, rows)).all()
    assert right >= 9
    assert not may_be_clipped(place.update(range(8)), dataclasses.replace(place.plan, clip_norm=10.0))
    assert not may_be_clipped(np.round(rounded / 4, 6), place.plan)  # rounded too, and far from the bound


def test_a_sum_of_clients_and_several_steps_blur_them(lab):
    place, rng = lab("mlp", local_epochs=5, batch_size=4, examples=16), np.random.default_rng(0)
    several = []
    for _ in range(20):
        rows = rng.choice(1000, 16, replace=False).tolist()
        several.append(overlap(counted(place, place.observe(rows)), counts(place, rows)))
    assert np.mean(several) >= 0.8
    place = lab("mlp")
    parts = [range(first, first + 8) for first in (300, 400, 500, 600)]
    rows = [row for part in parts for row in part]
    summed = place.observe(rows, sum(place.update(p) for p in parts), kind=Kind.SUM, contributors=4.0)
    assert overlap(counted(place, summed), counts(place, rows)) >= 0.9


def test_noise_that_is_known_is_reckoned_with(lab):
    """At each scale of noise on average no worse than all labels alike, which is what it is pulled towards."""
    place, rng = lab("mlp"), np.random.default_rng(1)
    better = []
    for stddev in (1e-4, 1e-3, 1e-2, 1e-1):
        margins = []
        for first in range(0, 240, 8):
            rows = range(first, first + 8)
            noised = place.update(rows) + rng.normal(0, stddev, place.model.dimension)
            seen, truth = place.observe(rows, noised, noise_stddev=stddev), counts(place, rows)
            found = attempt(LabelInference(), place.view(seen), 0, rng)
            if found.failure is None:
                labels = np.bincount(found.labels, minlength=10)
                margins.append(overlap(labels, truth) - overlap(np.ones(10), truth))
        better.append(np.mean(margins) if len(margins) > 10 else 0.0)
    assert better[0] > 0.3
    assert better == sorted(better, reverse=True)
    assert better[-1] > -0.1


def test_noise_alone_is_told_from_a_gradient(lab):
    """At a false-alarm rate of 1e-3: of 500 vectors of noise three or more would be, with a chance of 1.4 %."""
    place, rng = lab("softmax"), np.random.default_rng(3)
    passed = 0
    for _ in range(500):
        noise = rng.normal(0, 0.5, place.model.dimension)
        seen = place.observe([1], noise, noise_stddev=0.5)
        found = attempt(LabelInference(), place.view(seen), 0, rng)
        passed += found.failure is None
    assert passed <= 2


def test_what_it_declines_it_declines_in_words(lab):
    place = lab("mlp")
    rng = np.random.default_rng(0)

    def words(seen, model=place.model):
        view = dataclasses.replace(place.view(seen), model=model)
        return str(attempt(LabelInference(), view, 0, rng).failure)

    assert "mask made the vector uniform" in words(place.observe([1], kind=Kind.MASKED_UPLOAD))
    still = place.update([1])
    still[-10:] = 0
    assert "last bias did not move" in words(place.observe([1], still))
    assert "does not end with a dense layer" in words(
        place.observe([1]), dataclasses.replace(place.model, output_bias=None)
    )
    assert "counted up to" in words(place.observe([1], kind=Kind.SUM, contributors=1e6))


@pytest.mark.parametrize(
    ("plan", "contributors", "examples"),
    [
        ({"batch_size": 8}, 1.0, 8),
        ({"batch_size": 8, "examples": 3.0}, 1.0, 3),
        ({"batch_size": 8, "examples": 3.0}, 4.0, 12),
        ({"batch_size": 8, "examples": 20.0, "local_steps": 5}, 1.0, 20),
        ({"batch_size": 8, "examples": 60.0, "local_steps": 5}, 1.0, 40),
        ({"batch_size": 8, "local_steps": 5}, 1.0, 40),
        ({"batch_size": 8, "examples": 3.0, "local_steps": 5}, 1.0, 3),
        ({"batch_size": 8, "examples": 20.0, "weighted": True}, 0.25, 5),
        ({"batch_size": 8, "examples": 0.1}, 1.0, 1),
    ],
)
def test_examples_behind_a_vector_follow_from_the_plan(lab, plan, contributors, examples):
    place = lab("mlp", **plan)
    assert examples_behind(place.observe([1], contributors=contributors), place.plan) == examples


def test_examples_of_its_own_help_on_a_trained_model(lab):
    place = lab("mlp")
    weights = place.weights.copy()
    for first in range(300, 1500, 100):
        rows = list(range(first, first + 100))
        step = place.gradient(weights, place.images[rows], place.labels[rows])
        weights = weights - 0.5 * step.astype(np.float32)
    place = dataclasses.replace(place, weights=weights)
    known, right = Auxiliary(place.images[1500:], place.labels[1500:]), {True: 0.0, False: 0.0}
    for first in range(0, 240, 8):
        rows = range(first, first + 8)
        for auxiliary in (known, None):
            found = counted(place, place.observe(rows), auxiliary=auxiliary)
            right[auxiliary is not None] += overlap(found, counts(place, rows)) / 30
    assert right[True] >= 0.9
    assert right[True] > right[False]
    view = dataclasses.replace(place.view(place.observe([1])), auxiliary=known)
    found = attempt(LabelInference(), view, 0, np.random.default_rng(0))
    assert any("297 labelled examples" in words for words in found.assumed)


def test_many_examples_are_counted_in_time(lab):
    """Of a sum over a thousand clients, with noise a thousand times what is left of the signal."""
    place, rng = lab("softmax", clip_norm=1.0), np.random.default_rng(0)
    seen = place.observe([1], rng.normal(0, 1e3, place.model.dimension), kind=Kind.SUM, contributors=1000.0)
    assert counted(place, seen).sum() == 8000


def test_of_very_many_classes_an_unknown_scale_is_left_to_the_greedy_rule(lab):
    rng = np.random.default_rng(0)
    place = lab("softmax")
    from privfed.models.zoo import ZOO

    model = ZOO["softmax"]((8, 8, 1), 40)
    weights = model.initial_vector(0)
    labels = np.repeat([3, 17, 39], 2)
    p = softmax(rng.normal(0, 0.1, (6, 40)))
    errors = p - np.eye(40)[labels]
    gradient = np.concatenate([(place.images[:6].reshape(6, -1).T @ errors / 6).ravel(), errors.mean(0)])
    found = infer_label_counts(model, weights, gradient * 7, 6, scale=(0, np.inf))
    assert found.sum() == 6
    assert set(np.flatnonzero(found)) == {3, 17, 39}


def test_the_scale_is_found_where_counts_are_whole():
    """By a naive twin: every scale on a fine grid, and the likelihood of each as it stands."""
    rng = np.random.default_rng(4)
    bias, kernel = np.zeros(5), rng.normal(0, 0.3, (7, 5))
    logits = rng.normal(0, 0.2, (200, 5))
    counting = Counting.of(logits, None, kernel, bias, 6)
    labels = np.array([0, 0, 2, 3, 3, 3])
    batch = rng.normal(0, 0.2, (6, 5))
    errors = softmax(batch) - np.eye(5)[labels]
    error, product = errors.mean(0), batch.T @ errors / 6
    for scale in (1e-3, 1.0, 40.0):
        found = counting.of_any_scale(scale * error, scale * product, 0.0)
        assert found.tolist() == [2, 0, 1, 3, 0]
    grid = np.geomspace(0.3, 8, 2000)
    costs = [counting(error / s, product / s, 0.0)[1] + 8 * np.log(s) for s in grid]
    best = counting(error / grid[np.argmin(costs)], product / grid[np.argmin(costs)], 0.0)[0]
    assert best.tolist() == [2, 0, 1, 3, 0]


def test_scores_are_shares_beside_guesses():
    scores = score_labels(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1, 0, 0, 1, 3]), 4, np.array([0, 0, 0, 1]))
    assert scores.overlap == pytest.approx(0.5 + 0.25)
    assert not scores.exact
    assert scores.occurring == pytest.approx(2 * 2 / 6)
    assert scores.trivial == pytest.approx({"all alike": 0.25 + 0.25 + 0.125, "held-out labels": 0.5 + 0.25})
    assert (scores.found, scores.true) == ((2, 1, 1, 0), (4, 3, 0, 1))
    same = score_labels(np.array([1, 2]), np.array([2, 1, 1, 2]), 3, None)
    assert same.exact
    assert same.overlap == same.occurring == 1
    assert set(same.trivial) == {"all alike"}


def test_an_outcome_has_scores_of_labels_and_none_of_images(lab, mean_image):
    place = lab("mlp")
    (outcome,) = run_attacks(
        place.view(place.observe(range(8))),
        [LabelInference()],
        place.truth,
        mean_image,
        np.random.default_rng(0),
        public_labels=place.labels[1000:],
    )
    assert outcome.observer is Observer.SERVER
    assert outcome.labels.exact
    assert set(outcome.labels.trivial) == {"all alike", "held-out labels"}
    assert (outcome.best, outcome.scores, outcome.original, outcome.text) == (None, (), None, None)
