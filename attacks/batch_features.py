"""Each example's features in front of the last dense layer, from the gradient of a batch of few examples.

With features ``hᵢ``, probabilities ``pᵢ`` and labels ``yᵢ`` the kernel's gradient, times the batch's size, is
``D = Σ hᵢ (pᵢ − yᵢ)ᵀ``: of rank ``B`` while ``B`` is below the number of classes. Its right singular vectors span
the errors ``eᵢ = pᵢ − yᵢ``, so that ``E = M Vᵀ`` with ``B²`` unknowns, and ``H = M⁻ᵀ S Uᵀ`` follows. Each example
adds as many equations ``softmax(H W + b) = E + Y`` as there are classes, so that the labels alone determine ``M``:
what the last layer tells of one example (Geiping et al. 2020, proposition 3.1), solved for a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from attacks.label_counts import ends_dense
from privfed.models.functional import Model

Array = NDArray[np.float64]

GAP = 10.0
"""The smallest singular value of the examples stands out from the next by this, or is rounding."""
STARTS = 12
SPREAD = 0.3
"""Of the logarithms of the probabilities that a start guesses."""
SOLVED = 1e-14
"""Sum of squares at which no further start is tried."""


@dataclass(frozen=True, eq=False)
class BatchFeatures:
    """What reached the last layer, example by example, in the order of the labels.

    Attributes:
        features: ``[batch, features]``.
        errors: Probabilities less the labels, ``[batch, classes]``.
        misfit: Sum of the squared differences between the errors and those that the features give.
    """

    features: Array
    errors: Array
    misfit: float


def split_features(
    model: Model, weights: Array, gradient: Array, labels: NDArray[np.int64], rng: np.random.Generator
) -> BatchFeatures | None:
    """Solve for them; ``None`` where the model does not end so, or the layer's rank does not tell them apart.

    Args:
        model: The attacked model.
        weights: ``[d]`` at which the gradient was taken.
        gradient: Mean gradient of one step, at its own scale, ``[d]``.
        labels: Of the batch, ``[batch]``.
        rng: Draws the starts.
    """
    count = len(labels)
    if not ends_dense(model) or not 1 < count < model.classes:
        return None
    kernel, bias = (np.asarray(part, np.float64) for part in model.unflatten(weights)[-2:])
    summed, error = (count * np.asarray(part, np.float64) for part in model.unflatten(gradient)[-2:])
    left, values, right = np.linalg.svd(summed, full_matrices=False)
    if len(values) <= count or values[count - 1] < GAP * values[count]:
        return None
    scaled, span = left[:, :count] * values[:count], right[:count].T
    one_hot = np.eye(model.classes)[labels]
    mean = np.clip((error + one_hot.sum(axis=0)) / count, 1e-3, 1)

    def parts(mixing: Array) -> tuple[Array, Array]:
        square = mixing.reshape(count, count)
        return np.linalg.solve(square.T, scaled.T), square @ span.T

    def equations(mixing: Array) -> Array:
        try:
            features, errors = parts(mixing)
        except np.linalg.LinAlgError:
            return np.full(model.classes * (count + 1), 1e3)
        logits = features @ kernel + bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        off = powers / powers.sum(axis=1, keepdims=True) - one_hot - errors
        return np.concatenate([off.reshape(-1), errors.sum(axis=0) - error])

    best: tuple[float, Array] | None = None
    for start in range(STARTS):
        guess = mean * np.exp(rng.normal(0, SPREAD if start else SPREAD / 6, one_hot.shape))
        first = (guess / guess.sum(axis=1, keepdims=True) - one_hot) @ span
        found = optimize.least_squares(
            equations, first.reshape(-1), method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=60 * count**2
        )
        if np.isfinite(found.cost) and (best is None or found.cost < best[0]):
            best = (float(found.cost), found.x)
            if best[0] < SOLVED:
                break
    if best is None or np.linalg.matrix_rank(best[1].reshape(count, count)) < count:
        return None
    return BatchFeatures(*parts(best[1]), best[0])
