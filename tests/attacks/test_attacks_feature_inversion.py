"""The cut at an inner dense layer, and the images found by the features in front of it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from attacks import Auto, FeatureInversion, attempt
from attacks.inner_dense import find_inner_dense
from attacks.scoring import score
from privfed.models.functional import Model, VariableSpec
from privfed.models.keras import keras_model
from privfed.transcript import Kind

BATCH = [3, 4, 5, 8]


def _run(place, seen, attack=None, seed=0):
    return attempt(attack or FeatureInversion(), place.view(seen), 0, np.random.default_rng(seed))


def _exact(place, seen, found) -> bool:
    assert found.failure is None, found.failure
    scores = score(found.images, found.labels, *place.truth(seen))
    return len(scores) == len(seen.clients) and max(one.mse for one in scores) < 1e-8


def _keras_network(input_shape, classes):
    return tf.keras.Sequential(
        [
            tf.keras.Input(input_shape),
            tf.keras.layers.Conv2D(12, 3, activation="relu"),
            tf.keras.layers.AveragePooling2D(2, 1),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dense(classes),
        ]
    )


def _tied(input_shape, classes):
    """A model that uses its dense kernel twice, so that its gradient is not of one product."""

    def logits(weights, x):
        h = tf.tanh(tf.reshape(x, [-1, 4]) * weights[0])
        h = tf.tanh(tf.matmul(h, weights[1]) + weights[2])
        return tf.matmul(h, weights[1]) + weights[3]

    shapes = {"scale": (4,), "kernel": (4, 4), "bias": (4,), "last": (4,)}
    specs = tuple(VariableSpec(name, shape) for name, shape in shapes.items())
    return Model(
        "tied", input_shape, classes, specs, logits, lambda rng: [rng.normal(size=s.shape) for s in specs]
    )


@pytest.fixture
def keras_place(lab, monkeypatch):
    monkeypatch.setattr(f"{__name__}.keras_network", _keras_network, raising=False)
    model = keras_model(f"{__name__}:keras_network", (8, 8, 1), 10)
    return dataclasses.replace(lab("cnn"), model=model, weights=model.initial_vector(0))


def _both_parts_make_the_model(model, weights, images):
    cut = find_inner_dense(model)
    values = [tf.constant(part, tf.float64) for part in model.unflatten(weights.astype(np.float64))]
    features = cut.front(values, tf.constant(images))
    again = cut.tail.logits([values[i] for i in cut.indices], features)
    np.testing.assert_allclose(again, model.logits(values, tf.constant(images)), rtol=1e-12)
    assert features.shape == (len(images), cut.features)
    return cut


def test_front_and_tail_make_the_model(lab):
    place = lab("cnn")
    cut = _both_parts_make_the_model(place.model, place.weights, place.images[:3])
    assert (cut.features, cut.indices) == (256, (4, 5, 6, 7))
    assert (cut.tail.dense_input, cut.tail.output_bias) == ((0, 1), 3)
    assert [v.shape for v in cut.tail.variables] == [v.shape for v in place.model.variables[4:]]
    assert cut.tail.initial_vector(0).shape == (cut.tail.dimension,)


def test_the_tail_is_observed_as_its_gradient_says(lab):
    place = lab("cnn")
    cut = find_inner_dense(place.model)
    seen = place.observe([3])
    behind = cut.behind(place.model, seen)
    start = cut.tail.unflatten(behind.weights)
    np.testing.assert_array_equal(start[0], place.model.unflatten(place.weights)[4])
    np.testing.assert_array_equal(cut.tail.unflatten(behind.vector)[1], place.model.unflatten(seen.vector)[5])


def test_the_last_layer_is_one_too(lab):
    place = lab("lenet")
    cut = _both_parts_make_the_model(place.model, place.weights, place.images[:2])
    assert cut.indices == (6, 7)


@pytest.mark.parametrize("name", ["mlp", "softmax", "transformer"])
def test_no_cut_where_nothing_is_in_front(lab, name):
    assert find_inner_dense(lab(name).model) is None


def test_no_cut_at_a_kernel_that_is_used_twice():
    assert find_inner_dense(_tied((2, 2), 4)) is None


@pytest.mark.parametrize("rows", [[3], BATCH])
def test_exact_through_pooling_and_relu(lab, rows):
    place = lab("cnn")
    seen = place.observe(rows)
    found = _run(place, seen)
    assert _exact(place, seen, found)
    assert found.residual < 1e-3
    if len(rows) > 1:
        assert sorted(found.labels) == sorted(place.labels[rows])


def test_exact_on_a_clipped_sum_of_clients(lab):
    place = lab("cnn")
    total = 0.2 * place.update(BATCH[:2]) + 0.9 * place.update(BATCH[2:])
    seen = place.observe(BATCH, total, kind=Kind.SUM, contributors=2.0)
    assert _exact(place, seen, _run(place, seen))


def test_exact_on_a_network_of_keras(keras_place):
    _both_parts_make_the_model(keras_place.model, keras_place.weights, keras_place.images[:3])
    seen = keras_place.observe(BATCH[:2])
    assert _exact(keras_place, seen, _run(keras_place, seen))


def test_auto_verifies_it(lab):
    place = lab("cnn")
    seen = place.observe(BATCH)
    found = _run(place, seen, Auto(iterations=5))
    assert (found.fired, found.verified) == ("feature_inversion", True)
    assert _exact(place, seen, found)


def test_a_search_that_stops_early_does_not_vouch_for_itself(lab):
    place = lab("cnn")
    seen = place.observe([3])
    found = _run(place, seen, FeatureInversion(iterations=2, starts=1))
    assert not _exact(place, seen, found)
    assert found.residual > 0.05


@pytest.mark.parametrize(
    ("bias", "reason"),
    [(-0.35, "other images would look the same"), (-50.0, "the singular values .* have no gap")],
)
def test_what_units_that_are_off_leave_open_is_not_made_up(lab, bias, reason):
    place = lab("cnn")
    weights = [part.copy() for part in place.model.unflatten(place.weights)]
    weights[1] += bias
    weights[5] += 1.0
    place = dataclasses.replace(place, weights=place.model.flatten(weights))
    seen = place.observe([3])
    assert re.search(reason, _run(place, seen).failure)
    assert _run(place, seen, Auto(iterations=5)).verified is not True


def test_several_local_steps_are_not_vouched_for(lab):
    place = lab("cnn", local_epochs=5)
    seen = place.observe([3])
    found = _run(place, seen, FeatureInversion(starts=1))
    assert found.failure is not None or found.residual > 1e-3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lenet", r"48 features .* too few to tell images of 64 pixels apart"),
        ("mlp", r"no dense layer with a bias behind other layers"),
    ],
)
def test_says_which_models_it_does_not_suit(lab, name, reason):
    place = lab(name)
    found = _run(place, place.observe([3]))
    assert found.failure is not None
    assert re.search(reason, found.failure)


def test_says_no_to_noise(lab):
    place = lab("cnn")
    update = place.update([3])
    stddev = float(np.linalg.norm(update)) / 100
    noisy = update + np.random.default_rng(0).normal(0, stddev, update.size)
    found = _run(place, place.observe([3], noisy, noise_stddev=stddev))
    assert "no gap" in found.failure
