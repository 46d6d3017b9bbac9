"""The exact attacks on real updates, their parts on known answers, and their honest failures."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from attacks import RecursiveAnalytic, SparseDecomposition, attempt
from attacks.conv_chain import find_chain, find_smooth_chain, forward
from attacks.first_layer import input_gradients, relu_follows
from attacks.layer_factors import factorise
from attacks.pixels import on_grid, snap
from attacks.scoring import score
from attacks.sparse_decomposition import STALLED
from privfed.models.functional import Model, VariableSpec
from privfed.models.zoo import ZOO
from privfed.transcript import Kind


def _invert(attack, place, seen, seed=0):
    return attempt(attack, place.view(seen), 0, np.random.default_rng(seed))


def _scores(place, found, rows):
    assert found.failure is None
    assert len(found.images) == len(rows)
    return score(found.images, found.labels, place.images[rows], place.labels[rows])


def _exact(place, found, rows):
    scores = _scores(place, found, rows)
    return min(s.psnr for s in scores) >= 140 and all(s.label_correct for s in scores)


# Pixels


def test_bytes_with_small_errors_become_bytes():
    image = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 1)) / 255
    noised = image + np.random.default_rng(1).normal(0, 1e-5, image.shape)
    np.testing.assert_array_equal(snap(noised), image)


def test_what_is_no_byte_is_only_clipped():
    image = np.random.default_rng(0).uniform(-0.2, 1.2, (3, 6, 6, 1))
    np.testing.assert_array_equal(snap(image), np.clip(image, 0, 1))
    assert not on_grid(image).any()


def test_each_image_is_judged_alone():
    images = np.stack([np.full(50, 100 / 255), np.full(50, 100.4 / 255)]) + 1e-6
    assert on_grid(images).tolist() == [True, False]


# The rank of a gradient


def _low_rank(rank, noise, rows=60, columns=80, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((rows, rank)) @ rng.normal(size=(rank, columns)) + rng.normal(0, noise, (rows, columns))


@pytest.mark.parametrize("rank", [1, 2, 7, 20])
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-5])
def test_factors_have_the_gradient_s_rank_and_noise(rank, noise):
    gradient = _low_rank(rank, noise)
    factors = factorise(gradient)
    assert factors.rank == rank
    np.testing.assert_allclose(
        (factors.left * factors.values) @ factors.right.T, gradient, atol=20 * noise + 1e-10
    )
    if noise:
        assert factors.noise == pytest.approx(noise, rel=0.3)


def test_units_and_pixels_without_gradient_are_no_gap():
    """Rounding that spares them would else make a wider gap behind all others than behind the examples."""
    gradient = _low_rank(3, 1e-6)
    gradient[:25] = 0
    gradient[:, :30] = 0
    factors = factorise(gradient)
    assert factors.rank == 3
    assert not factors.left[:25].any()
    assert not factors.right[:30].any()


@pytest.mark.parametrize("gradient", [_low_rank(60, 0.0), _low_rank(3, 1.0), np.zeros((5, 4)), np.zeros((5, 0))])
def test_no_gap_no_rank(gradient):
    assert factorise(gradient) is None


def test_noise_that_is_known_hides_a_gap_within_it():
    gradient = _low_rank(3, 1e-9)
    assert factorise(gradient, known_noise=10.0) is None


# What follows the first layer


@pytest.mark.parametrize(
    ("model", "activation", "follows"),
    [("mlp", "relu", True), ("mlp", "tanh", False), ("mlp", "sigmoid", False), ("softmax", None, False)],
)
def test_relu_is_told_by_its_zeros(model, activation, follows):
    options = {} if activation is None else {"activation": activation}
    assert relu_follows(ZOO[model]((8, 8, 1), 10, **options)) is follows


def test_relu_needs_a_first_layer():
    with pytest.raises(ValueError, match="no dense layer"):
        relu_follows(ZOO["lenet"]((8, 8, 1), 10))


def test_input_gradients_are_the_kernel_times_the_units_gradient(lab):
    place = lab("mlp")
    every = input_gradients(place.model, place.weights, place.images[:2])
    for row, label in ((0, 3), (1, 7)):
        gradient = place.model.unflatten(place.gradient(place.weights, place.images[[row]], np.array([label])))
        kernel = place.model.unflatten(place.weights.astype(np.float64))[0]
        np.testing.assert_allclose(every[label, row], kernel @ gradient[1], atol=1e-12)


def test_very_many_classes_are_not_gone_through():
    model = ZOO["mlp"]((8, 8, 1), 101)
    assert input_gradients(model, model.initial_vector(0), np.zeros((1, 8, 8, 1))) is None


# Sparse decomposition


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_whole_batches_are_exact(lab, count):
    place = lab("mlp")
    for first in (0, 20, 40):
        rows = list(range(first, first + count))
        found = _invert(SparseDecomposition(), place, place.observe(rows), first)
        assert _exact(place, found, rows)
        assert found.residual < 1e-6


def test_single_precision_and_clipping_do_not_hinder(lab):
    place = lab("mlp", clip_norm=1e-2)
    rows = [1, 2, 3, 4]
    update = place.update(rows)
    update = (update * 1e-2 / np.linalg.norm(update)).astype(np.float32).astype(np.float64)
    scores = _scores(place, _invert(SparseDecomposition(), place, place.observe(rows, update)), rows)
    assert min(s.psnr for s in scores) > 100
    assert all(s.label_correct for s in scores)


def test_local_epochs(lab):
    place = lab("mlp", local_epochs=10)
    rows = [0, 1, 2, 3]
    assert _exact(place, _invert(SparseDecomposition(), place, place.observe(rows)), rows)


def test_the_sum_over_a_cohort_is_no_protection(lab):
    """Secure aggregation of four clients with two images each: one layer gives all eight away."""
    place = lab("mlp")
    rows = list(range(8))
    total = sum(place.update(rows[i : i + 2]) for i in range(0, 8, 2))
    seen = place.observe(rows, total, kind=Kind.SUM, contributors=4.0)
    assert _exact(place, _invert(SparseDecomposition(), place, seen), rows)


def test_an_example_twice_is_found_once(lab):
    place = lab("mlp")
    found = _invert(SparseDecomposition(), place, place.observe([0, 1, 1]))
    assert len(found.images) == 2
    assert _exact(place, found, [0, 1])


def test_labels_do_not_need_the_output_bias(lab):
    place = lab("mlp")
    place = dataclasses.replace(place, model=dataclasses.replace(place.model, output_bias=None))
    assert _exact(place, _invert(SparseDecomposition(), place, place.observe([5, 6])), [5, 6])


@pytest.mark.parametrize(
    ("model", "rows", "reason"),
    [
        ("lenet", [0], "no dense layer on its raw input"),
        ("softmax", [0, 1, 2], "no ReLU follows"),
        ("mlp", list(range(100)), "no gap|too many|were found|the most tried"),
    ],
)
def test_what_it_cannot_do_it_says(lab, model, rows, reason):
    place = lab(model, batch_size=100)
    found = _invert(SparseDecomposition(rounds=3), place, place.observe(rows))
    assert found.failure is not None
    assert re.search(reason, found.failure)


def test_a_search_at_a_standstill_is_given_up(lab, monkeypatch):
    """Some examples' zeros found, and round after round no others."""

    def stuck(search, rng):
        search.found, search.calls = min(2, getattr(search, "calls", 0)), getattr(search, "calls", 0) + 1

    monkeypatch.setattr("attacks.sparse_decomposition.Search.advance", stuck)
    place = lab("mlp")
    found = _invert(SparseDecomposition(), place, place.observe([0, 1, 2, 3]))
    # The second one is found in the third round.
    assert found.failure == f"2 of 4 examples' zeros were found in {3 + STALLED} rounds"


def test_noise_is_a_reason(lab):
    place = lab("mlp")
    update = place.update([0, 1, 2])
    noise = 0.1 * np.abs(update).max()
    vector = update + np.random.default_rng(0).normal(0, noise, update.shape)
    found = _invert(SparseDecomposition(), place, place.observe([0, 1, 2], vector, noise_stddev=noise))
    assert "no gap" in found.failure


def test_weights_that_are_not_the_update_s_contradict_it(lab):
    """The decomposition itself needs no weights: that they do not fit its answer must be said."""
    place = lab("mlp")
    seen = place.observe([0, 1, 2], weights=place.model.initial_vector(99))
    found = _invert(SparseDecomposition(rounds=5), place, seen)
    assert "contradicts" in found.failure or "were found" in found.failure


# Recursive analytic


def test_chain_of_the_lenet():
    chain = find_chain(ZOO["lenet"]((28, 28, 1), 10))
    assert [c.stride for c in chain.convolutions] == [2, 2, 1]
    assert [c.padding for c in chain.convolutions] == [(2, 2)] * 3
    assert chain.activation.name == "sigmoid"
    for name in ("tanh", "relu"):
        assert find_chain(ZOO["lenet"]((8, 8, 1), 10, activation=name)).activation.name == name


def test_chain_with_kinks_is_none_that_a_search_starts_anywhere_on():
    smooth, kinked = (ZOO["lenet"]((8, 8, 1), 10, activation=name) for name in ("tanh", "relu"))
    assert find_smooth_chain(smooth) is find_chain(smooth)
    assert find_smooth_chain(kinked) is None


@pytest.mark.parametrize("name", ["softmax", "mlp", "cnn"])
def test_other_models_are_no_chain(name):
    assert find_chain(ZOO[name]((8, 8, 1), 10)) is None


def _strided_same(stride, kernel):
    """A convolution with TensorFlow's own padding, lopsided at even strides, on an oblong input."""
    side = (-(-9 // stride), -(-6 // stride))
    specs = (
        VariableSpec("k", (kernel, kernel, 2, 5)),
        VariableSpec("b", (5,)),
        VariableSpec("w", (side[0] * side[1] * 5, 4)),
        VariableSpec("c", (4,)),
    )

    def logits(weights, x):
        h = tf.tanh(tf.nn.conv2d(x, weights[0], stride, "SAME") + weights[1])
        return tf.matmul(tf.reshape(h, [tf.shape(x)[0], -1]), weights[2]) + weights[3]

    def initialize(rng):
        return [rng.normal(0, 0.3, s.shape).astype(np.float32) for s in specs]

    return Model("strided", (9, 6, 2), 4, specs, logits, initialize, output_bias=3)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (2, 4), (3, 5)])
def test_chain_agrees_with_tensorflow_s_convolution(stride, kernel):
    model = _strided_same(stride, kernel)
    chain = find_chain(model)
    rng = np.random.default_rng(5)
    weights = [rng.normal(size=s.shape) for s in model.variables]
    x = rng.random(model.input_shape)
    ours = forward(chain, weights, x)
    np.testing.assert_allclose(ours, model.logits(weights, tf.constant(x[None])).numpy()[0], atol=1e-10)


@pytest.mark.parametrize("plan", [{}, {"clip_norm": 1e-3}], ids=["gradient", "clipped"])
def test_recursive_analytic_is_exact_on_the_lenet(lab, plan):
    place = lab("lenet", **plan)
    for row in range(5):
        update = place.update([row])
        if plan:
            update = update * plan["clip_norm"] / np.linalg.norm(update)
        found = _invert(RecursiveAnalytic(), place, place.observe([row], update))
        (scores,) = _scores(place, found, [row])
        assert scores.psnr >= 100
        assert scores.label_correct
        assert found.residual < 1e-5


@pytest.mark.parametrize(
    ("model", "rows", "plan", "reason"),
    [
        ("mlp", [0], {}, "no chain"),
        ("cnn", [0], {}, "no chain"),
        ("lenet", [0, 1], {}, "not one example's"),
    ],
)
def test_recursive_analytic_says_what_it_cannot(lab, model, rows, plan, reason):
    place = lab(model, **plan)
    assert reason in _invert(RecursiveAnalytic(), place, place.observe(rows)).failure


def test_recursive_analytic_says_no_to_noise_and_to_no_bias(lab):
    place = lab("lenet")
    update = place.update([0])
    noise = np.random.default_rng(0).normal(0, 0.1 * np.linalg.norm(update), update.shape)
    assert "not one example's" in _invert(RecursiveAnalytic(), place, place.observe([0], update + noise)).failure
    update[-10:] = 0
    assert "bias is zero" in _invert(RecursiveAnalytic(), place, place.observe([0], update)).failure
