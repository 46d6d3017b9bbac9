"""One local step: the same arithmetic for every way of going through the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from privfed.federated.client_work import LocalTraining
from privfed.models.functional import Model


@dataclass(frozen=True, eq=False)
class Rule:
    """From a gradient to the next weights, for one client in a graph that is being traced.

    Attributes:
        training: Momentum and proximal term.
        rate: Learning rate of the round, float32 scalar.
        start: The weights sent, one tensor for each variable.
        correction: Added to each gradient, likewise; ``None`` for none.
    """

    training: LocalTraining
    rate: Any
    start: Sequence[Any]
    correction: Sequence[Any] | None = None

    def velocity(self) -> list[Any]:
        """Before the first step; nothing without momentum."""
        return [tf.zeros_like(w) for w in self.start] if self.training.momentum else []

    def move(
        self, weights: Sequence[Any], velocity: Sequence[Any], gradients: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """New weights and velocity."""
        # Of an embedding only the rows in use have a gradient, which comes as slices.
        direction = [tf.convert_to_tensor(g) for g in gradients]
        if mu := self.training.proximal:
            direction = [g + mu * (w - s) for g, w, s in zip(direction, weights, self.start, strict=True)]
        if self.correction is not None:
            direction = [g + c for g, c in zip(direction, self.correction, strict=True)]
        if beta := self.training.momentum:
            direction = [beta * v + g for v, g in zip(velocity, direction, strict=True)]
        moved = [w - self.rate * g for w, g in zip(weights, direction, strict=True)]
        return moved, direction if self.training.momentum else []


def local_gradients(
    model: Model, weights: Sequence[Any], x: Any, y: Any, real: Any = None
) -> tuple[Sequence[Any], Any, Any]:
    """Gradients of the mean cross-entropy of a batch.

    Args:
        model: What is trained.
        weights: One tensor for each variable.
        x: Inputs ``[batch, *input_shape]``.
        y: Class numbers ``[batch]``.
        real: How many examples from the front of the batch count, when the rest fills it up; all when ``None``.

    Returns:
        One gradient for each variable, the sum of the losses and the count of right answers.
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
    return gradients, tf.cast(total, tf.float64), tf.cast(tf.reduce_sum(right), tf.float64)
