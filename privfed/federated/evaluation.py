"""How well a model does on held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.models.functional import Model, Vector

BATCH = 1000


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and share of right answers over held-out examples."""

    loss: float
    accuracy: float


def per_example_losses(
    model: Model,
) -> Callable[[Vector, NDArray[np.float32], NDArray[np.int32]], tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """A function ``(weights [d], x [n, …], y [n]) -> (losses [n], right answers [n])``, traced once."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None]),
            tf.TensorSpec([None, *model.input_shape]),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def batch(weights, x, y):  # type: ignore[no-untyped-def]  # TensorFlow traces it; its types are tensors'
        logits = model.logits(model.unflatten(weights), x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        return loss, tf.equal(tf.argmax(logits, 1, tf.int32), y)

    # Of a function TensorFlow would say, after many trainings in one process, that it is traced too often.
    concrete = batch.get_concrete_function()

    def evaluate(
        weights: Vector, x: NDArray[np.float32], y: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        vector = tf.constant(weights)
        parts = [
            concrete(vector, tf.constant(x[i : i + BATCH]), tf.constant(y[i : i + BATCH]))
            for i in range(0, len(y), BATCH)
        ]
        losses = np.concatenate([part[0].numpy() for part in parts] or [np.zeros(0)])
        right = np.concatenate([part[1].numpy() for part in parts] or [np.zeros(0, bool)])
        return losses.astype(np.float64), right

    return evaluate


class Evaluator:
    """Evaluates weights on one held-out set."""

    def __init__(self, model: Model, features: NDArray[np.float32], labels: NDArray[np.int32]) -> None:
        self._losses = per_example_losses(model)
        self._features, self._labels = features, labels

    def __call__(self, weights: Vector) -> Evaluation:
        """Evaluate ``weights`` ``[d]``."""
        losses, right = self._losses(weights, self._features, self._labels)
        return Evaluation(float(losses.mean()), float(right.mean()))
