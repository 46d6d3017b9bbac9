"""What every registered attack keeps to. A new attack is one line in ``SUITED``."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import attacks
from attacks import ATTACKS, attempt, create
from privfed.transcript import Kind, Observation, Observer, View

SUITED = {
    "auto": ("mlp", [4, 5, 6]),
    "dager": ("transformer", [4, 5]),
    "dense_layer": ("softmax", [4, 5, 6]),
    "feature_inversion": ("cnn", [4, 5, 6]),
    "gradient_matching": ("softmax", [4, 5, 6]),
    "label_inference": ("softmax", [4, 5, 6]),
    "imprint": ("imprinted", [4, 5, 6]),
    "local_training": ("softmax", [4]),
    "model_inconsistency": ("mlp", [4, 5, 6]),
    "recursive_analytic": ("lenet", [4]),
    "sparse_decomposition": ("mlp", [4, 5, 6]),
    "tokens": ("transformer", [4, 5, 6]),
}
"""A model of the zoo that each attack can do something with, and the rows of a batch that it can."""


@pytest.fixture(params=sorted(ATTACKS))
def name(request):
    return request.param


@pytest.fixture
def attack(name):
    return create(name, iterations=40)


@pytest.fixture
def place(lab, name):
    return lab(SUITED[name][0])


def test_every_attack_is_in_the_suite():
    assert set(SUITED) == set(ATTACKS)


def test_name_is_the_registry_s(attack, name):
    assert attack.name == name


def test_threat_model_names_observers_knowledge_and_assumptions(attack):
    assert attack.threat.observers
    assert all(isinstance(observer, Observer) for observer in attack.threat.observers)
    assert attack.threat.knowledge
    assert attack.threat.assumptions
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.threat.observers = ()


def test_same_seed_same_reconstruction(attack, name, place):
    view = place.view(place.observe(SUITED[name][1]))
    first, second = (attempt(attack, view, 0, np.random.default_rng(7)) for _ in range(2))
    assert first.failure is None
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert (first.residual, first.evaluations) == (second.residual, second.evaluations)


def test_shape_range_and_type(attack, place):
    found = attempt(attack, place.view(place.observe([1])), 0, np.random.default_rng(0))
    assert found.attack == attack.name
    assert found.images.dtype == np.float64
    assert found.images.shape[1:] == place.model.input_shape
    if found.tokens is not None:
        assert found.tokens.dtype == np.int64
        assert (np.diff(found.tokens) > 0).all()
    if not len(found.images):
        assert found.tokens is not None or found.labels.dtype == np.int64
        return
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.labels is None or found.labels.shape == (len(found.images),)
    assert found.seconds > 0


def test_one_step_update_gives_the_image_and_label_away(attack, place):
    found = attempt(attack, place.view(place.observe([3])), 0, np.random.default_rng(0))
    assert found.residual < 1e-6
    if found.tokens is not None and not len(found.images):
        assert set(found.tokens) == set(np.rint(place.images[3] * 255).astype(int))
        return
    if not len(found.images):
        assert set(found.labels) == {place.labels[3]}
        return
    assert np.mean((found.images[0] - place.images[3]) ** 2) < 1e-4
    assert found.labels is None or found.labels.tolist() == [place.labels[3]]


def test_the_clients_identities_are_not_used(attack, place):
    seen = place.observe([3])
    other = dataclasses.replace(seen, clients=(99, 100))
    first, second = (
        attempt(attack, place.view(observation), 0, np.random.default_rng(0)) for observation in (seen, other)
    )
    np.testing.assert_array_equal(first.images, second.images)


def test_an_observation_is_left_as_it_was(attack, place):
    seen = place.observe([3])
    vector, weights = seen.vector.copy(), seen.weights.copy()
    attempt(attack, place.view(seen), 0, np.random.default_rng(0))
    np.testing.assert_array_equal(seen.vector, vector)
    np.testing.assert_array_equal(seen.weights, weights)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda v: np.zeros_like(v), "is zero"),
        (lambda v: np.where(np.arange(v.size) == 3, np.nan, v), r"1 of \d+ entries of the observed vector"),
        (lambda v: np.where(np.arange(v.size) < 2, np.inf, v), r"2 of \d+ entries of the observed vector"),
        (lambda v: v[:-1], r"shape \(\d+,\)"),
        (lambda v: v[None], r"shape \(1, \d+\)"),
    ],
    ids=["zero", "NaN", "infinite", "short", "two-dimensional"],
)
def test_useless_vectors_are_a_failure_in_words(attack, place, spoil, reason):
    found = attempt(attack, place.view(place.observe([0], spoil(place.update([0])))), 0, np.random.default_rng(0))
    assert found.failure is not None
    assert re.search(reason, found.failure)
    assert found.images.shape == (0, *place.model.input_shape)
    assert found.labels is None
    assert np.isnan(found.residual)


def test_useless_weights_are_a_failure_in_words(attack, place):
    weights = place.weights.copy()
    weights[0] = np.nan
    found = attempt(attack, place.view(place.observe([0], weights=weights)), 0, np.random.default_rng(0))
    assert f"1 of {place.model.dimension} entries of the observed model" in str(found.failure)


@pytest.mark.parametrize("scale", [1e-250, 1e250], ids=["tiny", "huge"])
def test_extreme_scales_neither_break_nor_give_nan(attack, place, scale):
    seen = place.observe([0], place.update([0]) * scale, kind=Kind.MASKED_UPLOAD)
    found = attempt(attack, place.view(seen), 0, np.random.default_rng(0))
    assert found.failure is not None or np.isfinite(found.images).all()


@pytest.mark.parametrize("model", ["softmax", "mlp", "lenet"])
@pytest.mark.parametrize(
    "rows", [[0, 0], [0, 10, 20, 30], [0, 0, 1, 2]], ids=["duplicates", "one class", "duplicate among others"]
)
def test_odd_batches_give_a_guess_or_a_reason(attack, lab, model, rows):
    place = lab(model)
    found = attempt(attack, place.view(place.observe(rows)), 0, np.random.default_rng(0))
    assert found.failure or len(found.images) or len(found.labels)


@pytest.mark.parametrize("model", ["cnn", "transformer", "imprinted"])
def test_any_other_model_gives_a_guess_or_a_reason_in_words(attack, lab, model):
    place = lab(model)
    found = attempt(attack, place.view(place.observe([1, 2])), 0, np.random.default_rng(0))
    if found.failure is None:
        assert len(found.images) or found.tokens is not None or len(found.labels)
        assert np.isfinite(found.residual)
    else:
        assert len(found.failure.split()) > 4
        assert "Error" not in found.failure


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images_give_a_guess_or_a_reason(attack, place, value):
    image = np.full((1, *place.model.input_shape), value)
    vector = -0.1 * place.gradient(place.weights, image, np.array([3]))
    found = attempt(attack, place.view(place.observe([0], vector)), 0, np.random.default_rng(0))
    assert found.failure or np.isfinite(found.images).all()


def test_the_update_of_another_model_gives_a_guess_or_a_reason(attack, place):
    other = np.random.default_rng(1).normal(0, 0.1, place.model.dimension).astype(np.float32)
    seen = place.observe([0, 1, 2], weights=other)
    found = attempt(attack, place.view(seen), 0, np.random.default_rng(0))
    assert found.failure or np.isfinite(found.residual)


def test_a_view_has_no_place_for_truth():
    """What attacks are given: adding a field to these must be thought about here."""
    assert {field.name for field in dataclasses.fields(View)} == {
        "observer",
        "plan",
        "model",
        "observations",
        "auxiliary",  # examples that no client trained on
    }
    assert {field.name for field in dataclasses.fields(Observation)} == {
        "round",
        "kind",
        "weights",
        "vector",
        "contributors",
        "clients",
        "noise_stddev",
        "rate_factor",  # follows from the schedule, which is public
        "corrected",  # follows from the algorithm and the round
    }


def test_unknown_attack_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="no attack 'magic': choose from auto, dager, dense_layer"):
        create("magic")


class _Careless:
    """Returns what it was built with."""

    name = "careless"
    threat = attacks.ThreatModel((Observer.SERVER,), ("nothing",), ("nothing",))

    def __init__(self, images, labels=None, residual=0.0):
        self.guess = attacks.base.Guess(images, labels, residual, 0)

    def invert(self, view, index, rng):
        return self.guess


@pytest.mark.parametrize(
    ("guess", "reason"),
    [
        ((np.zeros((1, 8, 8)),), "images have shape"),
        ((np.zeros((0, 8, 8, 1)),), "images have shape"),
        ((np.full((1, 8, 8, 1), 1.5),), "within"),
        ((np.full((1, 8, 8, 1), np.nan),), "within"),
        ((np.zeros((2, 8, 8, 1)), np.zeros(1, np.int64)), "labels have shape"),
        ((np.zeros((0, 8, 8, 1)), np.zeros(0, np.int64)), "images have shape"),
        ((np.zeros((0, 8, 8, 1)), np.zeros((1, 1), np.int64)), "labels have shape"),
        ((np.zeros((1, 8, 8, 1)), None, np.nan), "residual"),
    ],
)
def test_a_broken_attack_is_an_error_not_a_result(lab, guess, reason):
    place = lab()
    with pytest.raises(ValueError, match=reason):
        attempt(_Careless(*guess), place.view(place.observe([0])), 0, np.random.default_rng(0))
