"""Recognise convolutions and a dense layer in a model whose inside is unknown, by trying what it could be."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.activations import ACTIVATIONS, Activation
from privfed.models.functional import Model

Array = NDArray[np.float64]

STRIDES = (1, 2, 3)
AGREES = 1e-9
"""Largest relative difference of logits at which a chain is taken to be the model."""


@dataclass(frozen=True)
class Convolution:
    """One convolution: its stride, zero padding at the top and left, and shapes ``(height, width, channels)``."""

    stride: int
    padding: tuple[int, int]
    kernel: tuple[int, int]
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]

    def taps(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """``(output position, kernel position, input position)`` of every product, positions counted by rows."""
        rows, columns = (
            _taps(self.outputs[i], self.kernel[i], self.inputs[i], self.stride, self.padding[i]) for i in (0, 1)
        )
        parts = []
        for axis, width in enumerate((self.outputs[1], self.kernel[1], self.inputs[1])):
            parts.append((rows[:, axis, None] * width + columns[None, :, axis]).reshape(-1))
        return parts[0], parts[1], parts[2]

    @cached_property
    def windows(self) -> NDArray[np.int64]:
        """Input positions of every output, ``[output positions, taps]``; in the padding it is their number."""
        output, tap, source = self.taps()
        places, taps = self.inputs[0] * self.inputs[1], self.kernel[0] * self.kernel[1]
        windows = np.full((self.outputs[0] * self.outputs[1], taps), places)
        windows[output, tap] = source
        return windows

    @cached_property
    def overlaps(self) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """For each tap the rows and columns of the outputs that meet an input there, and those of the inputs."""
        axes = []
        for i in (0, 1):
            found = _taps(self.outputs[i], self.kernel[i], self.inputs[i], self.stride, self.padding[i])
            axis = []
            for k in range(self.kernel[i]):
                here = found[found[:, 1] == k]
                (o, _, p), count = here[0] if len(here) else (0, k, 0), len(here)
                axis.append((slice(o, o + count), slice(p, p + count * self.stride, self.stride)))
            axes.append(axis)
        return [((y[0], x[0]), (y[1], x[1])) for y, x in itertools.product(*axes)]

    def patches(self, x: Array) -> Array:
        """What each output sees of ``x`` ``[input places, columns]``: ``[output positions, taps, columns]``."""
        return np.vstack([x, np.zeros((1, x.shape[1]), x.dtype)])[self.windows]

    def forward(self, kernel: Array, x: Array) -> Array:
        """``[output positions, filters]`` from ``x`` ``[input places, channels]``; without a bias."""
        return np.asarray(self.patches(x).reshape(len(self.windows), -1) @ kernel.reshape(-1, kernel.shape[2]))

    def backward(self, kernel: Array, delta: Array) -> Array:
        """The transpose of ``forward``, ``[input places, channels]``: from a loss's gradient by outputs to inputs.

        Args:
            kernel: ``[taps, channels, filters]``.
            delta: ``[output positions, filters]``.
        """
        products = delta.reshape(*self.outputs[:2], -1) @ kernel.transpose(0, 2, 1)[:, None]
        inputs = np.zeros((*self.inputs[:2], kernel.shape[1]), products.dtype)
        for product, (here, there) in zip(products, self.overlaps, strict=True):
            inputs[there] += product[here]
        return inputs.reshape(-1, kernel.shape[1])

    def matrix(self, kernel: Array) -> Array:
        """The convolution by ``kernel`` as a matrix from flat inputs to flat outputs, ``[outputs, inputs]``."""
        output, tap, source = self.taps()
        places, channels = self.inputs[0] * self.inputs[1], self.inputs[2]
        positions, filters = self.outputs[0] * self.outputs[1], self.outputs[2]
        matrix = np.zeros((positions, filters, places, channels), kernel.dtype)
        matrix[output, :, source, :] = kernel.reshape(-1, channels, filters)[tap].transpose(0, 2, 1)
        return matrix.reshape(positions * filters, places * channels)

    def normal(self, kernel: Array, weights: Array) -> Array:
        """``matrixᵀ diag(weights) matrix``, ``[inputs, inputs]``, without a product of large matrices.

        Two inputs meet in the few outputs whose windows hold both.

        Args:
            kernel: ``[taps, channels, filters]``.
            weights: ``[output positions, filters]``.
        """
        n, flat = int(np.prod(self.inputs)), kernel.reshape(-1, kernel.shape[2])
        products = (weights[:, None] * flat) @ flat.T
        sums: Any = np.bincount(self._meetings, products.reshape(-1), n * n + 1)
        return np.asarray(sums[:-1].reshape(n, n))

    @cached_property
    def _meetings(self) -> NDArray[np.int64]:
        """Places in ``normal`` of the pairs in ``[output positions, taps · channels, taps · channels]``, flat."""
        n, channels = int(np.prod(self.inputs)), self.inputs[2]
        entries = (self.windows[:, :, None] * channels + np.arange(channels)).reshape(len(self.windows), -1)
        one, other = entries[:, :, None], entries[:, None, :]
        return np.where((one < n) & (other < n), one * n + other, n * n).reshape(-1)

    def gram(self, delta: Array) -> Array:
        """``rowsᵀ rows`` of the ``rows`` ``[taps · filters, input places]`` that ``correlation`` has.

        Every tap adds the products of the same pairs of outputs, at places of its own.
        """
        pairs = (delta @ delta.T).reshape(self.outputs[:2] * 2)
        sums = np.zeros(self.inputs[:2] * 2, delta.dtype)
        for here, there in self.overlaps:
            sums[there * 2] += pairs[here * 2]
        return sums.reshape(self.inputs[0] * self.inputs[1], -1)

    def correlation(self, delta: Array) -> Array:
        """From one channel of the input to the gradient of its kernel, ``[taps, filters, input places]``.

        Args:
            delta: The loss's gradient by the outputs, ``[output positions, filters]``.
        """
        output, tap, source = self.taps()
        rows = np.zeros(
            (self.kernel[0] * self.kernel[1], delta.shape[1], self.inputs[0] * self.inputs[1]), delta.dtype
        )
        rows[tap, :, source] = delta[output]
        return rows


def _taps(outputs: int, kernel: int, inputs: int, stride: int, padding: int) -> NDArray[np.int64]:
    found = [
        (o, k, o * stride + k - padding)
        for o, k in itertools.product(range(outputs), range(kernel))
        if 0 <= o * stride + k - padding < inputs
    ]
    return np.array(found, np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class Chain:
    """Convolutions with one activation behind each, then a dense layer on their flat output."""

    convolutions: tuple[Convolution, ...]
    activation: Activation


@lru_cache(maxsize=32)
def find_chain(model: Model) -> Chain | None:
    """The chain that gives the model's own logits at random weights, or ``None``.

    The variables' shapes give the kernels; strides of 1 to 3 and the usual paddings (none, TensorFlow's ``SAME``,
    half the kernel on each side) are tried where they give the dense layer its number of inputs.
    """
    shapes = [spec.shape for spec in model.variables]
    kernels, biases = shapes[0:-2:2], shapes[1:-2:2]
    if len(model.input_shape) != 3 or len(shapes) < 4 or len(shapes) % 2 or len(shapes[-2]) != 2:
        return None
    if any(len(k) != 4 or b != k[-1:] for k, b in zip(kernels, biases, strict=True)):
        return None
    rng = np.random.default_rng(0xC4)
    weights = [
        rng.normal(0, 1 / np.sqrt(max(1, spec.size // spec.shape[-1])), spec.shape) for spec in model.variables
    ]
    x = rng.uniform(0, 1, model.input_shape)
    logits = _logits(model, weights, x)
    for convolutions in _geometries(model.input_shape, kernels, shapes[-2][0]):
        for activation in ACTIVATIONS:
            chain = Chain(convolutions, activation)
            if np.abs(forward(chain, weights, x) - logits).max() < AGREES * (1 + np.abs(logits).max()):
                return chain
    return None


def find_smooth_chain(model: Model) -> Chain | None:
    """As ``find_chain``, but ``None`` where the activation has kinks."""
    chain = find_chain(model)
    return chain if chain is not None and chain.activation.smooth else None


def _geometries(
    shape: tuple[int, ...], kernels: list[tuple[int, ...]], features: int
) -> list[tuple[Convolution, ...]]:
    partial: list[tuple[tuple[Convolution, ...], tuple[int, int, int]]]
    partial = [((), (shape[0], shape[1], shape[2]))]
    for height, width, channels, filters in kernels:
        longer = []
        for chain, (h, w, c) in partial:
            if c != channels:
                continue
            for stride in STRIDES:
                for top, bottom, left, right in _paddings(h, w, height, width, stride):
                    out_h = (h + top + bottom - height) // stride + 1
                    out_w = (w + left + right - width) // stride + 1
                    if min(out_h, out_w) > 0:
                        out = (out_h, out_w, filters)
                        layer = Convolution(stride, (top, left), (height, width), (h, w, c), out)
                        longer.append(((*chain, layer), out))
        partial = longer
    return [chain for chain, out in partial if int(np.prod(out)) == features]


def _paddings(h: int, w: int, kh: int, kw: int, stride: int) -> set[tuple[int, int, int, int]]:
    same = [max(0, (-(-n // stride) - 1) * stride + k - n) for n, k in ((h, kh), (w, kw))]
    return {
        (0, 0, 0, 0),
        (kh // 2, kh // 2, kw // 2, kw // 2),
        (same[0] // 2, same[0] - same[0] // 2, same[1] // 2, same[1] - same[1] // 2),
    }


def forward(chain: Chain, weights: list[Array], x: Array) -> Array:
    """Logits ``[classes]`` of one example ``[height, width, channels]``."""
    h = x.reshape(-1, x.shape[-1])
    for i, layer in enumerate(chain.convolutions):
        kernel = weights[2 * i].reshape(-1, *weights[2 * i].shape[2:])
        z = layer.forward(kernel, h) + weights[2 * i + 1]
        h = chain.activation.value(z)
    return np.asarray(h.reshape(-1) @ weights[-2] + weights[-1])


def _logits(model: Model, weights: list[Array], x: Array) -> Any:
    import tensorflow as tf

    return model.logits([tf.constant(w) for w in weights], tf.constant(x[None])).numpy()[0]
