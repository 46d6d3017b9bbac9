"""The input of a chain of convolutions from its equations taken as equally uncertain: a fast first answer.

The weights that each equation deserves are most of the work of ``attacks.recursive_analytic``. Where the gradients
of the kernels nearly determine the inputs of all layers but the first, activations come out so exact that equal
weights do: pixels that were bytes are off by far less than a level. The gradient of the answer tells if it is so.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from attacks.activations import FAINT, Activation
from attacks.conv_chain import Chain
from attacks.layer_equations import LayerEquations, Precision, add_shared, layer_equations, ridge

Matrix = NDArray[np.float64]

WEAK = 30
"""Directions less certain by the kernel's gradient than so many times the layer's outputs are solved by these."""
REFITS = 3
"""Of these, each with the zeros that the last one showed."""
VAGUE = 0.03
"""Share of the ridge's standard deviation from which on a pixel is not determined by the equations alone."""
SWITCHES = 30
"""At most so many outputs near zero are switched on or off."""
EXPLAINS = 0.5
"""Share of what is left of a filter's gradient that one of them has to explain, as squares."""
MATTERS = 1e-4
"""Share of all of that gradient that it has to be: black windows leave it open, and without consequence."""
BARELY = 1e-12
"""Value of an output that is on although the equations of the next layer have it below zero."""


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
            elif not chain.activation.smooth:
                right = _switched(known, spread, a, slopes, gradient[0])
                known = layer_equations(chain, i, right, slopes, weights, gradient, noise)
        x, precision = _pixels(known, spread)
    except np.linalg.LinAlgError:
        return None
    shape, uncertain = chain.convolutions[0].inputs, precision.stddevs(rng)
    if uncertain.max() > VAGUE * precision.prior:
        return None
    return x.reshape(shape), uncertain.reshape(shape)


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


def _switched(known: LayerEquations, spread: float, outputs: Matrix, slopes: Matrix, gradient: Matrix) -> Matrix:
    """A rectifier's ``outputs``, those near zero on or off as the gradient of the first kernel has it.

    The others by themselves nearly determine the pixels. By these an output that is on adds a known share to that
    gradient, and it is on if that explains most of what would be left.
    """
    shape = known.slope.shape
    near = np.abs(outputs.reshape(shape)) < FAINT * max(-float(outputs.min()), 0.0)
    sure = known.slope * ~near
    normal = known.layer.normal(known.kernel, (sure / spread) ** 2)
    normal[np.diag_indices_from(normal)] += ridge(normal.diagonal())
    right = known.layer.backward(known.kernel, sure * known.aim / spread**2).reshape(-1)
    x = scipy.linalg.cho_solve(scipy.linalg.cho_factor(normal, lower=True, check_finite=False), right)
    patches = known.layer.patches(x.reshape(-1, known.kernel.shape[1])).reshape(len(known.layer.windows), -1)
    left = gradient.reshape(patches.shape[1], -1) - patches.T @ known.delta
    on, power = known.slope > 0, np.sum(patches**2, axis=1)
    least = MATTERS**2 * np.sum(gradient.reshape(left.shape) ** 2, axis=0)
    for _ in range(SWITCHES):
        change = slopes.reshape(shape) * np.where(on, -1.0, 1.0) * near
        gain = change * (2 * patches @ left - change * power[:, None])
        beyond = gain - np.maximum(EXPLAINS * np.sum(left**2, axis=0), least)
        place, unit = np.unravel_index(int(beyond.argmax()), shape)
        if beyond[place, unit] <= 0:
            break
        left[:, unit] -= change[place, unit] * patches[place]
        on[place, unit] = not on[place, unit]
    return np.where(on, np.maximum(outputs.reshape(shape), BARELY), 0.0)


def _pixels(known: LayerEquations, spread: float) -> tuple[Matrix, Precision]:
    """Solution ``[places · channels]`` by the layer's outputs and the kernel's gradient together."""
    normal = known.layer.normal(known.kernel, (known.slope / spread) ** 2)
    right = known.right + known.layer.backward(known.kernel, known.slope * known.aim / spread**2)
    add_shared(normal, known.shared)
    added = ridge(normal.diagonal())
    normal[np.diag_indices_from(normal)] += added
    # Symmetric: the transpose is the order that LAPACK wants, and no copy.
    root = scipy.linalg.cholesky(normal.T, lower=True, overwrite_a=True, check_finite=False)
    x = np.asarray(scipy.linalg.cho_solve((root, True), right.reshape(-1), check_finite=False))
    return x, Precision(root.T, prior=added**-0.5)
