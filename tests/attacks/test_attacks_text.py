"""Tokens and sequences from the gradients of a text model, and their scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import Dager, Tokens, attempt, run_attacks
from attacks.text_scoring import as_ids, rouge_l, rouge_n, score_text
from privfed.models.transformer import transformer
from privfed.transcript import Kind


@pytest.fixture
def place(lab):
    return lab("transformer")


def attack(method, place, *seen):
    return attempt(method, place.view(*seen), 0, np.random.default_rng(0))


def test_tokens_of_many_windows_are_exact(place):
    rows = list(range(32))
    found = attack(Tokens(), place, place.observe(rows))
    assert found.tokens.tolist() == np.unique(as_ids(place.images[rows])).tolist()


def test_tokens_are_told_from_the_noise_that_is_known(place):
    update = place.update([1, 2])
    true = set(as_ids(place.images[[1, 2]]).ravel().tolist())
    for stddev, least in ((1e-6, 0.9), (1.0, 0.0)):
        noisy = update + np.random.default_rng(1).normal(0, stddev, update.size)
        seen = place.observe([1, 2], noisy, noise_stddev=stddev)
        found = attack(Tokens(), place, seen)
        named = set() if found.failure else set(found.tokens.tolist())
        # A thousandth of chance for any false one.
        assert named <= true
        assert len(named & true) >= least * len(true)
    assert "more than the noise" in found.failure


def test_every_row_moved_is_no_answer(place):
    noisy = place.update([1]) + np.random.default_rng(1).normal(0, 1e-6, place.model.dimension)
    assert "every row" in attack(Tokens(), place, place.observe([1], noisy)).failure


@pytest.mark.parametrize("rows", [[10], [10, 30], [10, 30, 50, 60]])
def test_sequences_and_their_labels_are_exact(place, rows):
    found = attack(Dager(), place, place.observe(rows, kind=Kind.SUM, contributors=2.0))
    got = {tuple(window): label for window, label in zip(as_ids(found.images).tolist(), found.labels, strict=True)}
    true = zip(as_ids(place.images[rows]).tolist(), place.labels[rows], strict=True)
    assert got == {tuple(window): label for window, label in true}
    assert found.residual < 1e-5


def test_too_many_prefixes_noise_and_other_models_are_failures_in_words(place, lab):
    assert "excludes no token" in attack(Dager(), place, place.observe(list(range(40)))).failure
    noisy = place.update([1]) + np.random.default_rng(1).normal(0, 1e-3, place.model.dimension)
    assert attack(Dager(), place, place.observe([1], noisy)).failure
    for method, reason in ((Dager(), "is no transformer"), (Tokens(), "embeds no tokens")):
        assert reason in attack(method, lab("mlp"), lab("mlp").observe([1])).failure


def test_two_blocks_are_too_few(place):
    model = transformer(place.model.input_shape, place.model.classes, width=32, blocks=2)
    small = dataclasses.replace(place, model=model, weights=model.initial_vector(0))
    assert "three are needed" in attack(Dager(), small, small.observe([1])).failure


def test_rouge_known_answers():
    """The example of Lin 2004, section 3: "police killed the gunman" against "police kill the gunman"."""
    reference, candidate = [1, 2, 3, 4], [1, 5, 3, 4]
    assert rouge_l(reference, candidate) == 3 / 4
    assert rouge_l(reference, [3, 4, 5, 1]) == 2 / 4  # "the gunman kill police"
    assert rouge_n(reference, candidate, 1) == 3 / 4
    assert rouge_n(reference, candidate, 2) == 1 / 3
    assert rouge_n([1, 1, 1], [1], 1) == 2 / 4
    assert rouge_n([1], [1], 2) == rouge_l([], []) == 0.0


def test_text_scores_match_sequences_at_best():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8]]) / 255
    found = np.array([[5, 6, 7, 9], [1, 2, 3, 4]]) / 255
    scores = score_text(found, None, truth)
    assert (scores.token_accuracy, scores.exact) == ((0.75 + 1) / 2, 0.5)
    assert scores.token_set == pytest.approx(2 * 7 / 16)
    only_one = score_text(found[1:], None, truth)
    assert (only_one.token_accuracy, only_one.exact, only_one.rouge_l) == (0.5, 0.5, 0.5)
    nothing = score_text(np.zeros((0, 4)), np.array([1, 2]), truth)
    assert (nothing.exact, nothing.token_set) == (0.0, pytest.approx(2 * 2 / 10))


def test_the_runner_scores_text(place, mean_image):
    outcomes = run_attacks(
        place.view(place.observe([3])), [Tokens(), Dager()], place.truth, mean_image, np.random.default_rng(0)
    )
    assert [outcome.text.token_set for outcome in outcomes] == [1.0, 1.0]
    assert [outcome.text.exact for outcome in outcomes] == [0.0, 1.0]
    assert outcomes[1].best is None
