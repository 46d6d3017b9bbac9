"""Exact inversion of one example through convolutions, layer by layer from the last: recursive analytic attack.

R-GAP (Zhu & Blaschko 2021, arXiv:2010.07733, section 3): where activations are invertible, the output of a layer
is known from the input of the next, so the layer's own input solves linear equations of two kinds: the layer's
weights applied to it give that output, and its product with the back-propagated gradient is the gradient of the
weights. Strided convolutions, which have too few of the first kind, have enough of the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.conv_chain import Chain, Convolution, find_chain
from attacks.gradient import estimate_gradient
from attacks.pixels import snap
from privfed.models.functional import Model, cross_entropy
from privfed.transcript import Observer, View

Matrix = NDArray[np.float64]

ONE_EXAMPLE = 1e-2
"""Above this share of the last layer's gradient left over by rank one, more than one example is behind it."""
INSIDE = 1e-7
"""Distance that activations keep from the ends of their range, where the inverse has no slope."""
RIDGE = 1e-13
"""Of the normal equations, relative to their largest diagonal entry."""


@dataclass(frozen=True)
class RecursiveAnalytic:
    """Inverts a chain of convolutions with invertible activations and a dense layer at its end."""

    name: ClassVar[str] = "recursive_analytic"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=(
            "the model and the weights the update started from",
            "that pixels may have been bytes",
        ),
        assumptions=(
            "one example and one local step",
            "convolutions and a dense layer, with biases and sigmoid or tanh between them, and no pooling",
            "no noise beyond that of rounding",
        ),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; it draws nothing from ``rng``."""
        observation, model = view.observations[index], view.model
        chain = find_chain(model)
        if chain is None:
            raise NotInvertible(
                f"model {model.name} is no chain of convolutions and a dense layer with sigmoid or tanh between"
            )
        weights = model.unflatten(np.asarray(observation.weights, np.float64))
        estimate = estimate_gradient(observation, view.plan)
        features, error, label = _last_layer(model, weights, model.unflatten(estimate.vector))
        # Clipping and unknown learning rates leave a positive factor open; the last layer has told it.
        scale = float(np.linalg.norm(error) / np.linalg.norm(model.unflatten(estimate.vector)[-1]))
        gradient = [scale * np.asarray(g, np.float64) for g in model.unflatten(estimate.vector)]
        x = _invert_chain(chain, weights, gradient, features, weights[-2] @ error)
        if not np.isfinite(x).all():
            raise NotInvertible("the layers' equations have no finite solution")
        images = snap(x[None])
        residual = _residual(model, weights, images[0], label, estimate.vector)
        return Guess(images, np.array([label], np.int64), residual, evaluations=1)


def _last_layer(model: Model, weights: list[Matrix], gradient: list[Matrix]) -> tuple[Matrix, Matrix, int]:
    """Input ``[features]`` of the dense layer at the end, the error ``[classes]`` of the logits, and the label."""
    kernel, bias = (np.asarray(g, np.float64) for g in gradient[-2:])
    power = float(bias @ bias)
    if power == 0:
        raise NotInvertible("the gradient of the last layer's bias is zero: there is nothing to divide by")
    features = kernel @ bias / power
    rest = float(np.linalg.norm(kernel - np.outer(features, bias)) / np.linalg.norm(kernel))
    if rest > ONE_EXAMPLE:
        raise NotInvertible(
            f"{rest:.0%} of the last layer's gradient is not one example's: there are several, or steps, or noise"
        )
    label = int(bias.argmin())
    logits = features @ weights[-2] + weights[-1]
    error = np.exp(logits - logits.max())
    error /= error.sum()
    error[label] -= 1
    return features, error, label


def _invert_chain(
    chain: Chain, weights: list[Matrix], gradient: list[Matrix], features: Matrix, slopes: Matrix
) -> Matrix:
    """The input ``[*input_shape]``; ``slopes`` ``[features]`` is the loss's gradient by the last activations."""
    act = chain.activation
    a = features
    for i in reversed(range(len(chain.convolutions))):
        layer = chain.convolutions[i]
        positions = layer.outputs[0] * layer.outputs[1]
        a = np.clip(a, act.low + INSIDE, act.high - INSIDE).reshape(positions, -1)
        delta = slopes.reshape(positions, -1) * act.slope(a)
        kernel, bias = weights[2 * i], weights[2 * i + 1]
        kernel = kernel.reshape(-1, *kernel.shape[2:])
        taps = layer.taps()
        target = gradient[2 * i].reshape(kernel.shape)
        # An error in an activation grows by the inverse's slope on the way through it.
        trust = act.slope(a) / act.slope(a).max()
        a = _layer_input(layer, taps, kernel, act.inverse(a) - bias, trust, delta, target)
        if i:
            output, tap, source = taps
            slopes = np.zeros((layer.inputs[0] * layer.inputs[1], layer.inputs[2]))
            for k in range(len(kernel)):
                here = tap == k
                # Within one position of the kernel no input occurs twice.
                slopes[source[here]] += delta[output[here]] @ kernel[k].T
    return a.reshape(chain.convolutions[0].inputs)


def _layer_input(
    layer: Convolution,
    taps: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    kernel: Matrix,
    outputs: Matrix,
    trust: Matrix,
    delta: Matrix,
    target: Matrix,
) -> Matrix:
    """Least squares for a convolution's input ``[positions, channels]``.

    Args:
        layer: Its geometry.
        taps: Of ``layer``.
        kernel: ``[taps, channels, filters]``.
        outputs: What the kernel makes of the input, ``[output positions, filters]``.
        trust: Weight of each of these equations, at most 1.
        delta: The loss's gradient by the outputs.
        target: The loss's gradient by the kernel, the input times ``delta``: ``[taps, channels, filters]``.
    """
    output, tap, source = taps
    places, channels = layer.inputs[0] * layer.inputs[1], layer.inputs[2]
    filters = layer.outputs[2]
    forward = np.zeros((len(outputs), filters, places, channels))
    forward[output, :, source, :] = kernel[tap].transpose(0, 2, 1)
    rows = forward.reshape(-1, places * channels) * trust.reshape(-1, 1)
    # The gradient's equations are the same for every channel of the input.
    backward = np.zeros((len(kernel), filters, places))
    backward[tap, :, source] = delta[output]
    backward = backward.reshape(-1, places)
    size = float(np.abs(backward).max())
    backward = backward / (size or 1.0)
    aim = target.transpose(0, 2, 1).reshape(-1, channels) / (size or 1.0)
    normal: Matrix = np.asarray(rows.T @ rows, np.float64)
    blocks = normal.reshape(places, channels, places, channels)
    shared = backward.T @ backward
    for c in range(channels):
        blocks[:, c, :, c] = blocks[:, c, :, c] + shared
    right = rows.T @ (outputs * trust).reshape(-1) + (backward.T @ aim).reshape(-1)
    ridge = RIDGE * float(normal.diagonal().max())
    normal[np.diag_indices_from(normal)] = normal.diagonal() + ridge
    factor = scipy.linalg.cho_factor(normal, overwrite_a=True, check_finite=False)
    return np.asarray(scipy.linalg.cho_solve(factor, right, check_finite=False)).reshape(places, channels)


def _residual(model: Model, weights: list[Matrix], x: Matrix, label: int, vector: Matrix) -> float:
    """The sine of the angle between the gradient of the answer and the one observed."""
    import tensorflow as tf

    variables = [tf.constant(w) for w in weights]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss = cross_entropy(model.logits(variables, tf.constant(x[None])), tf.constant([label]))
    parts = tape.gradient(loss, variables)
    ours = np.concatenate([part.numpy().reshape(-1) for part in parts])
    ours = ours / max(float(np.linalg.norm(ours)), 1e-300)
    theirs = vector / np.linalg.norm(vector)
    return float(np.linalg.norm(theirs - (ours @ theirs) * ours))
