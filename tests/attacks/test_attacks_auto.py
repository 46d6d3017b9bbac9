"""The dispatcher: what it tries, when it stops, and that it verifies without the truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import Auto, attempt
from attacks.auto import unexplained
from attacks.base import Guess
from attacks.scoring import score
from privfed.transcript import Kind


def _run(view, iterations=40):
    return attempt(Auto(iterations), view, 0, np.random.default_rng(0))


def test_the_cheapest_fires_and_nothing_after_it_is_tried(lab):
    place = lab("mlp")
    found = _run(place.view(place.observe([3])))
    assert (found.fired, found.verified) == ("dense_layer", True)
    assert [one.attack for one in found.tried] == ["dense_layer"]
    assert found.tried[0].failure is None
    assert found.assumed


def test_a_clipped_sum_of_batches_is_verified_by_its_gradients(lab):
    place = lab("mlp")
    first, second = list(range(3, 8)), list(range(8, 13))
    total = 0.3 * place.update(first) + 0.7 * place.update(second)
    seen = place.observe(first + second, total, kind=Kind.SUM, contributors=2.0)
    found = _run(place.view(seen))
    assert (found.fired, found.verified) == ("sparse_decomposition", True)
    assert [one.attack for one in found.tried] == ["dense_layer", "recursive_analytic", "sparse_decomposition"]
    assert all(one.failure for one in found.tried[:-1])
    assert found.residual < 1e-3
    scores = score(found.images, found.labels, *place.truth(seen))
    assert {one.target for one in scores if one.mse < 1e-8} == set(range(10))


def test_local_steps_are_vouched_for_by_the_attack_itself(lab):
    place = lab("mlp", local_epochs=3)
    found = _run(place.view(place.observe([3])))
    assert (found.fired, found.verified) == ("dense_layer", True)


def test_noise_is_never_verified(lab):
    place = lab("mlp")
    update = place.update([3])
    stddev = float(np.linalg.norm(update)) * 0.1
    noisy = update + np.random.default_rng(1).normal(0, stddev, update.size)
    found = _run(place.view(place.observe([3], noisy, noise_stddev=stddev)), iterations=5)
    assert found.verified is not True
    assert all(one.failure for one in found.tried)


def test_crafted_model_attacks_are_skipped_with_a_reason(lab):
    place = lab("lenet")
    vector = np.random.default_rng(2).normal(size=place.model.dimension)
    found = _run(place.view(place.observe([3], vector, noise_stddev=1.0)), iterations=5)
    tried = {one.attack: one.failure for one in found.tried}
    assert "crafted" in tried["imprint"]
    assert "crafted" in tried["model_inconsistency"]
    assert tried["gradient_matching"]


@pytest.mark.parametrize("labels", [True, False])
def test_wrong_images_leave_the_vector_unexplained(lab, labels):
    place = lab("mlp")
    seen = place.observe([3, 4])
    view = place.view(seen)
    for rows, explained in (([3, 4], True), ([7, 8], False)):
        guess = Guess(place.images[rows], place.labels[rows] if labels else None, 0.0, 0)
        assert (unexplained(view, seen, guess)[0] < 1e-3) is explained


def test_of_text_sequences_come_before_token_sets(lab):
    place = lab("transformer")
    found = _run(place.view(place.observe([4, 5])))
    assert (found.fired, found.verified) == ("dager", True)
    # A vector without attention's gradients leaves the set of tokens.
    gradient = place.model.unflatten(place.update([4, 5]))
    assert place.model.attention is not None
    for i in place.model.attention.kernels[0]:
        gradient[i] = np.zeros_like(gradient[i])
    vector = np.concatenate([np.ravel(part) for part in gradient])
    found = _run(place.view(dataclasses.replace(place.observe([4, 5]), vector=vector)))
    assert found.fired == "tokens"
    assert found.verified is False
    assert found.tokens is not None
