"""Label multisets from the last layer's gradient, and the parts that find them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from attacks import Auxiliary, infer_label_counts
from attacks.counting import EVEN, nearest_counts
from attacks.label_counts import made_up_inputs
from attacks.mean_probabilities import fit_mean_probabilities
from attacks.scoring import psnr


@pytest.mark.parametrize(("model", "count"), [("lenet", 1), ("lenet", 8), ("lenet", 32), ("mlp", 8), ("cnn", 8)])
def test_label_counts_are_exact(lab, model, count):
    place = lab(model)
    for first in (0, 100, 200):
        rows = list(range(first, first + count))
        gradient = place.gradient(place.weights, place.images[rows], place.labels[rows])
        counts = infer_label_counts(place.model, place.weights, gradient, count)
        assert counts.tolist() == np.bincount(place.labels[rows], minlength=10).tolist()


def test_label_counts_of_one_class(lab):
    place = lab("lenet")
    rows = np.flatnonzero(place.labels == 4)[:16]
    gradient = place.gradient(place.weights, place.images[rows], place.labels[rows])
    assert infer_label_counts(place.model, place.weights, gradient, 16)[4] == 16


def test_label_counts_refuse_what_they_cannot(lab):
    place = lab("mlp")
    gradient = np.zeros(place.model.dimension)
    with pytest.raises(ValueError, match="count is 0"):
        infer_label_counts(place.model, place.weights, gradient, 0)
    with pytest.raises(ValueError, match="is zero"):
        infer_label_counts(place.model, place.weights, gradient, 1)
    model = dataclasses.replace(place.model, output_bias=None)
    with pytest.raises(ValueError, match="does not end with a dense layer"):
        infer_label_counts(model, place.weights, gradient, 1)


def test_label_counts_by_auxiliary_examples(lab):
    """Where the made-up inputs are wrong: a trained model is sure of images, and not of noise."""
    place = lab("mlp")
    known = Auxiliary(place.images[1500:], place.labels[1500:])
    weights = place.weights.copy()
    for first in range(300, 1500, 100):
        rows = list(range(first, first + 100))
        weights = weights - 0.5 * place.gradient(weights, place.images[rows], place.labels[rows]).astype(
            np.float32
        )
    right = {True: 0, False: 0}
    for first in range(0, 288, 32):
        rows = list(range(first, first + 32))
        gradient = place.gradient(weights, place.images[rows], place.labels[rows])
        truth = np.bincount(place.labels[rows], minlength=10)
        for auxiliary in (known, None):
            counts = infer_label_counts(place.model, weights, gradient, 32, auxiliary)
            assert counts.sum() == 32
            right[auxiliary is not None] += np.minimum(counts, truth).sum()
    assert right[True] / 288 >= 0.92
    assert right[True] > right[False]


@pytest.mark.parametrize(
    ("inputs", "labels", "reason"),
    [
        (np.zeros((3, 5, 5, 1)), [0, 1, 2], "takes \\[k, 8, 8, 1\\]"),
        (np.zeros((0, 8, 8, 1)), [], "takes"),
        (np.full((1, 8, 8, 1), np.nan), [0], "not all finite"),
        (np.zeros((2, 8, 8, 1)), [0], "one from 0 to 9"),
        (np.zeros((1, 8, 8, 1)), [10], "one from 0 to 9"),
    ],
)
def test_label_counts_refuse_auxiliary_examples_of_another_kind(lab, inputs, labels, reason):
    place = lab("mlp")
    gradient = np.ones(place.model.dimension)
    with pytest.raises(ValueError, match=reason):
        infer_label_counts(place.model, place.weights, gradient, 4, Auxiliary(inputs, np.array(labels, np.int64)))


@pytest.mark.parametrize("classes", [4, 40])
def test_mean_probabilities_of_a_batch_come_from_single_examples(classes):
    """Of 40 classes only the diagonal of the products is used, which tells less."""
    rng = np.random.default_rng(1)
    bias = rng.normal(0, 1, classes)
    logits = bias + 0.3 * rng.normal(0, 1, (4320, classes))
    labels = rng.integers(0, classes, 4320)
    powers = np.exp(logits)
    p = powers / powers.sum(1, keepdims=True)
    errors = p - np.eye(classes)[labels]
    estimate = fit_mean_probabilities(logits[:4000], bias, labels[:4000])
    off, prior = 0.0, 0.0
    for first in range(4000, 4320, 16):
        batch = slice(first, first + 16)
        product = (logits - bias)[batch].T @ errors[batch] / 16
        off += np.sum((estimate(errors[batch].mean(0), product, None) - p[batch].mean(0)) ** 2)
        prior += np.sum((p[:4000].mean(0) - p[batch].mean(0)) ** 2)
    assert off < 0.85 * prior


@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 9, 3), (5, 5), (30,)])
def test_made_up_inputs_are_inputs(shape):
    inputs = made_up_inputs(shape)
    assert inputs.shape[1:] == shape
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    assert psnr(float(inputs.var())) < 20


def test_an_error_of_more_than_half_an_example_is_told_by_its_direction():
    rng = np.random.default_rng(1)
    along = np.array([0.6, -0.5, 0.3, -0.4])
    probabilities = 0.25 + rng.normal(size=(200, 1)) * 0.1 * along
    hardly = 0.25 + rng.normal(size=(200, 1)) * 1e-3 * along
    shares = np.array([3.0, 2, 1, 2]) + 1.3 * along
    assert nearest_counts(shares, 8, probabilities)[0].tolist() == [3, 2, 1, 2]
    rounded = nearest_counts(shares, 8, np.full((5, 4), 0.25))[0].tolist()
    assert rounded != [3, 2, 1, 2]  # nothing varies
    assert nearest_counts(shares, 8, hardly)[0].tolist() == rounded  # such an error would be no error of the mean


@pytest.mark.parametrize("seed", range(20))
def test_nearest_counts_are_nearest_among_those_one_move_away(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(5), 50)
    shares = rng.dirichlet(np.ones(5)) * 9 + rng.normal(0, 0.5, 5)
    shares += (9 - shares.sum()) / 5
    found, unlikely = nearest_counts(shares, 9, probabilities)
    assert found.sum() == 9
    assert found.min() >= 0
    covariance = 81 * np.cov(probabilities.T) + EVEN**2 * np.eye(5)
    metric = np.linalg.inv(covariance)
    others = [found + a - b for a in np.eye(5) for b in np.eye(5) if (found - b).min() >= 0]
    distances = [(n - shares) @ metric @ (n - shares) for n in [found, *others]]
    assert distances[0] <= min(distances) * (1 + 1e-9)
    density = stats.multivariate_normal(shares, covariance).logpdf(found)
    assert unlikely == pytest.approx(-2 * density - 5 * np.log(2 * np.pi), rel=1e-6)
