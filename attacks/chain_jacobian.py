"""How the gradient of one example changes with its pixels, for a chain of convolutions: written out by hand.

The same numbers as from forward-mode differentiation of the model, one pixel after another
(``attacks.gauss_newton.jacobian_graph``), in a handful of matrix products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.conv_chain import Chain
from privfed.models.functional import Model

Array = NDArray[Any]


class ChainJacobian:
    """Of one model at given weights, in single precision."""

    def __init__(self, chain: Chain, model: Model, weights: NDArray[np.float64]) -> None:
        self._chain = chain
        parts: list[Array] = [np.asarray(part, np.float32) for part in model.unflatten(weights)]
        self._biases = parts[1:-2:2]
        self._matrices = [
            layer.matrix(kernel) for layer, kernel in zip(chain.convolutions, parts[:-2:2], strict=True)
        ]
        self._dense, self._dense_bias = parts[-2:]

    def __call__(
        self, image: NDArray[np.float64], which: NDArray[np.int64], label: NDArray[np.float64]
    ) -> tuple[Array, Array]:
        """Gradient ``[d]`` and its derivatives by some pixels, ``[k, d]``.

        Args:
            image: One example's pixels ``[n]``.
            which: The pixels ``[k]`` that the gradient is derived by.
            label: Probabilities ``[classes]``.
        """
        act, layers = self._chain.activation, self._chain.convolutions
        values: list[Array] = [image.astype(np.float32)]
        moves: list[Array] = [np.zeros((0, 0), np.float32)]
        slopes, bends = [], []
        for i, (matrix, bias, layer) in enumerate(zip(self._matrices, self._biases, layers, strict=True)):
            places = layer.outputs[0] * layer.outputs[1]
            z = matrix @ values[-1] + np.tile(bias, places)
            a = act.value(z)
            # Derivatives of the pre-activations by the pixels, [k, outputs]: those of the pixels are unit vectors.
            dz = moves[-1] @ matrix.T if i else matrix.T[which]
            slope = act.slope(a)
            slopes.append(slope)
            bends.append(act.bend(a) * dz)
            values.append(a)
            moves.append(slope * dz)
        logits = values[-1] @ self._dense + self._dense_bias
        p = np.exp(logits - logits.max())
        p /= p.sum()
        error = p - label.astype(np.float32)
        dlogits = moves[-1] @ self._dense
        derror = p * (dlogits - (dlogits @ p)[:, None])
        count = len(which)
        dkernel = moves[-1][:, :, None] * error + values[-1][:, None] * derror[:, None, :]
        columns = [derror, dkernel.reshape(count, -1)]
        gradient = [error, np.outer(values[-1], error).reshape(-1)]
        back, dback = self._dense @ error, derror @ self._dense.T
        for i in reversed(range(len(layers))):
            layer = layers[i]
            filters, channels = layer.outputs[2], layer.inputs[2]
            delta = back * slopes[i]
            ddelta = dback * slopes[i] + back * bends[i]
            rows = layer.correlation(delta.reshape(-1, filters))
            output, tap, source = layer.taps()
            patches = np.zeros((rows.shape[0], channels, len(delta) // filters), np.float32)
            patches[tap, :, output] = values[i].reshape(-1, channels)[source]
            # [k, filters, taps · channels], and what the changed input adds to it.
            flat = patches.reshape(-1, patches.shape[2])
            change = np.matmul(flat, ddelta.reshape(count, -1, filters)).reshape(count, -1, channels, filters)
            if i:
                moved = (
                    moves[i].reshape(count, -1, channels).transpose(0, 2, 1) @ rows.reshape(-1, rows.shape[2]).T
                )
                change += moved.reshape(count, channels, -1, filters).transpose(0, 2, 1, 3)
            else:
                pixel, channel = np.divmod(which, channels)
                change[np.arange(count), :, channel] += rows[:, :, pixel].transpose(2, 0, 1)
            columns += [ddelta.reshape(count, -1, filters).sum(1), change.reshape(count, -1)]
            gradient += [delta.reshape(-1, filters).sum(0), (flat @ delta.reshape(-1, filters)).reshape(-1)]
            if i:
                back, dback = delta @ self._matrices[i], ddelta @ self._matrices[i]
        return np.concatenate(gradient[::-1]), np.concatenate(columns[::-1], axis=1)
