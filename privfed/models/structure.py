"""Find the layers that attacks build on, in models whose inside is unknown, by what their gradients do."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from privfed.models.functional import Model, cross_entropy

_TOLERANCE = 1e-3


def find_dense_input(model: Model) -> tuple[int, int] | None:
    """Kernel and bias of a dense layer on the raw input, if the model has one.

    Such a layer is told by its gradient on one example: ``dL/dW`` is the outer product of the flat input with
    ``dL/db`` (Phong et al. 2018, section 3), and of no permutation, scaling or feature of it.
    """
    rng = np.random.default_rng(0x0D)
    size = int(np.prod(model.input_shape, dtype=np.int64))
    x = rng.uniform(0.1, 1.0, (1, *model.input_shape)).astype(np.float32)
    weights = _random_weights(model, rng)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = cross_entropy(model.logits(weights, tf.constant(x)), tf.constant([0]))
    gradients = tape.gradient(loss, weights)
    shapes = [spec.shape for spec in model.variables]
    for k, kernel in enumerate(shapes):
        if len(kernel) != 2 or kernel[0] != size or gradients[k] is None:
            continue
        for b, bias in enumerate(shapes):
            if bias != kernel[1:] or gradients[b] is None:
                continue
            outer = np.outer(x.reshape(-1), gradients[b].numpy())
            error = np.abs(gradients[k].numpy() - outer).max()
            if np.abs(outer).max() > 0 and error <= _TOLERANCE * np.abs(outer).max():
                return k, b
    return None


def find_output_bias(model: Model) -> int | None:
    """Index of a bias ``[classes]`` that adds to the logits unchanged, if the model has one."""
    rng = np.random.default_rng(0x0B)
    x = tf.constant(rng.uniform(0, 1, (2, *model.input_shape)).astype(np.float32))
    weights = _random_weights(model, rng)
    logits = model.logits(weights, x).numpy()
    shift = rng.normal(size=model.classes).astype(np.float32)
    for index in reversed(range(len(weights))):
        if model.variables[index].shape != (model.classes,):
            continue
        moved = [*weights]
        moved[index] = weights[index] + shift
        change = model.logits(moved, x).numpy() - logits
        if np.abs(change - shift).max() <= _TOLERANCE * (1 + np.abs(logits).max()):
            return index
    return None


def find_embedding(model: Model) -> int | None:
    """Index of a table of which each token of a window takes its row, if the model has one.

    It is told by its gradient on a window of one token, which is zero in all other rows.
    """
    if len(model.input_shape) != 1:
        return None
    weights = _random_weights(model, np.random.default_rng(0x0E))
    candidates: set[int] | None = None
    for token in (1, 2):
        x = tf.constant(np.full((1, *model.input_shape), token / 255, np.float32))
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = cross_entropy(model.logits(weights, x), tf.constant([0]))
        gradients = tape.gradient(loss, weights)
        moved = {
            index
            for index, (gradient, spec) in enumerate(zip(gradients, model.variables, strict=True))
            if gradient is not None
            and len(spec.shape) == 2
            and spec.shape[0] > token
            and np.flatnonzero(np.abs(tf.convert_to_tensor(gradient).numpy()).sum(1)).tolist() == [token]
        }
        candidates = moved if candidates is None else candidates & moved
    return min(candidates) if candidates else None


def _random_weights(model: Model, rng: np.random.Generator) -> list[tf.Tensor]:
    weights = []
    for spec in model.variables:
        fan_in = spec.size // spec.shape[-1] if spec.shape else 1
        # Small enough that no unit saturates, whatever the fan-in.
        weights.append(tf.constant(rng.normal(0, 1 / np.sqrt(fan_in), spec.shape), tf.float32))
    return weights
