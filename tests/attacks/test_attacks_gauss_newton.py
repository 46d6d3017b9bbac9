"""Gauss-Newton steps on the gradient's equations, their Jacobian by hand, and the published baselines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import GradientMatching, attempt, fading_prior, gauss_newton
from attacks.chain_jacobian import ChainJacobian
from attacks.conv_chain import find_chain
from attacks.gradient import noise_variance
from attacks.published_matching import DLG, IDLG
from attacks.scoring import score
from privfed.models.zoo import ZOO


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_the_jacobian_by_hand_is_that_of_differentiation(activation):
    model = ZOO["lenet"]((8, 8, 2), 10, activation=activation)
    weights = model.initial_vector(1).astype(np.float64)
    image, which = np.random.default_rng(0).uniform(0, 1, 128), np.array([0, 3, 17, 64, 127])
    label = np.eye(10)[4]
    ours = ChainJacobian(find_chain(model), model, weights)(image, which, label)
    theirs = gauss_newton.differentiated(model, weights)(image, which, label)
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_jacobian_is_the_change_of_the_gradient(lab):
    place = lab("mlp")
    columns = gauss_newton.differentiated(place.model, place.weights.astype(np.float64))
    image, label = place.images[3].reshape(-1), np.eye(10)[place.labels[3]]
    _, (column,) = columns(image, np.array([20]), label)
    ahead, behind = (
        columns(image + step * (np.arange(64) == 20), np.array([20]), label)[0] for step in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(column, (ahead - behind) / 2e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "lenet"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_a_batch_is_exact(lab, model, clip):
    place = lab(model, clip_norm=clip)
    vector = place.update([1, 2])
    if clip is not None:
        vector = vector * clip / np.linalg.norm(vector)
    attack = GradientMatching(iterations=2000, batch=2, starts=5)
    found = attempt(attack, place.view(place.observe([1, 2], vector)), 0, np.random.default_rng(0))
    images, labels = place.truth(place.observe([1, 2]))
    assert all(s.psnr >= 60 and s.label_correct for s in score(found.images, found.labels, images, labels))
    assert found.residual < 1e-6


def test_eight_images(lab):
    place = lab("lenet")
    attack = GradientMatching(iterations=1000, batch=8, starts=1)
    seen = place.observe(list(range(8)))
    found = attempt(attack, place.view(seen), 0, np.random.default_rng(0))
    scores = score(found.images, found.labels, *place.truth(seen))
    assert sum(s.psnr >= 30 for s in scores) >= 7


def test_steps_keep_the_box_and_lower_the_loss(lab):
    place = lab("lenet")
    labels = np.eye(10)[place.labels[:2]]
    target = place.gradient(place.weights, place.images[:2], place.labels[:2])
    matching = gauss_newton.Matching(place.model, place.weights.astype(np.float64), target, labels, True)
    start = np.random.default_rng(1).uniform(0, 1, 128)
    losses = []
    for jacobians in (0, 1, 8):
        found = gauss_newton.solve(matching, start, enough=0.0, jacobians=jacobians)
        assert found.images.min() >= 0
        assert found.images.max() <= 1
        assert found.jacobians <= jacobians
        losses.append(found.loss)
    assert losses[0] > losses[1] > losses[2]


def test_examples_that_share_statistics_are_told(lab):
    model = lab("mlp").model
    assert gauss_newton.separable(model)
    shared = dataclasses.replace(model, logits=lambda w, x: model.logits(w, x) - model.logits(w, x)[:1])
    assert not gauss_newton.separable(shared)
    assert not gauss_newton.affordable(shared, 1)


def test_known_noise_rounding_and_fixed_point_are_noise(lab):
    place = lab("lenet")
    vector = place.update([0])
    energy = float(vector @ vector)
    bare = noise_variance(place.observe([0], vector))
    assert 0 < bare < 1e-9
    noised = noise_variance(place.observe([0], vector, noise_stddev=1e-3))
    assert noised == pytest.approx(vector.size * 1e-6 / energy, rel=1e-3)
    step = float(np.abs(vector).max()) / 50
    fixed = np.floor(vector / step + np.random.default_rng(0).uniform(size=vector.size)) * step
    assert noise_variance(place.observe([0], fixed)) == pytest.approx(
        vector.size * step**2 / 6 / float(fixed @ fixed), rel=1e-3
    )


@pytest.mark.parametrize("attack", [DLG(200), IDLG(200)], ids=lambda attack: attack.name)
def test_published_algorithms_work_on_a_smooth_network(lab, attack):
    place = lab("lenet")
    found = [attempt(attack, place.view(place.observe([row])), 0, np.random.default_rng(row)) for row in range(6)]
    right = sum(
        float(np.mean((one.images[0] - place.images[row]) ** 2)) < 1e-3
        for row, one in enumerate(found)
        if one.failure is None
    )
    assert right >= 3


def test_idlg_needs_a_bias(lab):
    place = lab("lenet")
    place = dataclasses.replace(place, model=dataclasses.replace(place.model, output_bias=None))
    found = attempt(IDLG(5), place.view(place.observe([0])), 0, np.random.default_rng(0))
    assert "no output bias" in found.failure


def test_the_prior_fades_and_leaves_what_the_equations_say(lab):
    place = lab("lenet")
    labels = np.eye(10)[place.labels[:2]]
    target = place.gradient(place.weights, place.images[:2], place.labels[:2])
    matching = gauss_newton.Matching(place.model, place.weights.astype(np.float64), target, labels, True)
    start = fading_prior.draw(place.model.input_shape, 2, np.random.default_rng(0))
    first = fading_prior.search(matching, start, enough=1e-10, jacobians=1)
    found = fading_prior.search(matching, start, enough=1e-10, jacobians=20)
    assert first.jacobians == 1
    assert first.loss > found.loss
    assert found.loss < 1e-10
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert np.abs(found.images - place.images[:2].ravel()).max() < 1e-3
