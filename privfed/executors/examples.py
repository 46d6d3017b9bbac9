"""Per-example clipping inside a graph: the sum of clipped gradients of one step of DP-SGD, and its noise.

Dense models need no single gradient: that of example ``i`` in a dense layer is ``aᵢ dᵢᵀ``, so its squared norm
is ``|aᵢ|²·|dᵢ|²``, and the clipped sum one product with scaled ``d`` (Goodfellow 2015). Other models make the
gradients of a batch one after another, in a loop of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from privfed.executors.accumulate import add_contribution, clip_factor, squared_norm
from privfed.executors.dense import dense_layers, dense_widths
from privfed.federated.client_work import LocalTraining
from privfed.models.functional import Model


def noised_gradients(
    model: Model, training: LocalTraining, weights: Sequence[Any], x: Any, y: Any, noise: Sequence[Any]
) -> tuple[list[Any], Any, Any]:
    """Sum of the clipped gradients of a batch with ``noise`` on it, over the batch size.

    An example whose gradient is not finite adds nothing.

    Args:
        model: What is trained.
        training: With DP-SGD; in secure mode sums are made in float64 and rounded to its grid.
        weights: One tensor for each variable.
        x: Inputs ``[batch, *input_shape]``; the batch may be empty.
        y: Class numbers ``[batch]``.
        noise: One tensor for each variable, float64 in secure mode.

    Returns:
        One float32 tensor for each variable, the sum of the losses and the count of right answers.
    """
    example = training.example
    assert example is not None  # else there is nothing to clip to
    dtype = tf.float64 if example.secure else tf.float32
    clip_norm = tf.constant(example.clip_to(model.dimension), tf.float64)
    way = _dense_sums if dense_widths(model) is not None else _looped_sums
    sums, loss, right = way(model, weights, x, y, clip_norm, dtype)
    if example.secure:
        grid = tf.constant(example.grid, tf.float64)
        sums = [tf.round(part / grid) * grid for part in sums]
    size = training.batch_size
    noised = [tf.cast(part + extra, tf.float32) / size for part, extra in zip(sums, noise, strict=True)]
    return noised, loss, right


def _dense_sums(
    model: Model, weights: Sequence[Any], x: Any, y: Any, clip_norm: Any, dtype: Any
) -> tuple[list[Any], Any, Any]:
    losses, right, logits = _losses(model, weights, x, y)
    layers = dense_layers(weights, x, logits)
    assert layers is not None  # asked before this way was chosen
    derivatives = tf.gradients(losses, [layer.outputs for layer in layers], unconnected_gradients="zero")
    squared = tf.constant(0.0, tf.float64)
    for layer, d in zip(layers, derivatives, strict=True):
        squared += (_squares(layer.inputs) + (layer.bias is not None)) * _squares(d)
    finite = tf.math.is_finite(squared)[:, None]
    factor = tf.cast(clip_factor(tf.sqrt(squared), clip_norm, model.dimension), tf.float32)[:, None]

    def clean(rows: Any) -> Any:
        return tf.where(finite, rows, tf.zeros_like(rows))

    sums: list[Any] = [None] * len(model.variables)
    for layer, d in zip(layers, derivatives, strict=True):
        scaled = tf.cast(clean(d * factor), dtype)
        sums[layer.kernel] = tf.matmul(tf.cast(clean(layer.inputs), dtype), scaled, transpose_a=True)
        if layer.bias is not None:
            sums[layer.bias] = tf.reduce_sum(scaled, 0)
    return sums, tf.cast(tf.reduce_sum(losses), tf.float64), tf.reduce_sum(right)


def _looped_sums(
    model: Model, weights: Sequence[Any], x: Any, y: Any, clip_norm: Any, dtype: Any
) -> tuple[list[Any], Any, Any]:
    def add(i, loss_sum, correct, *sums):  # type: ignore[no-untyped-def]  # traced
        with tf.GradientTape() as tape:
            tape.watch(weights)
            losses, right, _ = _losses(model, weights, x[i : i + 1], y[i : i + 1])
        found = tape.gradient(losses, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradient = [tf.convert_to_tensor(part) for part in found]
        squared = squared_norm(gradient)
        factor = clip_factor(tf.sqrt(squared), clip_norm, model.dimension)
        added = add_contribution(sums, gradient, factor, tf.math.is_finite(squared), fused=False)
        return i + 1, loss_sum + tf.cast(losses[0], tf.float64), correct + right[0], *added

    zero, zeros = tf.constant(0.0, tf.float64), [tf.zeros(spec.shape, dtype) for spec in model.variables]
    _, loss, right, *sums = tf.while_loop(
        lambda i, *_: i < tf.size(y), add, (0, zero, zero, *zeros), parallel_iterations=1
    )
    return list(sums), loss, right


def _losses(model: Model, weights: Sequence[Any], x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Losses ``[batch]``, whether answers are right, as float64, and logits."""
    logits = model.logits(weights, x)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
    return losses, tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), y), tf.float64), logits


def _squares(rows: Any) -> Any:
    """Squared norm of each row ``[batch, width]``, in float64, which no float32 overflows."""
    return tf.reduce_sum(tf.square(tf.cast(rows, tf.float64)), 1)
