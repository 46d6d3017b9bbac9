"""ReLU in the recursive attack: exact by what is on, and no answer where too little is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from attacks import Auto, RecursiveAnalytic, attempt, recursive_analytic
from attacks.activations import ACTIVATIONS, FAINT
from attacks.base import NotInvertible
from attacks.conv_chain import Convolution, find_chain
from attacks.equal_errors import _activations, _switched
from attacks.layer_equations import LayerEquations
from attacks.pixels import LEVELS
from privfed.models.functional import cross_entropy
from privfed.models.zoo import ZOO

RELU = next(act for act in ACTIVATIONS if act.name == "relu")
SPREAD, NOISE = 1e-6, 1e-7


@pytest.fixture
def place(lab):
    model = ZOO["lenet"]((12, 12, 1), 10, activation="relu")
    return replace(lab("lenet"), model=model, weights=model.initial_vector(0))


def _update(place, image: np.ndarray, label: int) -> np.ndarray:
    """Of a client that computes in single precision."""
    variables = [tf.constant(part) for part in place.model.unflatten(place.weights)]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        logits = place.model.logits(variables, tf.constant(image[None].astype(np.float32)))
        loss = cross_entropy(logits, tf.constant([label], tf.int64))
    gradient = place.model.flatten([part.numpy() for part in tape.gradient(loss, variables)])
    return (place.weights - np.float32(0.1) * gradient - place.weights).astype(np.float64)


def _attack(place, image: np.ndarray, label: int, attack=None, update=None):
    view = place.view(place.observe([0], _update(place, image, label) if update is None else update))
    return attempt(attack or RecursiveAnalytic(), view, 0, np.random.default_rng(0))


def _unlikely(place, image: np.ndarray) -> int:
    """A label that the model does not expect: what it is sure of has hardly a gradient."""
    variables = [tf.constant(part) for part in place.model.unflatten(place.weights)]
    return int(place.model.logits(variables, tf.constant(image[None].astype(np.float32))).numpy().argmin())


def _full_weights(*_: object) -> None:
    raise NotInvertible("asked for full weights")


@pytest.mark.parametrize("draw", range(5))
def test_image_of_bytes_comes_out_to_the_last_of_them(place, monkeypatch, draw) -> None:
    monkeypatch.setattr(recursive_analytic, "_invert_chain", _full_weights)
    place = replace(place, weights=place.model.initial_vector(draw))
    image = np.random.default_rng(draw).integers(0, 256, (12, 12, 1)) / LEVELS
    label = _unlikely(place, image)
    found = _attack(place, image, label)
    assert found.failure is None
    np.testing.assert_array_equal(found.images[0], image)
    assert found.labels.tolist() == [label]
    assert found.residual < 1e-5


def test_pixels_that_are_no_bytes_come_out_to_single_precision(place) -> None:
    image = np.random.default_rng(1).uniform(size=(12, 12, 1))
    found = _attack(place, image, _unlikely(place, image))
    np.testing.assert_allclose(found.images[0], image, atol=1e-4)


def test_auto_verifies_it(place) -> None:
    image = np.random.default_rng(2).integers(0, 256, (12, 12, 1)) / LEVELS
    found = _attack(place, image, _unlikely(place, image), Auto(iterations=1))
    assert found.fired == "recursive_analytic"
    assert found.verified
    np.testing.assert_array_equal(found.images[0], image)


@pytest.mark.parametrize("layer", [1, 3, 5], ids=["first", "second", "third"])
@pytest.mark.parametrize("single", [True, False], ids=["single", "double"])
def test_image_behind_units_that_are_all_off_is_not_made_up(place, layer, single) -> None:
    """Any image has such a gradient: one that it verified would be one of many."""
    parts = [part.copy() for part in place.model.unflatten(place.weights)]
    parts[layer][:] = -100
    dead = replace(place, weights=place.model.flatten(parts))
    image = np.random.default_rng(3).integers(0, 256, (12, 12, 1)) / LEVELS
    label = _unlikely(dead, image)
    update = None if single else -0.1 * dead.gradient(dead.weights, image[None], np.array([label]))
    assert "pixels open" in _attack(dead, image, label, update=update).failure


def test_image_of_which_half_is_seen_by_no_unit_that_is_on_is_not_made_up(place) -> None:
    """White below, where the first convolution's negative kernels bring all its units under zero."""
    parts = [part.copy() for part in place.model.unflatten(place.weights)]
    parts[0], parts[1] = -np.abs(parts[0]), np.abs(parts[1])
    half_dead = replace(place, weights=place.model.flatten(parts))
    image = np.random.default_rng(4).integers(0, 20, (12, 12, 1)) / LEVELS
    image[5:] = np.random.default_rng(5).integers(200, 256, (7, 12, 1)) / LEVELS
    assert "pixels open" in _attack(half_dead, image, _unlikely(half_dead, image)).failure


@pytest.fixture
def without_biases(place):
    """As weights mostly start: where all is black, units are at zero."""
    model = ZOO["lenet"]((12, 12, 1), 10, activation="relu", initializer="glorot")
    return replace(place, model=model, weights=model.initial_vector(1))


def _half_black() -> np.ndarray:
    image = np.random.default_rng(6).integers(1, 256, (12, 12, 1)) / LEVELS
    image[5:] = 0
    return image


def test_black_that_any_light_would_show_in_is_told_from_what_is_open(without_biases) -> None:
    image = _half_black()
    found = _attack(without_biases, image, _unlikely(without_biases, image))
    assert found.failure is None
    np.testing.assert_array_equal(found.images[0], image)
    assert found.residual < 1e-5
    assert found.evaluations > 40


@pytest.mark.parametrize("layer", [1, 3], ids=["first", "second"])
def test_black_that_light_would_not_show_in_is_open(without_biases, layer) -> None:
    parts = [part.copy() for part in without_biases.model.unflatten(without_biases.weights)]
    parts[layer][:] = -100
    dead = replace(without_biases, weights=without_biases.model.flatten(parts))
    assert "pixels open" in _attack(dead, _half_black(), _unlikely(dead, _half_black())).failure


def test_zeros_are_what_is_as_near_to_zero_as_what_is_below_it() -> None:
    a = np.array([-1e-6, -3e-7, 5e-7, 2e-6, 2.4e-5, 0.3, 4.0])
    np.testing.assert_array_equal(RELU.allowed(a), [0, 0, 0, 0, 2.4e-5, 0.3, 4.0])
    np.testing.assert_array_equal(RELU.allowed(RELU.allowed(a)), RELU.allowed(a))
    exact = np.array([0.0, 1e-9, 0.3])
    np.testing.assert_array_equal(RELU.slope(RELU.allowed(exact)), [0, 1, 1])


def test_zeros_settle_what_the_kernel_s_gradient_and_the_outputs_leave_open() -> None:
    layer = Convolution(1, (1, 1), (3, 3), (4, 4, 2), (4, 4, 4))
    rng = np.random.default_rng(7)
    x = np.maximum(rng.normal(size=(16, 2)), 0)
    kernel = rng.normal(size=(9, 2, 4))
    delta = rng.normal(size=(16, 4))
    delta[9:] *= 1e-9
    scaled = delta / (2 * NOISE)
    shared = layer.gram(scaled)
    slope = np.ones((16, 4))
    # Outputs that are off by far more than their gradients say: zeros of the input bring that down.
    aim = layer.forward(kernel, x) + rng.normal(0, 1e-4, slope.shape)
    known = LayerEquations(layer, kernel, slope, aim, delta, shared, shared @ x)
    errors = [np.abs(_activations(known, 1e-4, act)[0] - x).max() for act in (ACTIVATIONS[0], RELU)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("flips", [1, 3])
def test_outputs_near_zero_are_switched_as_the_gradient_has_them(flips: int) -> None:
    layer = Convolution(2, (2, 2), (5, 5), (12, 12, 1), (6, 6, 12))
    rng = np.random.default_rng(8)
    x, kernel = rng.uniform(size=(144, 1)), rng.uniform(-0.5, 0.5, (25, 1, 12))
    slopes = rng.normal(size=(36, 12))
    bias = rng.uniform(-0.5, 0.5, 12)
    z = layer.forward(kernel, x) + bias
    on = z > 0
    gradient = layer.correlation(slopes * on).reshape(-1, 144) @ x
    gradient = gradient.reshape(25, 12)
    # Some that are on seem to be off, and some that are off seem to be on, all by less than the errors there are.
    outputs = np.where(on, z, rng.normal(0, 1e-5, z.shape))
    outputs = np.where(on, outputs, np.minimum(outputs, 9e-6))
    wrong = rng.choice(np.flatnonzero(~on), flips, replace=False)
    outputs.flat[wrong] = 4e-5
    believed = outputs > 1e-5
    assert (believed != on).sum() == flips
    delta = slopes * believed
    aim = (outputs - bias) * believed
    known = LayerEquations(
        layer, kernel, believed.astype(float), aim, delta, layer.gram(delta), np.zeros((144, 1))
    )
    switched = _switched(known, SPREAD, outputs, slopes, gradient.reshape(5, 5, 1, 12))
    np.testing.assert_array_equal(switched > 0, on)
    assert FAINT * -outputs.min() > 4e-5


def test_chain_of_the_lenet_with_relu(place) -> None:
    assert find_chain(place.model).activation is RELU
