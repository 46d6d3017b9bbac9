"""Scores with known answers, the matching against brute force, and the fairness of the comparison."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.scoring import MAX_PSNR, compare, psnr, score, ssim, ssim_window, trivial_guesses


def _images(seed, count, shape=(8, 8, 1)):
    return np.random.default_rng(seed).uniform(0, 1, (count, *shape))


NO_LABELS = np.zeros(100, np.int64)


@pytest.mark.parametrize(
    ("mse", "decibel"), [(1.0, 0.0), (0.25, 6.020599913), (0.1, 10.0), (1e-3, 30.0), (1e-14, 140.0), (0.0, 200.0)]
)
def test_psnr_known_answers(mse, decibel):
    """PSNR = −10 log10(MSE) at peak 1, by its definition."""
    assert psnr(mse) == pytest.approx(decibel)


def test_psnr_has_a_ceiling():
    assert psnr(1e-30) == psnr(0.0) == MAX_PSNR


def test_perfect_reconstruction():
    truth = _images(0, 1)
    (found,) = score(truth, np.array([3]), truth, np.array([3]))
    assert (found.mse, found.psnr, found.target, found.label_correct) == (0.0, MAX_PSNR, 0, True)
    assert found.ssim == pytest.approx(1.0)


def test_exact_recovery_is_not_lost_to_the_matching_s_rounding():
    truth = _images(1, 50)
    near = np.clip(truth[[7]] * (1 - 1e-9), 0, 1)
    (found,) = score(near, None, truth, NO_LABELS[:50])
    assert found.target == 7
    assert found.psnr > 180


def test_black_against_white():
    (found,) = score(np.zeros((1, 8, 8, 1)), np.array([1]), np.ones((1, 8, 8, 1)), np.array([2]))
    assert (found.mse, found.psnr, found.label_correct) == (1.0, 0.0, False)
    # Wang et al. (2004), eq. 13: means 0 and 1, no variance, so SSIM = C1 / (1 + C1) with C1 = 0.01².
    assert found.ssim == pytest.approx(1e-4 / (1 + 1e-4))


def test_no_label_named():
    assert score(_images(0, 1), None, _images(1, 1), NO_LABELS[:1])[0].label_correct is None


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_matching_minimises_the_total_error(count, more, seed):
    """The Hungarian method against all assignments."""
    images, truth = _images(seed, count, (2, 2)), _images(seed + 1, count + more, (2, 2))
    found = score(images, None, truth, NO_LABELS[: count + more])
    best = min(
        sum(np.mean((images[i] - truth[j]) ** 2) for i, j in enumerate(targets))
        for targets in itertools.permutations(range(count + more), count)
    )
    assert sum(s.mse for s in found) == pytest.approx(best)
    assert len({s.target for s in found}) == count


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(5)), st.integers(0, 2**32 - 1))
def test_order_does_not_matter(order, seed):
    truth, labels = _images(seed, 5), np.arange(5)
    images = np.clip(truth + np.random.default_rng(seed).normal(0, 0.2, truth.shape), 0, 1)
    plain = score(images, labels, truth, labels)
    order = list(order)
    shuffled = score(images[order], labels[order], truth, labels)
    assert [plain[i] for i in order] == shuffled
    turned = score(images, labels, truth[order], labels[order])
    assert [s.mse for s in turned] == [s.mse for s in plain]
    assert [order[s.target] for s in turned] == [s.target for s in plain]


def test_more_images_than_examples_each_take_their_best():
    truth = _images(3, 2)
    images = np.stack([truth[1], truth[0], truth[1]])
    assert [s.target for s in score(images, None, truth, NO_LABELS[:2])] == [1, 0, 1]


def test_a_sum_over_many_clients_is_matched_quickly():
    truth = _images(4, 3000, (28, 28, 1))
    start = time.process_time()
    found = score(truth[[5, 2999]], None, truth, np.zeros(3000, np.int64))
    assert [s.target for s in found] == [5, 2999]
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((28, 28, 1), 7),
        ((8, 8), 7),
        ((6, 9, 3), 5),
        ((3, 3, 1), 3),
        ((2, 9), None),
        ((64,), None),
        ((4, 4, 4, 4), None),
    ],
)
def test_ssim_window_is_odd_and_fits(shape, window):
    assert ssim_window(shape) == window
    image = _images(0, 1, shape)[0]
    assert ssim(image, image) == (None if window is None else pytest.approx(1))


@pytest.mark.parametrize(
    ("images", "truth", "reason"),
    [
        (np.zeros((0, 4)), np.zeros((1, 4)), "at least one"),
        (np.zeros((1, 4)), np.zeros((0, 4)), "at least one"),
        (np.zeros((1, 4)), np.zeros((1, 5)), "one shape"),
        (np.full((1, 4), np.nan), np.zeros((1, 4)), "a reconstruction has pixels"),
        (np.zeros((1, 4)), np.full((1, 4), 255.0), "the truth has pixels"),
    ],
)
def test_unfit_images_are_refused(images, truth, reason):
    with pytest.raises(ValueError, match=reason):
        score(images, None, truth, NO_LABELS[: len(truth)])


def test_truth_needs_its_labels():
    with pytest.raises(ValueError, match="2 true images have 1 labels"):
        score(np.zeros((1, 4)), None, np.zeros((2, 4)), NO_LABELS[:1])


def test_trivial_guesses():
    guesses = trivial_guesses(np.full((2, 2), 0.3))
    assert {name: float(image.mean()) for name, image in guesses.items()} == pytest.approx(
        {"black": 0.0, "grey": 0.5, "dataset mean": 0.3}
    )


def test_a_trivial_guess_beats_itself_by_nothing(mean_image):
    """Whatever is behind the observation: handing in the dataset's mean earns no margin that is not there."""
    truth = _images(6, 40)
    scores = score(mean_image[None], None, truth, NO_LABELS[:40])
    comparison = compare(scores, truth, mean_image)
    assert comparison.margin_db <= 0
    assert scores[0].psnr == comparison.trivial["dataset mean"]


def test_both_margins_by_hand():
    """Two examples, of brightness .1 and .9; the attack fits the second at an error of .1: 20 dB."""
    truth = np.stack([np.full(4, 0.1), np.full(4, 0.9)])
    scores = score(np.full((1, 4), 0.8), None, truth, NO_LABELS[:2])
    comparison = compare(scores, truth, np.full(4, 0.6))
    assert comparison.trivial == pytest.approx({"black": 20.0, "grey": psnr(0.16), "dataset mean": psnr(0.09)})
    assert comparison.margin_db == pytest.approx(20.0 - 20.0)
    assert comparison.target_margin_db == pytest.approx(20.0 - psnr(0.09))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_target_margin_is_never_the_smaller(count, examples, seed):
    images, truth = _images(seed, count, (3, 3)), _images(seed + 1, examples, (3, 3))
    scores = score(images, None, truth, NO_LABELS[:examples])
    comparison = compare(scores, truth, np.full((3, 3), 0.4))
    assert comparison.target_margin_db >= comparison.margin_db
    assert scores[comparison.best].psnr == max(s.psnr for s in scores)
    if examples == 1:
        assert comparison.target_margin_db == comparison.margin_db
