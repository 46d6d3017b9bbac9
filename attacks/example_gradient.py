"""The gradient of one example's loss: what an answer is verified by."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from privfed.models.functional import Model, cross_entropy


@lru_cache(maxsize=8)
def example_gradient(model: Model) -> Callable[..., Any]:
    """``(weights [d], one image, its label) -> gradient [d]`` of that example's loss, traced once."""
    import tensorflow as tf

    def gradient(weights: Any, image: Any, label: Any) -> Any:
        variables = model.unflatten(weights)
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss = cross_entropy(model.logits(variables, image), label[None])
        parts = tape.gradient(loss, variables, unconnected_gradients="zero")
        return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)

    vector, image = (
        tf.TensorSpec([model.dimension], tf.float64),
        tf.TensorSpec([1, *model.input_shape], tf.float64),
    )
    traced: Callable[..., Any] = tf.function(
        gradient, input_signature=[vector, image, tf.TensorSpec([], tf.int64)]
    )
    return traced
