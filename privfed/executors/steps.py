"""One local step: the same arithmetic for every way of going through the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from privfed.models.functional import Model


def local_step(
    model: Model, learning_rate: float, weights: Sequence[Any], x: Any, y: Any, real: Any = None
) -> tuple[list[Any], Any, Any]:
    """One SGD step on the mean cross-entropy of a batch.

    Args:
        model: What is trained.
        learning_rate: Of the step.
        weights: One tensor for each variable.
        x: Inputs ``[batch, *input_shape]``.
        y: Class numbers ``[batch]``.
        real: How many examples from the front of the batch count, when the rest fills it up; all when ``None``.

    Returns:
        The new weights, the sum of the losses and the count of right answers, both from before the step.
    """
    with tf.GradientTape() as tape:
        tape.watch(weights)
        logits = model.logits(weights, x)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        right = tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), y), tf.float32)
        if real is not None:
            counts = tf.range(y.shape[0]) < real
            losses, right = (tf.where(counts, v, tf.zeros_like(v)) for v in (losses, right))
        total = tf.reduce_sum(losses)
        loss = total / tf.cast(tf.size(y) if real is None else real, tf.float32)
    gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    # Of an embedding only the rows in use have a gradient, which comes as slices.
    moved = [w - learning_rate * tf.convert_to_tensor(g) for w, g in zip(weights, gradients, strict=True)]
    return moved, tf.cast(total, tf.float64), tf.cast(tf.reduce_sum(right), tf.float64)
