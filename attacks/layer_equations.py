"""The linear equations of a convolution's input, and what their solution leaves uncertain.

What is known of a layer's output as a Gaussian, mean and inverse covariance, goes through the layer's weights to
its input, where the gradient of the kernel adds equations that are the same for every channel. A layer with more
inputs than outputs has few equations of the first kind, and is solved without a matrix of its inputs' size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from attacks.base import NotInvertible
from attacks.conv_chain import Chain, Convolution

Matrix = NDArray[np.float64]

RIDGE = 1e-15
"""Of the normal equations, relative to their largest diagonal entry."""
PRIOR_STDDEV = 1.0
"""Of an activation before anything is known about it."""
PROBES = 16
"""Random vectors by which the errors of a solution are estimated."""
FEW = 0.5
"""Up to so many rows for each input the solution goes by the rows."""
SETTLED = 1e-4
"""Squared distance from the equations' solution, in its standard deviations, at which the iteration ends."""
STEPS = 50
"""At most so many steps of conjugate gradients; rounding alone makes more than one necessary."""


@dataclass(frozen=True, eq=False)
class LayerEquations:
    """What is known of a convolution's input: ``slope · (kernel ∗ input) = aim``, and the kernel's gradient.

    Attributes:
        layer: The convolution's geometry.
        kernel: ``[taps, channels, filters]``.
        slope: Of the activation, ``[output positions, filters]``: an error in the output grows by the inverse's
            slope on the way through it, so that the equations are multiplied by this one.
        aim: Slope times pre-activation without the bias, ``[output positions, filters]``.
        delta: The loss's gradient by the pre-activations, ``[output positions, filters]``.
        shared: Matrix of the normal equations by the kernel's gradient, the same for every channel,
            ``[input places, input places]``.
        right: Their right-hand side, ``[input places, channels]``.
    """

    layer: Convolution
    kernel: Matrix
    slope: Matrix
    aim: Matrix
    delta: Matrix
    shared: Matrix
    right: Matrix

    def slopes(self) -> Matrix:
        """The loss's gradient by the input, ``[input places, channels]``."""
        return self.layer.backward(self.kernel, self.delta)


def layer_equations(
    chain: Chain,
    i: int,
    output: Matrix,
    slopes: Matrix,
    weights: list[Matrix],
    gradient: list[Matrix],
    noise: float,
) -> LayerEquations:
    """The equations of the input of convolution ``i``.

    Args:
        chain: The model.
        i: From 0 at the input.
        output: The convolution's activations, of any shape.
        slopes: The loss's gradient by them, of any shape.
        weights: Of the model.
        gradient: Of the loss by them.
        noise: Standard deviation of its error.
    """
    act, layer = chain.activation, chain.convolutions[i]
    positions = layer.outputs[0] * layer.outputs[1]
    a = act.allowed(output).reshape(positions, -1)
    slope = act.slope(a)
    delta = slopes.reshape(positions, -1) * slope
    kernel, target = (part.reshape(-1, *part.shape[2:]) for part in (weights[2 * i], gradient[2 * i]))
    # The error in ``delta`` itself is about as large as that of the gradient.
    scaled = delta / (2 * noise)
    shared, right = layer.gram(scaled), layer.backward(target / (2 * noise), scaled)
    return LayerEquations(
        layer, kernel, slope, (act.inverse(a) - weights[2 * i + 1]) * slope, delta, shared, right
    )


@dataclass(frozen=True, eq=False)
class Precision:
    """An inverse covariance ``rowsᵀ rows + (root rootᵀ ⊗ I)`` over places and, within each, channels.

    Attributes:
        rows: ``[k, places · channels]``; upper triangular, or its transpose is, where there is no ``root``.
        root: ``[places, places]``, lower triangular, the same for every channel; ``None``: all is in ``rows``.
        prior: The standard deviation of an entry by the ridge alone, of which no equation says anything.
    """

    rows: Matrix
    root: Matrix | None = None
    prior: float = PRIOR_STDDEV

    def whiten(self, x: Matrix) -> Matrix:
        """Columns ``[n, m]`` multiplied by a square root: ``zᵀ z`` is ``xᵀ precision x``."""
        if self.root is None:
            return np.asarray(scipy.linalg.blas.dtrmm(1.0, self.rows.T, x, lower=1, trans_a=1))
        flat = x.reshape(len(self.root), -1)
        return np.vstack([self.rows @ x, (self.root.T @ flat).reshape(x.shape)])

    def stddevs(self, rng: np.random.Generator, probes: int = PROBES) -> Matrix:
        """Of each entry ``[n]``, estimated from so many vectors of white noise; without ``root``."""
        # (rowsᵀ rows)⁻¹ is the covariance, so rows⁻¹ times white noise has it.
        white = rng.normal(size=(self.rows.shape[1], probes))
        errors = scipy.linalg.solve_triangular(self.rows, white, check_finite=False)
        return np.asarray(np.sqrt(np.mean(errors**2, axis=1)))


def solve(rows: Matrix, shared: Matrix, right: Matrix, *, dense: bool) -> tuple[Matrix, Precision]:
    """Solution ``[n]`` of ``(rowsᵀ rows + shared ⊗ I) x = right``, and the precision that it has.

    Where the equations leave something open it is drawn towards zero.

    Args:
        rows: ``[k, n]``; ``n`` counts the places and, within each, the channels.
        shared: ``[places, places]``, symmetric.
        right: ``[n]``.
        dense: Whether the precision has to be one without ``root``.

    Raises:
        NotInvertible: The equations are not finite.
    """
    places, n = len(shared), rows.shape[1]
    largest = (np.einsum("kn,kn->n", rows, rows).reshape(places, -1) + shared.diagonal()[:, None]).max()
    if not (np.isfinite(largest) and np.isfinite(right).all()):
        raise NotInvertible("the layers' equations are not finite: its activations are saturated")
    added = ridge(largest)
    shared = shared + added * np.eye(places)
    if not dense and len(rows) <= FEW * n:
        return _by_rows(rows, shared, right)
    normal = np.asarray(rows.T @ rows)
    add_shared(normal, shared)
    root = np.asarray(scipy.linalg.cholesky(normal.T, lower=True, overwrite_a=True, check_finite=False))
    return np.asarray(scipy.linalg.cho_solve((root, True), right, check_finite=False)), Precision(
        root.T, prior=added**-0.5
    )


def ridge(diagonal: Matrix) -> float:
    """What normal equations with this diagonal get added to it: a prior, and more than their rounding."""
    return float(PRIOR_STDDEV**-2 + RIDGE * np.max(diagonal))


def add_shared(normal: Matrix, shared: Matrix) -> None:
    """Add ``shared ⊗ I`` to ``normal`` ``[places · channels, places · channels]`` in place."""
    places, channels = len(shared), len(normal) // len(shared)
    blocks = normal.reshape(places, channels, places, channels)
    for c in range(channels):
        blocks[:, c, :, c] += shared


def _by_rows(rows: Matrix, shared: Matrix, right: Matrix) -> tuple[Matrix, Precision]:
    """As ``solve``, by Woodbury's identity; conjugate gradients take out what its differences lose."""
    root = np.asarray(scipy.linalg.cholesky(shared, lower=True, check_finite=False))
    places = len(root)

    def by_shared(x: Matrix) -> Matrix:
        return np.asarray(scipy.linalg.cho_solve((root, True), x.reshape(places, -1), check_finite=False)).ravel()

    columns = rows.reshape(len(rows), places, -1).transpose(1, 0, 2).reshape(places, -1)
    half = scipy.linalg.solve_triangular(root, columns, lower=True, check_finite=False)
    half = half.reshape(places, len(rows), -1).transpose(1, 0, 2).reshape(len(rows), -1)
    small = half @ half.T
    small[np.diag_indices_from(small)] += 1
    inner = scipy.linalg.cho_factor(small, lower=True, overwrite_a=True, check_finite=False)

    def precondition(x: Matrix) -> Matrix:
        first = by_shared(x)
        return first - by_shared(rows.T @ scipy.linalg.cho_solve(inner, rows @ first, check_finite=False))

    solution = precondition(right)
    rest = right - _times(rows, shared, solution)
    direction = z = precondition(rest)
    distance = float(rest @ z)
    for _ in range(STEPS):
        if not abs(distance) > SETTLED:
            break
        image = _times(rows, shared, direction)
        length = distance / float(direction @ image)
        solution = solution + length * direction
        rest = rest - length * image
        z = precondition(rest)
        distance, before = float(rest @ z), distance
        direction = z + (distance / before) * direction
    return solution, Precision(rows, root)


def _times(rows: Matrix, shared: Matrix, x: Matrix) -> Matrix:
    return np.asarray(rows.T @ (rows @ x) + (shared @ x.reshape(len(shared), -1)).ravel())
