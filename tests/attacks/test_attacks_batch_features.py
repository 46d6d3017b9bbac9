"""Features of a batch from the last layer's gradient: exact where it tells the examples apart, or none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from attacks.batch_features import split_features


def _truth(place, rows):
    """The input of the last layer, as the gradient of one class's logit by its kernel: ``[batch, features]``."""
    variables = [tf.constant(part) for part in place.model.unflatten(place.weights.astype(np.float64))]
    found = []
    for row in rows:
        with tf.GradientTape() as tape:
            tape.watch(variables[-2])
            logit = place.model.logits(variables, tf.constant(place.images[[row]]))[0, 0]
        found.append(tape.gradient(logit, variables[-2]).numpy()[:, 0])
    return np.stack(found)


def _gradient(place, rows):
    return place.gradient(place.weights, place.images[rows], place.labels[rows])


@pytest.mark.parametrize("name", ["lenet", "mlp"])
@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 3], [3, 13, 23, 5]], ids=str)
def test_each_examples_features_come_out(lab, name, rows):
    place = lab(name)
    rows = sorted(rows, key=lambda row: place.labels[row])
    found = split_features(
        place.model,
        place.weights.astype(np.float64),
        _gradient(place, rows),
        place.labels[rows],
        np.random.default_rng(0),
    )
    truth = _truth(place, rows)
    # Examples of one label may come in any order.
    apart = np.linalg.norm(found.features[:, None] - truth[None], axis=2) / np.linalg.norm(truth, axis=1)
    assert sorted(apart.argmin(axis=1)) == list(range(len(rows)))
    assert apart.min(axis=1).max() < 1e-3
    assert found.misfit < 1e-9
    np.testing.assert_allclose(
        found.features.T @ found.errors / len(rows), place.model.unflatten(_gradient(place, rows))[-2], atol=1e-9
    )


def test_silent_where_the_layer_cannot_tell(lab):
    place = lab("lenet")
    weights, rng = place.weights.astype(np.float64), np.random.default_rng(0)
    twice = [4, 4]
    assert split_features(place.model, weights, _gradient(place, twice), place.labels[twice], rng) is None
    many = list(range(10))
    assert split_features(place.model, weights, _gradient(place, many), place.labels[many], rng) is None
    one = [3]
    assert split_features(place.model, weights, _gradient(place, one), place.labels[one], rng) is None
    open_end = replace(place.model, output_bias=None)
    assert split_features(open_end, weights, _gradient(place, [0, 1]), place.labels[[0, 1]], rng) is None
