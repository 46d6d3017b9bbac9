"""Reconstruction through simulated local training, held to real local training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from attacks import GradientMatching, LocalTraining, attempt
from attacks.local_training import _matched, training_loss
from privfed.transcript import Kind


def test_the_simulation_is_the_client_s_training(lab):
    """At the true images in the true order the loss is that of rounding alone, and in another it is not."""
    place = lab("lenet", local_epochs=2, batch_size=2)
    rows = [0, 1, 2]
    update, images = place.update(rows), place.images[rows].reshape(3, -1)
    graph = training_loss(place.model, 2)
    weights = place.weights.astype(np.float64)

    def loss(order):
        arrangement = tf.constant([order, order]), tf.constant(place.labels[rows][np.array([order, order])])
        numbers = (0.1, 1.0, place.plan.learning_rate, weights, update, np.ones_like(update))
        return float(graph(tf.constant(images), *arrangement, *(tf.constant(n, tf.float64) for n in numbers))[0])

    assert loss([0, 1, 2]) < 1e-20
    assert loss([1, 0, 2]) < 1e-20  # within a batch the order does not matter
    assert loss([2, 1, 0]) > 1e-6


def test_epochs_are_matched_image_by_image_within_labels():
    first = np.random.default_rng(0).uniform(size=(4, 9))
    order = np.array([2, 0, 3, 1])
    labels = np.array([5, 5, 1, 2])
    found = _matched(np.stack([first, first[order] + 0.01]), np.stack([labels, labels[order]]))
    np.testing.assert_array_equal(found, [[0, 1, 2, 3], order])


@pytest.mark.parametrize(
    ("plan", "seen", "reason"),
    [
        ({}, {"kind": Kind.SUM, "contributors": 2.0}, "sum of updates"),
        ({"momentum": 0.9}, {}, "momentum"),
        ({"proximal": 0.1}, {}, "proximal"),
        ({"local_steps": 3}, {}, "counts local steps"),
        ({}, {"rate_factor": None}, "learning rate"),
        ({"local_epochs": 65}, {}, "65 steps"),
    ],
)
def test_what_cannot_be_simulated_is_declined(lab, plan, seen, reason):
    simple = lab()
    place = dataclasses.replace(simple, plan=dataclasses.replace(simple.plan, **plan))
    observation = place.observe([0], simple.update([0]), **seen)
    found = attempt(LocalTraining(), place.view(observation), 0, np.random.default_rng(0))
    assert reason in str(found.failure)


@pytest.mark.parametrize("what", ["iterations", "examples", "starts"])
def test_nothing_to_do_is_refused(what):
    with pytest.raises(ValueError, match=f"{what} is 0"):
        LocalTraining(**{what: 0})


@pytest.mark.slow
def test_local_epochs_hide_less_than_the_one_step_attack_says(lab):
    """Two examples, three epochs of single steps at a high rate: better than taking it all for one step."""
    place = lab("lenet", local_epochs=3, batch_size=1, learning_rate=0.3)
    errors = []
    for attack in (LocalTraining(iterations=200, examples=2), GradientMatching(iterations=400, batch=2)):
        worst = []
        for rows in ([0, 1], [2, 3], [4, 5]):
            found = attempt(attack, place.view(place.observe(rows)), 0, np.random.default_rng(0))
            assert sorted(found.labels) == sorted(place.labels[rows])
            truth = place.images[rows]
            pairs = (found.images, found.images[::-1])
            worst.append(min(float(np.mean((pair - truth) ** 2)) for pair in pairs))
        errors.append(float(np.median(worst)))
    assert errors[0] < 1e-3
    assert errors[0] < 0.1 * errors[1]
