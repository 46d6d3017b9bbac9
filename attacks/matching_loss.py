"""What gradient matching minimises, as one graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.models.functional import Model, cross_entropy

TINY = 1e-290
"""Stands in for a squared norm of zero, whose root has no slope."""
SMALLEST_LAYER = 1e-6
"""Layers with a smaller share of the gradient's norm than this are not scaled up any further."""
SMOOTH = 1e-6
"""Differences of pixels far below its root cost their square in the total variation, which so has a slope."""


@lru_cache(maxsize=8)
def matching_loss(model: Model, batch: int, joint: bool) -> Callable[..., tuple[Any, Any, Any]]:
    """The loss of gradient matching as one graph, traced once per model and batch.

    Args:
        model: The attacked model.
        batch: Images per point.
        joint: Whether labels are searched for too, as logits behind the pixels (DLG's own way).

    Returns:
        ``(point, scale known: 1.0 or 0.0, weight of the total variation, weights [d], target [d],
        importance [d], one-hot labels [batch, classes]) -> (loss, 1 − cosine + total variation, slope of the
        loss)``, all float64.
    """
    import tensorflow as tf

    pixels = batch * int(np.prod(model.input_shape))
    vector = tf.TensorSpec([model.dimension], tf.float64)
    size = pixels + (batch * model.classes if joint else 0)
    signature = [
        tf.TensorSpec([size], tf.float64),
        tf.TensorSpec([], tf.float64),
        tf.TensorSpec([], tf.float64),
        vector,
        vector,
        vector,
        tf.TensorSpec([batch, model.classes], tf.float64),
    ]

    def loss(point: Any, known: Any, prior: Any, weights: Any, target: Any, importance: Any, labels: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(point)
            x = tf.reshape(point[:pixels], [batch, *model.input_shape])
            if joint:
                labels = tf.nn.softmax(tf.reshape(point[pixels:], [batch, model.classes]))
            variables = model.unflatten(weights)
            with tf.GradientTape() as inner:
                inner.watch(variables)
                value = cross_entropy(model.logits(variables, x), labels)
            parts = inner.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            root = tf.sqrt(importance)
            ours = root * tf.concat([tf.reshape(part, [-1]) for part in parts], 0)
            theirs = root * target
            length = tf.reduce_sum(theirs**2)
            distance = tf.reduce_sum((ours - theirs) ** 2) / length
            # Half the squared distance of the unit vectors: 1 − cosine without its cancellation.
            unit = ours * tf.math.rsqrt(tf.maximum(tf.reduce_sum(ours**2), TINY))
            angle = 0.5 * tf.reduce_sum((unit - theirs * tf.math.rsqrt(length)) ** 2)
            smoothness = prior * _total_variation(x)
            total = tf.where(known > 0, distance, angle) + smoothness
        return total, angle + smoothness, outer.gradient(total, point)

    compiled: Callable[..., tuple[Any, Any, Any]] = tf.function(loss, input_signature=signature)
    return compiled


def _total_variation(x: Any) -> Any:
    """Sum of the differences between neighbours of images ``[batch, height, width, ...]``; 0 of other data."""
    import tensorflow as tf

    if len(x.shape) < 3:
        return tf.constant(0.0, x.dtype)
    steps = (x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1])
    return tf.add_n([tf.reduce_sum(tf.sqrt(step**2 + SMOOTH) - SMOOTH**0.5) for step in steps])


def layer_weights(model: Model, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """One over each variable's squared norm, per coordinate ``[d]``: small layers count like large ones."""
    total = float(np.linalg.norm(gradient))
    weights = [
        np.full(spec.size, max(float(np.linalg.norm(part)), SMALLEST_LAYER * total) ** -2)
        for spec, part in zip(model.variables, model.unflatten(gradient), strict=True)
    ]
    return np.concatenate(weights)
