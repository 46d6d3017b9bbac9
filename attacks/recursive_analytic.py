"""Exact inversion of one example through convolutions, layer by layer from the last: recursive analytic attack.

R-GAP (Zhu & Blaschko 2021, arXiv:2010.07733, section 3): where activations are invertible, the output of a layer
is known from the input of the next, so the layer's own input solves linear equations of two kinds: the layer's
weights applied to it give that output, and its product with the back-propagated gradient is the gradient of the
weights. Strided convolutions, which have too few of the first kind, have enough of the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.conv_chain import Chain, Convolution, find_chain
from attacks.gradient import estimate_gradient
from attacks.layer_equations import Precision, solve
from attacks.pixels import LEVELS, on_grid, snap
from privfed.models.functional import Model, cross_entropy
from privfed.transcript import Observer, View

Matrix = NDArray[np.float64]

ONE_EXAMPLE = 1e-2
"""Above this share of the last layer's gradient left over by rank one, more than one example is behind it."""
INSIDE = 1e-7
"""Distance that activations keep from the ends of their range, where the inverse has no slope."""
FINEST = 1e-13
"""No gradient or activation is taken to be more precise than this."""
DOUBTFUL = 30
"""At most so many pixels are tried at the levels beside their own."""
DOUBT = 0.2
"""Standard deviation of a pixel's error, in levels, from which it is tried."""
PROBES = 16
"""Random vectors by which the errors of a solution are estimated."""


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
        """As ``Attack.invert``; ``rng`` draws the probes by which errors are estimated."""
        observation, model = view.observations[index], view.model
        chain = find_chain(model)
        if chain is None:
            raise NotInvertible(
                f"model {model.name} is no chain of convolutions and a dense layer with sigmoid or tanh between"
            )
        weights = model.unflatten(np.asarray(observation.weights, np.float64))
        estimate = estimate_gradient(observation, view.plan)
        features, error, label, noise = _last_layer(model, weights, model.unflatten(estimate.vector))
        # Clipping and unknown learning rates leave a positive factor open; the last layer has told it.
        scale = float(np.linalg.norm(error) / np.linalg.norm(model.unflatten(estimate.vector)[-1]))
        gradient = [scale * np.asarray(g, np.float64) for g in model.unflatten(estimate.vector)]
        noise = max(noise * scale, FINEST * max(float(np.abs(g).max()) for g in gradient))
        x, uncertain = _invert_chain(chain, weights, gradient, features, error, noise, rng)
        if not np.isfinite(x).all():
            raise NotInvertible("the layers' equations have no finite solution")
        image, residual, evaluations = _settled(
            x, uncertain, lambda image: _residual(model, weights, image, label, estimate.vector)
        )
        return Guess(image[None], np.array([label], np.int64), residual, evaluations)


def _settled(x: Matrix, uncertain: Matrix, residual: Callable[[Matrix], float]) -> tuple[Matrix, float, int]:
    """The image of bytes, if it is one, its residual, and how many were taken.

    A pixel whose error may be half a level has perhaps gone to the wrong one: the gradient decides.
    """
    image = snap(x[None])[0]
    lowest, evaluations = residual(image), 1
    if not on_grid(x[None])[0]:
        return image, lowest, evaluations
    doubtful = [p for p in np.argsort(-uncertain, axis=None)[:DOUBTFUL] if uncertain.flat[p] * LEVELS > DOUBT]
    for flat in doubtful:
        pixel = np.unravel_index(flat, x.shape)
        side = 1 if x[pixel] >= image[pixel] else -1
        for step in (side, -side):
            other = image.copy()
            other[pixel] = np.clip(image[pixel] + step / LEVELS, 0, 1)
            there = residual(other)
            evaluations += 1
            if there < lowest:
                image, lowest = other, there
                break
    return image, lowest, evaluations


def _last_layer(model: Model, weights: list[Matrix], gradient: list[Matrix]) -> tuple[Matrix, Matrix, int, float]:
    """Input ``[features]`` of the dense layer at the end, error ``[classes]`` of the logits, label, and noise.

    The noise is the standard deviation of an entry of the gradient about what one example would give.
    """
    kernel, bias = (np.asarray(g, np.float64) for g in gradient[-2:])
    power = float(bias @ bias)
    if power == 0:
        raise NotInvertible("the gradient of the last layer's bias is zero: there is nothing to divide by")
    features = kernel @ bias / power
    left_over = float(np.linalg.norm(kernel - np.outer(features, bias)))
    rest = left_over / float(np.linalg.norm(kernel))
    if rest > ONE_EXAMPLE:
        raise NotInvertible(
            f"{rest:.0%} of the last layer's gradient is not one example's: there are several, or steps, or noise"
        )
    label = int(bias.argmin())
    logits = features @ weights[-2] + weights[-1]
    error = np.exp(logits - logits.max())
    error /= error.sum()
    error[label] -= 1
    return features, error, label, left_over / float(np.sqrt(kernel.size - len(features)))


def _invert_chain(
    chain: Chain,
    weights: list[Matrix],
    gradient: list[Matrix],
    features: Matrix,
    error: Matrix,
    noise: float,
    rng: np.random.Generator,
) -> tuple[Matrix, Matrix]:
    """The input ``[*input_shape]`` of the chain that has ``features`` at its end, and the error in each entry."""
    act = chain.activation
    a, slopes = features, weights[-2] @ error
    precision = Precision(np.eye(len(features)) * (float(np.linalg.norm(error)) / noise))
    for i in reversed(range(len(chain.convolutions))):
        layer = chain.convolutions[i]
        positions = layer.outputs[0] * layer.outputs[1]
        a = np.clip(a, act.low + INSIDE, act.high - INSIDE).reshape(positions, -1)
        slope = act.slope(a)
        delta = slopes.reshape(positions, -1) * slope
        kernel = weights[2 * i].reshape(-1, *weights[2 * i].shape[2:])
        # An error in an activation grows by the inverse's slope on the way through it.
        rows = precision.whiten(layer.matrix(kernel) * slope.reshape(-1, 1))
        aim = precision.whiten(((act.inverse(a) - weights[2 * i + 1]) * slope).reshape(-1, 1))
        shared, right = _kernel_equations(layer, delta, gradient[2 * i].reshape(kernel.shape), noise)
        a, precision = solve(rows, shared, right + rows.T @ aim[:, 0], dense=i == 0)
        if i:
            output, tap, source = layer.taps()
            slopes = np.zeros((layer.inputs[0] * layer.inputs[1], layer.inputs[2]))
            for k in range(len(kernel)):
                here = tap == k
                # Within one position of the kernel no input occurs twice.
                slopes[source[here]] += delta[output[here]] @ kernel[k].T
    shape = chain.convolutions[0].inputs
    return a.reshape(shape), precision.stddevs(rng.normal(size=(len(a), PROBES))).reshape(shape)


def _kernel_equations(layer: Convolution, delta: Matrix, target: Matrix, noise: float) -> tuple[Matrix, Matrix]:
    """The normal equations of a convolution's input by the gradient of its kernel.

    Args:
        layer: Its geometry.
        delta: The loss's gradient by the outputs, ``[output positions, filters]``.
        target: The loss's gradient by the kernel, the input times ``delta``: ``[taps, channels, filters]``.
        noise: Standard deviation of its error.

    Returns:
        Their matrix, the same for every channel of the input, ``[places, places]``; and the right-hand side
        ``[n]``, where ``n`` counts the input's places and, within each, its channels.
    """
    places, channels = layer.inputs[0] * layer.inputs[1], layer.inputs[2]
    # The error in ``delta`` itself is about as large as that of the gradient.
    rows = layer.correlation(delta).reshape(-1, places) / (2 * noise)
    aim = target.transpose(0, 2, 1).reshape(-1, channels) / (2 * noise)
    return np.asarray(rows.T @ rows), np.asarray((rows.T @ aim).reshape(-1))


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
