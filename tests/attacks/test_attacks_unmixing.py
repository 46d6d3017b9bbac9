"""Mixtures of two images, and what zeros that leave them open may vouch for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import SparseDecomposition, attempt
from attacks.auto import is_verified
from attacks.base import Guess
from attacks.layer_factors import factorise
from attacks.pixels import made_of_bytes, on_grid
from attacks.sparse_decomposition import _checked, _layer, _unmixed
from attacks.sparse_directions import Search
from attacks.unmixing import unmix

ROWS = [0, 1, 2, 3]
LOCAL = {"local_epochs": 5, "batch_size": 2}


def _bytes(count=4, pixels=200, seed=0, lit=0.5):
    """Images with black, white and grey pixels, each in other places."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 320, (count, pixels)).clip(0, 255) * (rng.random((count, pixels)) < lit)
    return images / 255


@pytest.mark.parametrize("share", [0.06, 0.49, 1.3, -0.4])
def test_a_mixture_with_an_image_of_bytes_is_taken_apart(share):
    images = _bytes()
    mixed = images.copy()
    mixed[0] = (1 - share) * images[0] + share * images[2]
    assert not on_grid(mixed)[0]
    np.testing.assert_allclose(unmix(mixed), images, atol=1e-4)


def test_two_mixtures_with_the_same_image():
    images = _bytes()
    mixed = images.copy()
    mixed[0] = 0.5 * images[0] + 0.5 * images[2]
    mixed[3] = 1.4 * images[3] - 0.4 * images[2]
    np.testing.assert_allclose(unmix(mixed), images, atol=1e-4)


def test_rounding_is_no_obstacle():
    images = _bytes()
    mixed = images + np.random.default_rng(1).normal(0, 1e-7, images.shape)
    mixed[1] = 0.3 * mixed[1] + 0.7 * mixed[3]
    np.testing.assert_allclose(unmix(mixed), images, atol=1e-4)


@pytest.mark.parametrize("images", [_bytes(), np.random.default_rng(2).random((4, 200))], ids=["bytes", "none"])
def test_nothing_to_take_apart(images):
    assert unmix(images) is None


def test_what_is_no_mixture_stays():
    images = _bytes()
    images[1] = np.random.default_rng(3).random(200)
    assert unmix(images) is None


def test_bytes_need_shades_and_their_range():
    images = _bytes()
    assert made_of_bytes(images)
    black_and_white = np.round(images)
    assert on_grid(black_and_white).all()
    assert not made_of_bytes(black_and_white)
    # Wide of [0, 1] nearly all pixels clip to black or white: that is no sign of bytes.
    wide = 300 * (images - 0.5) + 1e-3
    assert not on_grid(wide).any()


@pytest.fixture
def split(lab):
    """The right split of four examples' local steps, and what it came from."""
    place = lab("mlp", **LOCAL)
    seen = place.observe(ROWS)
    kernel, bias = _layer(place.model, seen.vector)
    gradient = np.vstack([kernel, bias])
    factors = factorise(gradient / np.abs(gradient).max())
    start = place.weights.astype(np.float64)
    search = Search(
        factors, np.vstack(_layer(place.model, start)), np.vstack(_layer(place.model, start + seen.vector))
    )
    return place, seen, factors, search, search.rebuilt(place.images[ROWS].reshape(len(ROWS), -1))


def test_a_split_is_rebuilt_from_its_inputs(split):
    place, _, _, search, right = split
    np.testing.assert_allclose(right.inputs, place.images[ROWS].reshape(len(ROWS), -1), atol=1e-9)
    assert right.contradictions == 0
    assert search.leverage(right) < 0.9


def test_zeros_that_leave_a_mixture_open_do_not_vouch_for_it(split):
    place, seen, factors, search, right = split
    mixed = right.inputs.copy()
    mixed[0] = 0.5 * mixed[0] + 0.5 * mixed[1]
    wrong = search.rebuilt(mixed)
    # The other example's zeros are gone, and with them what could contradict: as where one's are inside another's.
    assert search.leverage(wrong) == 1
    wrong = dataclasses.replace(wrong, contradictions=0.0)
    for answer, verified in ((right, True), (wrong, False)):
        guess = _checked(seen, place.model, factors, answer, search.leverage(answer), True)
        assert (guess.residual < 1e-3) is verified
        images = guess.inputs.reshape(-1, *place.model.input_shape)
        found = Guess(images, guess.labels, guess.residual, guess.evaluations)
        assert is_verified(place.view(seen), seen, "sparse_decomposition", found, 1.0) is verified


def test_bytes_vouch_where_zeros_leave_it_open(split):
    place, seen, factors, _, right = split
    images = _bytes(4, right.inputs.shape[1], lit=0.9)
    on_bytes = dataclasses.replace(right, inputs=images, contradictions=0.001)
    assert _checked(seen, place.model, factors, on_bytes, 1.0, True).residual < 1e-3
    contradicted = dataclasses.replace(on_bytes, contradictions=0.05)
    assert _checked(seen, place.model, factors, contradicted, 1.0, True).residual >= 0.1


def test_a_split_with_a_mixture_is_mended(lab):
    place = lab("mlp", **LOCAL)
    images = _bytes(4, 64, seed=5)
    weights = place.weights.astype(np.float64)
    vector = -0.1 * place.gradient(weights, images.reshape(4, 8, 8, 1), np.array([3, 1, 4, 5]))
    kernel, bias = _layer(place.model, vector)
    gradient = np.vstack([kernel, bias])
    factors = factorise(gradient / np.abs(gradient).max())
    layer = np.vstack(_layer(place.model, weights))
    search = Search(factors, layer)
    mixed = images.copy()
    mixed[2] = 0.95 * images[2] + 0.05 * images[0]
    wrong = search.rebuilt(mixed)
    mended, rank = _unmixed(search, wrong)
    assert rank[0] == 0
    np.testing.assert_allclose(mended.inputs, images, atol=1e-4)
    right = search.rebuilt(images)
    assert _unmixed(search, right)[0] is right


def test_the_answer_itself_is_vouched_for_after_local_steps(lab):
    place = lab("mlp", **LOCAL)
    seen = place.observe(ROWS)
    found = attempt(SparseDecomposition(), place.view(seen), 0, np.random.default_rng(0))
    assert found.failure is None
    assert found.residual < 1e-3
