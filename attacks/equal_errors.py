"""The input of a chain of convolutions from its equations taken as equally uncertain: a fast first answer.

The weights that each equation deserves are most of the work of ``attacks.recursive_analytic``. Where the gradients
of the kernels nearly determine the inputs of all layers but the first, activations come out so exact that equal
weights do: pixels that were bytes are off by far less than a level. The gradient of the answer tells if it is so.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from attacks.conv_chain import Activation, Chain
from attacks.layer_equations import LayerEquations, Precision, add_shared, layer_equations, ridge

Matrix = NDArray[np.float64]

WEAK = 30
"""Directions less certain by the kernel's gradient than so many times the layer's outputs are solved by these."""
REFITS = 3
"""Of these, each with the zeros that the last one showed."""


def equal_errors(
    chain: Chain,
    weights: list[Matrix],
    gradient: list[Matrix],
    features: Matrix,
    error: Matrix,
    noise: float,
    rng: np.random.Generator,
) -> tuple[Matrix, Matrix] | None:
    """The input ``[*input_shape]`` of the chain, and the error in each entry.

    ``None`` where these equations leave it open.

    Args:
        chain: The model.
        weights: Of the model.
        gradient: Of the loss by them.
        features: Input ``[features]`` of the dense layer.
        error: The loss's gradient by the logits, ``[classes]``.
        noise: Standard deviation of the gradient's error.
        rng: Draws the probes by which errors are estimated.
    """
    a, slopes, spread = features, weights[-2] @ error, noise / float(np.linalg.norm(error))
    try:
        for i in reversed(range(len(chain.convolutions))):
            known = layer_equations(chain, i, a, slopes, weights, gradient, noise)
            if not all(np.isfinite(part).all() for part in (known.aim, known.shared, known.right)):
                return None
            if i:
                a, spread = _activations(known, spread, chain.activation)
                slopes = known.slopes()
        x, precision = _pixels(known, spread)
    except np.linalg.LinAlgError:
        return None
    shape = chain.convolutions[0].inputs
    return x.reshape(shape), precision.stddevs(rng).reshape(shape)


def _activations(known: LayerEquations, spread: float, act: Activation) -> tuple[Matrix, float]:
    """Solution ``[places, channels]`` and the root mean square of its standard deviations.

    The layer's outputs, of standard deviation ``spread``, only tell what the kernel's gradient leaves open, in a
    few directions of ``[places]``; what else they would add is of the size of rounding. Where ``act``, which gave
    the layer its input, has no slope, that is zero, and tells as much.

    Raises:
        numpy.linalg.LinAlgError: More is left open than there are outputs.
    """
    channels = known.right.shape[1]
    values, directions = np.linalg.eigh(known.shared)
    strong = values > (WEAK * spread) ** -2
    basis, left = directions[:, strong], directions[:, ~strong]
    a = basis @ ((basis.T @ known.right) / values[strong, None])
    variance = float(np.sum(1 / values[strong]))
    if left.shape[1] * channels > np.count_nonzero(known.slope):
        raise np.linalg.LinAlgError("more unknown entries than outputs")
    if left.shape[1]:
        # Each direction in each channel as an input of its own: [positions, directions, channels, filters].
        images = np.tensordot(known.layer.patches(left), known.kernel, (1, 0))
        images *= known.slope[:, None, None] / spread
        rows = images.transpose(0, 3, 1, 2).reshape(known.aim.size, -1)
        rest = (known.aim - known.slope * known.layer.forward(known.kernel, a)) / spread
        normal = rows.T @ rows
        prior = np.repeat(np.maximum(values[~strong], 0), channels)
        normal[np.diag_indices_from(normal)] += prior + ridge(normal.diagonal())
        right = rows.T @ rest.reshape(-1) + (left.T @ known.right).reshape(-1)
        found, more = _by_normal(normal, right)
        whole = a + left @ found.reshape(-1, channels)
        precise = len(values) / variance if variance else 0.0
        for _ in range(REFITS):
            zeros = act.slope(act.allowed(whole)) == 0
            if not zeros.any():
                break
            with_zeros, aim = normal.copy(), right.copy()
            for c in range(channels):
                here = left[zeros[:, c]]
                with_zeros[c::channels, c::channels] += precise * here.T @ here
                aim[c::channels] -= precise * here.T @ a[zeros[:, c], c]
            found, more = _by_normal(with_zeros, aim)
            whole = a + left @ found.reshape(-1, channels)
        a = whole
        variance += more / channels
    return a, float(np.sqrt(variance / len(values)))


def _by_normal(normal: Matrix, right: Matrix) -> tuple[Matrix, float]:
    """Solution ``[n]`` of normal equations, and the sum of its variances."""
    root = scipy.linalg.cholesky(normal, lower=True, check_finite=False)
    white = scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=True, check_finite=False)
    return white.T @ (white @ right), float(np.sum(white**2))


def _pixels(known: LayerEquations, spread: float) -> tuple[Matrix, Precision]:
    """Solution ``[places · channels]`` by the layer's outputs and the kernel's gradient together."""
    normal = known.layer.normal(known.kernel, (known.slope / spread) ** 2)
    right = known.right + known.layer.backward(known.kernel, known.slope * known.aim / spread**2)
    add_shared(normal, known.shared)
    normal[np.diag_indices_from(normal)] += ridge(normal.diagonal())
    # Symmetric: the transpose is the order that LAPACK wants, and no copy.
    root = scipy.linalg.cholesky(normal.T, lower=True, overwrite_a=True, check_finite=False)
    x = np.asarray(scipy.linalg.cho_solve((root, True), right.reshape(-1), check_finite=False))
    return x, Precision(root.T)
