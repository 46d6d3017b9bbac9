"""What follows a model's first dense layer, found by what the gradient does, as the model itself is opaque."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.models.functional import Model, cross_entropy

MOST_CLASSES = 100
"""Gradients of the logits are taken one class at a time, up to so many."""


@lru_cache(maxsize=32)
def relu_follows(model: Model) -> bool:
    """Whether a ReLU follows the first dense layer: the gradient is exactly zero where its output is negative.

    Args:
        model: With ``dense_input``.
    """
    import tensorflow as tf

    if model.dense_input is None:
        raise ValueError(f"model {model.name} has no dense layer on its raw input")
    kernel, bias = model.dense_input
    rng = np.random.default_rng(0x2E1)
    weights = [
        rng.normal(0, 1 / np.sqrt(max(1, spec.size // spec.shape[-1])), spec.shape) for spec in model.variables
    ]
    x = rng.uniform(0, 1, (1, *model.input_shape))
    variables = [tf.constant(w) for w in weights]
    with tf.GradientTape() as tape:
        tape.watch(variables[bias])
        loss = cross_entropy(model.logits(variables, tf.constant(x)), tf.constant([0]))
    gradient = tape.gradient(loss, variables[bias])
    off = x.reshape(-1) @ weights[kernel].reshape(x.size, -1) + weights[bias] < 0
    # Of a ReLU every unit below zero, and hardly any above: those that the layers behind leave unused.
    return gradient is not None and not gradient.numpy()[off].any() and bool(gradient.numpy()[~off].any())


def input_gradients(
    model: Model, weights: NDArray[Any], images: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Of each example's own loss, for every label it could have: ``[classes, k, inputs]``.

    Behind a first dense layer of kernel ``W`` this is ``W δ``, where ``δ`` is the gradient of its units.

    Returns:
        ``None`` when there are more than ``MOST_CLASSES`` classes.
    """
    import tensorflow as tf

    if model.classes > MOST_CLASSES:
        return None
    variables = [tf.constant(part) for part in model.unflatten(np.asarray(weights, np.float64))]
    x = tf.constant(images)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        logits = model.logits(variables, x)
        scores = [logits[:, c] for c in range(model.classes)]
    slopes = np.stack([tape.gradient(score, x).numpy().reshape(len(images), -1) for score in scores])
    probabilities = tf.nn.softmax(logits).numpy().T
    mean = np.sum(probabilities[..., None] * slopes, axis=0)
    return np.asarray(mean[None] - slopes)
