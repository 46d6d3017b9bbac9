"""The mean probabilities behind a gradient, by linear regression on what the last layer's gradient shows.

The gradient of a last dense layer's bias is the mean over the examples of ``p − y``, and its kernel's gradient
times the kernel is the mean of ``(logits − bias)(p − y)ᵀ``. The probabilities ``p`` themselves are no part of it,
but a linear function of both predicts them, and what is linear for one example holds for the mean over many. It is
fitted on examples of the attacker's own: labelled ones, which LLG+ too takes for given (Wainakh et al. 2022), or
ones of unknown label, which then stand for each label in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Estimate = Callable[[Array, Array, "Array | None"], Array]
"""``(mean of p − y [classes], mean of (logits − bias)(p − y)ᵀ [classes, classes], noise) -> mean p [classes]``.

The noise is the variances of what is measured, relative to one example's: of ``p − y`` ``[classes]``, then of the
products ``[classes²]``; ``None`` where there is none.
"""

MOST_CLASSES = 32
"""With more, of the products only the diagonal is taken: their number is the square of that of the classes."""
EXAMPLES = 2
"""For each predictor; where there are fewer, too, only the diagonal is taken."""
RIDGES = (1e-3, 1e-2)
"""Of predictors that are scaled to a variance of one; the second where labels, and so their share, are unknown."""
CONSTANT = 1e-9
"""Predictors that vary less than this, relative to the one that varies most, are left out."""


def fit_mean_probabilities(logits: Array, bias: Array, labels: NDArray[np.int64] | None) -> Estimate:
    """Fit it on examples.

    Args:
        logits: The attacked model's, ``[examples, classes]``.
        bias: Of the last layer, ``[classes]``.
        labels: ``[examples]``, or ``None`` if they are not known.
    """
    classes, ridge = logits.shape[1], RIDGES[labels is None]
    if labels is None:
        labels = np.tile(np.arange(classes), len(logits))
        logits = np.repeat(logits, classes, axis=0)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    errors = probabilities - np.eye(classes)[labels]
    diagonal = classes > MOST_CLASSES or len(logits) < EXAMPLES * (classes + 1) * classes
    if diagonal:
        products = (logits - bias) * errors
    else:
        products = ((logits - bias)[:, :, None] * errors[:, None, :]).reshape(len(logits), -1)
    shown = np.concatenate([errors, products], axis=1)
    mean, expected = shown.mean(axis=0), probabilities.mean(axis=0)
    spread = shown.std(axis=0)
    used = np.flatnonzero(spread > CONSTANT * spread.max())
    mean, spread = mean[used], spread[used]
    scaled = (shown[:, used] - mean) / spread
    normal = scaled.T @ scaled / len(scaled) + ridge * np.eye(len(used))
    goal = scaled.T @ (probabilities - expected) / len(scaled)
    exact = np.linalg.solve(normal, goal)

    def estimate(error: Array, product: Array, noise: Array | None) -> Array:
        seen = np.concatenate([error, _picked(product, diagonal)])
        slopes = exact
        if noise is not None:
            measured = np.concatenate(
                [noise[:classes], _picked(noise[classes:].reshape(classes, classes), diagonal)]
            )
            slopes = np.linalg.solve(normal + np.diag(measured[used] / spread**2), goal)
        return np.asarray(expected + (seen[used] - mean) / spread @ slopes)

    return estimate


def _picked(square: Array, diagonal: bool) -> Array:
    return np.asarray(square.diagonal() if diagonal else square.reshape(-1))
