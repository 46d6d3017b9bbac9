"""How good a reconstruction is, beside what a guess that saw nothing reaches.

The comparison is only fair when both sides may choose alike. An attack on a vector that holds many examples is
scored on the example that it fits best, and the more examples there are, the better the best fit of *any* image.
So the trivial guesses (black, grey, the dataset's mean) pass through the same procedure against the same
examples, and two margins come of it, both for the best reconstruction:

``margin_db``
    its PSNR less the best PSNR of any trivial guess on *any* of the examples: both sides choose from the same
    set. "Beats the trivial guess by X dB" is said of this one, and is not owed to having many to choose from.
``target_margin_db``
    its PSNR less the best trivial PSNR on *that same* example: never the smaller one. The attack alone chose, so
    it is generous to the attack, and the stricter of the two for a claim that a defence holds.

With a single example behind the observation the two are equal. An attack that offers several images has the
larger choice, which is again to its advantage: what is called defended, is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from skimage.metrics import structural_similarity

from attacks.base import Image, Images

MAX_PSNR = 200.0
"""Where PSNR is cut off, in dB: an MSE of 1e-20, the limit of float64, counts as perfect."""
SSIM_UNDEFINED = "SSIM compares windows of an image, and is not defined below 3×3 pixels or for other data"


@dataclass(frozen=True)
class Scores:
    """One reconstruction against the true example it was matched to.

    Attributes:
        target: Index of that example in the truth.
        mse: Mean squared error over the pixels, peak 1.
        psnr: ``−10 log10(mse)`` in dB, at most ``MAX_PSNR``.
        ssim: Structural similarity (Wang et al. 2004), ``None`` when not defined: see ``SSIM_UNDEFINED``.
        label_correct: Whether the label is right too; ``None`` when the attack named none.
    """

    target: int
    mse: float
    psnr: float
    ssim: float | None
    label_correct: bool | None


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], at most ``MAX_PSNR``."""
    return MAX_PSNR if mse <= 10 ** (-MAX_PSNR / 10) else float(-10 * np.log10(mse))


def ssim_window(shape: Sequence[int]) -> int | None:
    """Side of SSIM's window for images of ``shape`` ``[height, width(, channels)]``: odd, 7 where it fits."""
    if len(shape) not in (2, 3) or min(shape[:2]) < 3:
        return None
    return min(7, (min(shape[:2]) - 1) // 2 * 2 + 1)


def ssim(image: Image, truth: Image) -> float | None:
    """Structural similarity of two images in [0, 1]; ``None`` for data that is no image (``SSIM_UNDEFINED``)."""
    window = ssim_window(truth.shape)
    if window is None:
        return None
    channels = -1 if truth.ndim == 3 else None
    return float(structural_similarity(image, truth, win_size=window, data_range=1.0, channel_axis=channels))


def score(
    images: Images, labels: NDArray[np.int64] | None, truth_images: Images, truth_labels: NDArray[np.int64]
) -> list[Scores]:
    """Score each reconstruction against the true example that it is matched to.

    The matching minimises the total MSE, one to one (Hungarian method), while there are enough true examples;
    an attack that offers more images than there are examples has each matched to its best fit.

    Args:
        images: Reconstructions ``[k, *shape]`` in [0, 1].
        labels: Their labels ``[k]`` or ``None``.
        truth_images: ``[n, *shape]`` in [0, 1], n ≥ 1.
        truth_labels: ``[n]``.

    Raises:
        ValueError: Shapes do not fit, there is no truth, or a pixel is not finite or outside [0, 1].
    """
    _check(images, truth_images)
    if len(truth_labels) != len(truth_images):
        raise ValueError(f"{len(truth_images)} true images have {len(truth_labels)} labels: one each is needed")
    targets = _match(images.reshape(len(images), -1), truth_images.reshape(len(truth_images), -1))
    scores = []
    for i, target in enumerate(targets):
        mse = float(np.mean((images[i] - truth_images[target]) ** 2))
        correct = None if labels is None else bool(labels[i] == truth_labels[target])
        similarity = ssim(images[i], truth_images[target])
        scores.append(Scores(int(target), mse, psnr(mse), similarity, correct))
    return scores


def _match(images: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the true example for each row of ``images``: ``[k]``."""
    # By the binomial formula, without a [k, n, pixels] array: precise enough to choose, not to score.
    cost = (images**2).sum(1)[:, None] + (truth**2).sum(1)[None, :] - 2 * (images @ truth.T)
    if len(images) > len(truth):
        return np.asarray(cost.argmin(axis=1))
    return np.asarray(linear_sum_assignment(cost)[1])


def _check(images: Images, truth: Images) -> None:
    if not len(images) or not len(truth) or images.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"cannot score images {images.shape} against truth {truth.shape}: "
            "at least one of each, and examples of one shape, are needed"
        )
    for what, values in (("a reconstruction", images), ("the truth", truth)):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{what} has pixels that are not finite or outside [0, 1]: scale them first")


def nearest(image: Image, mse: float, held_out: NDArray[np.floating[Any]]) -> bool:
    """Whether ``image``, at ``mse`` from its true example, is farther from all of ``held_out`` ``[m, *shape]``."""
    axes = tuple(range(1, held_out.ndim))
    return bool(mse < np.mean((held_out - image) ** 2, axis=axes).min())


def trivial_guesses(mean_image: Image) -> dict[str, Image]:
    """What one can guess without seeing anything: ``{"black", "grey", "dataset mean"}``."""
    mean = np.clip(np.asarray(mean_image, np.float64), 0, 1)
    return {"black": np.zeros_like(mean), "grey": np.full_like(mean, 0.5), "dataset mean": mean}


@dataclass(frozen=True)
class Comparison:
    """The best of several reconstructions beside the trivial guesses; see the head of this file.

    Attributes:
        best: Index of the reconstruction with the highest PSNR.
        trivial: PSNR of each trivial guess on the example *it* fits best, in dB.
        fitted: Index of that example.
        margin_db: PSNR of the best reconstruction less the best in ``trivial``.
        target_margin_db: The same, with the trivial guesses held to the best reconstruction's own example.
    """

    best: int
    trivial: dict[str, float]
    fitted: dict[str, int]
    margin_db: float
    target_margin_db: float


def compare(scores: Sequence[Scores], truth_images: Images, mean_image: Image) -> Comparison:
    """Set ``scores`` (of ``score`` against ``truth_images``) beside the trivial guesses against the same truth."""
    best = int(np.argmax([s.psnr for s in scores]))
    errors = {
        name: np.mean((truth_images - guess) ** 2, axis=tuple(range(1, truth_images.ndim)))
        for name, guess in trivial_guesses(mean_image).items()
    }
    fitted = {name: int(error.argmin()) for name, error in errors.items()}
    trivial = {name: psnr(float(error[fitted[name]])) for name, error in errors.items()}
    on_target = max(psnr(float(error[scores[best].target])) for error in errors.values())
    reached = scores[best].psnr
    return Comparison(best, trivial, fitted, reached - max(trivial.values()), reached - on_target)
