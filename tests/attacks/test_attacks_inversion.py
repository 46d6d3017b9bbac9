"""What the attacks reach on real updates, and what defeats them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import (
    ATTACKS,
    DenseLayer,
    GradientMatching,
    NotInvertible,
    attempt,
    create,
    gradient_matching,
    run_attacks,
)
from attacks.gauss_newton import Solution
from attacks.gradient import estimate_gradient
from attacks.matching_loss import matching_loss
from attacks.scoring import psnr
from privfed.models.zoo import ZOO
from privfed.transcript import Kind


def _psnr(image, truth):
    return psnr(float(np.mean((image - truth) ** 2)))


def _invert(attack, place, seen, seed=0):
    return attempt(attack, place.view(seen), 0, np.random.default_rng(seed))


# The gradient behind an update


def test_one_step_delta_is_the_gradient_at_its_own_scale(lab):
    one, other = lab("mlp", learning_rate=0.1), lab("mlp", learning_rate=0.3)
    first, second = (estimate_gradient(place.observe([0, 1]), place.plan) for place in (one, other))
    assert first.scale_known
    np.testing.assert_allclose(first.vector, second.vector, rtol=1e-9, atol=1e-14)


def test_a_weighted_update_is_divided_by_its_weight(lab):
    place = lab(weighted=True)
    plain = place.observe([0, 1])
    weighted = place.observe([0, 1], plain.vector * 2, contributors=2.0)
    first, second = (estimate_gradient(seen, place.plan) for seen in (plain, weighted))
    assert second.scale_known
    np.testing.assert_allclose(first.vector, second.vector)


@pytest.mark.parametrize(
    ("plan", "seen", "known"),
    [
        ({}, {}, True),
        ({"clip_norm": 100.0}, {}, True),
        ({"clip_norm": 1e-3}, {}, False),
        ({"local_epochs": 2}, {}, False),
        ({}, {"noise_stddev": 0.1}, False),
        ({}, {"kind": Kind.SUM, "contributors": 3.0}, False),
        ({}, {"kind": Kind.SUM}, True),
        ({}, {"kind": Kind.MASKED_UPLOAD}, False),
        ({}, {"kind": Kind.MODEL_DIFFERENCE}, True),
        ({"server_scale": None}, {"kind": Kind.MODEL_DIFFERENCE}, False),
        ({"local_steps": 1}, {}, True),
        ({"local_steps": 2}, {}, False),
        ({"momentum": 0.9, "proximal": 1.0}, {}, True),  # a first step has neither
        ({}, {"rate_factor": None}, False),
    ],
)
def test_when_the_scale_is_known(lab, plan, seen, known):
    place = lab(**plan)
    estimate = estimate_gradient(place.observe([0], **seen), place.plan)
    assert estimate.scale_known is known
    if not known:
        assert np.linalg.norm(estimate.vector) == pytest.approx(1)


def test_the_rate_of_the_round_gives_the_scale(lab):
    place = lab()
    full, half = (
        estimate_gradient(place.observe([0], rate_factor=factor), place.plan).vector for factor in (1.0, 0.5)
    )
    np.testing.assert_allclose(half, 2 * full)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_declines_what_control_variates_moved(lab, name):
    place = lab()
    observed = place.observe([0], corrected=True)
    got = _invert(create(name, iterations=1), place, observed)
    assert "control variates" in got.failure
    assert len(got.images) == 0


# The first dense layer


@pytest.mark.parametrize("model", ["softmax", "mlp"])
@pytest.mark.parametrize("plan", [{}, {"local_epochs": 5}], ids=["one step", "five steps"])
def test_dense_layer_is_exact_for_one_example(lab, model, plan):
    place = lab(model, **plan)
    for row in range(5):
        found = _invert(DenseLayer(), place, place.observe([row]))
        assert _psnr(found.images[0], place.images[row]) >= 140
        assert found.labels.tolist() == [place.labels[row]]
        assert found.residual < 1e-9


def test_clipping_does_not_hinder_the_dense_layer(lab):
    place = lab("mlp", clip_norm=1e-3)
    update = place.update([0])
    found = _invert(DenseLayer(), place, place.observe([0], update * 1e-3 / np.linalg.norm(update)))
    assert _psnr(found.images[0], place.images[0]) >= 140


@pytest.mark.parametrize("model", ["softmax", "mlp"])
def test_dense_layer_finds_an_example_in_a_batch(lab, model):
    place = lab(model)
    found = _invert(DenseLayer(), place, place.observe([0, 1, 2, 3]))
    assert 1 < len(found.images) <= 8
    assert found.labels is None
    assert found.residual > 0.1
    assert max(_psnr(image, place.images[row]) for image in found.images for row in range(4)) >= 100


def test_dense_layer_says_no_to_models_without_one(lab):
    place = lab("lenet")
    found = _invert(DenseLayer(), place, place.observe([0]))
    assert found.failure == "model lenet has no dense layer on its raw input"


def test_dense_layer_says_no_without_a_bias_gradient(lab):
    place = lab()
    vector = place.update([0])
    vector[-10:] = 0
    assert "bias is zero" in _invert(DenseLayer(), place, place.observe([0], vector)).failure


def test_dense_layer_without_output_bias_names_no_label(lab):
    place = lab("mlp")
    place = dataclasses.replace(place, model=dataclasses.replace(place.model, output_bias=None))
    found = _invert(DenseLayer(), place, place.observe([0]))
    assert found.labels is None
    assert _psnr(found.images[0], place.images[0]) >= 140


# Gradient matching


@pytest.mark.parametrize("model", ["softmax", "mlp", "lenet"])
def test_gradient_matching_on_one_step_deltas(lab, model):
    place = lab(model)
    for row in range(6):
        found = _invert(GradientMatching(), place, place.observe([row]))
        assert _psnr(found.images[0], place.images[row]) >= 40
        assert found.labels.tolist() == [place.labels[row]]
        assert found.residual < 1e-9


@pytest.mark.parametrize("model", ["softmax", "mlp", "lenet"])
def test_gradient_matching_when_clipping_took_the_scale(lab, model):
    place = lab(model, clip_norm=1e-3)
    update = place.update([2])
    found = _invert(GradientMatching(), place, place.observe([2], update * 1e-3 / np.linalg.norm(update)))
    assert _psnr(found.images[0], place.images[2]) >= 40


def test_gradient_matching_finds_a_batch(lab):
    place = lab("mlp")
    found = _invert(GradientMatching(batch=2), place, place.observe([0, 1]))
    assert sorted(found.labels) == sorted(place.labels[:2])
    assert all(max(_psnr(image, place.images[row]) for row in (0, 1)) >= 40 for image in found.images)


@pytest.mark.parametrize("alike", [True, False], ids=["one label twice", "different labels"])
def test_images_of_one_label_are_not_taken_for_found_by_a_small_loss(lab, monkeypatch, alike):
    place, starts = lab("lenet"), []
    one = place.labels == place.labels[0]
    rows = [0, int(np.flatnonzero(one)[1] if alike else np.flatnonzero(~one)[0])]

    def near(matching, start, *, enough, jacobians):
        """The truth but for an error that leaves far more than rounding, and less than the tolerance."""
        starts.append(enough)
        images = place.images[rows].astype(np.float64).ravel()
        return Solution(images + 1e-4 * (images < 0.5), 1e-11, 1, 1)

    monkeypatch.setattr(gradient_matching.fading_prior, "search", near)
    monkeypatch.setattr(gradient_matching.gauss_newton, "solve", near)
    _invert(GradientMatching(batch=2, starts=2, iterations=1000), place, place.observe(rows))
    # Each start searches twice, until nothing is left to be explained; one is enough where nothing can be mixed.
    assert len(starts) == (4 if alike else 1)


def test_gradient_matching_of_a_batch_by_one_image_knows_that_it_does_not_fit(lab):
    place = lab("mlp")
    found = _invert(GradientMatching(), place, place.observe(range(6)))
    assert len(found.images) == 1
    assert found.residual > 0.1


def test_gradient_matching_searches_for_the_label_when_no_bias_tells(lab):
    place = lab("lenet")
    place = dataclasses.replace(place, model=dataclasses.replace(place.model, output_bias=None))
    found = _invert(GradientMatching(), place, place.observe([0]))
    assert found.labels.tolist() == [place.labels[0]]
    assert _psnr(found.images[0], place.images[0]) >= 40


def test_gradient_matching_says_no_when_the_network_is_dead(lab):
    place = lab("mlp")
    weights = place.weights.copy()
    weights[:] = -1
    model = dataclasses.replace(
        place.model, output_bias=None, logits=lambda w, x: w[3][None] * 0 + 0 * x[:, :1, 0, 0]
    )
    place = dataclasses.replace(place, model=model)
    found = _invert(GradientMatching(), place, place.observe([0], np.ones(model.dimension), weights=weights))
    assert "zero or not finite" in found.failure


def test_the_budget_bounds_the_work(lab):
    place = lab("lenet")
    found = _invert(GradientMatching(iterations=5), place, place.observe([0]))
    assert found.evaluations <= 5 * 2 + 30


def test_the_graph_is_traced_once_for_a_model_and_batch(lab):
    place = lab("lenet")
    for seed, row in enumerate((0, 1)):
        _invert(GradientMatching(iterations=3), place, place.observe([row]), seed)
    assert matching_loss(place.model, 1, False).experimental_get_tracing_count() == 1


@pytest.mark.parametrize("what", ["iterations", "batch", "starts"])
def test_gradient_matching_refuses_nothing_to_do(what):
    with pytest.raises(ValueError, match=f"{what} is 0"):
        GradientMatching(**{what: 0})


@pytest.mark.parametrize("attack", [DenseLayer(), GradientMatching()], ids=lambda attack: attack.name)
def test_flat_features_are_attacked_too(lab, attack):
    image = lab("mlp")
    place = dataclasses.replace(image, model=ZOO["mlp"]((64,), 10))
    found = _invert(attack, place, place.observe([0], image.update([0])))
    assert found.images.shape == (1, 64)
    assert _psnr(found.images[0], place.images[0].reshape(64)) >= 40


@pytest.mark.slow
def test_gradient_matching_on_lenet_at_28_by_28(lab):
    """DLG's own size, on digits enlarged by repetition: all below MSE 1e-3, the success rule of Zhu et al."""
    model = ZOO["lenet"]((28, 28, 1), 10)
    small = lab("lenet")
    place = dataclasses.replace(small, model=model, weights=model.initial_vector(1))
    enlarged = np.pad(small.images[:5].repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2), (0, 0)))
    for row in range(5):
        vector = -place.plan.learning_rate * place.gradient(place.weights, enlarged[[row]], place.labels[[row]])
        found = _invert(GradientMatching(), place, place.observe([row], vector))
        assert np.mean((found.images[0] - enlarged[row]) ** 2) < 1e-3


# What noise does

CLIP = 0.5


@pytest.mark.parametrize(
    ("attack", "model"),
    [
        (DenseLayer(), "softmax"),
        (DenseLayer(), "mlp"),
        (GradientMatching(), "softmax"),
        (GradientMatching(iterations=150), "lenet"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_noise_defeats_what_succeeds_without_it(lab, mean_image, attack, model):
    """σ = 0.1 × clip leaves at most 1 dB over a trivial guess; the same updates without noise are the control."""
    place = lab(model, clip_norm=CLIP)
    rng = np.random.default_rng(11)
    bare, noised = [], []
    for row in range(4):
        update = place.update([row])
        update = update * min(1, CLIP / np.linalg.norm(update))
        bare.append(place.observe([row], update))
        noise = rng.normal(0, 0.1 * CLIP, update.shape)
        noised.append(place.observe([row], update + noise, noise_stddev=0.1 * CLIP))
    for observations, defended in ((bare, False), (noised, True)):
        outcomes = run_attacks(
            place.view(*observations), [attack], place.truth, mean_image, np.random.default_rng(0)
        )
        assert len(outcomes) == 4
        for outcome in outcomes:
            if defended:
                assert outcome.margin_db <= 1
                assert outcome.target_margin_db <= 1
            else:
                assert outcome.best.psnr >= 40
                assert outcome.margin_db >= 25


def test_not_invertible_is_not_an_error_of_the_program():
    assert not issubclass(NotInvertible, ValueError | RuntimeError)
