"""Softmax regression in NumPy in the place of TensorFlow's engine: a run of a second becomes one of a tenth.

All else of a run is the program's own: cohorts, clipping, masking, noise, ledger, checkpoints, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from privfed import experiment
from privfed.federated.client_work import ClientUpdates, ClientWork, Conditions, LocalTraining, schedule
from privfed.federated.evaluation import Evaluation
from privfed.models.functional import Model, Vector


def _losses(model: Model, weights: Vector, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Loss and right answer of each example, and the gradient at its logits."""
    kernel, bias = model.unflatten(weights)
    logits = x @ kernel + bias
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    losses, right = -np.log(chances[np.arange(len(y)), y] + 1e-30), chances.argmax(1) == y
    chances[np.arange(len(y)), y] -= 1
    return losses, right, chances


class PlainWork(ClientWork):
    """Local SGD, client after client."""

    def __init__(
        self,
        model: Model,
        features: Any,
        labels: Any,
        offsets: Any,
        training: LocalTraining,
        parts: int | None = None,  # it adds client after client
    ) -> None:
        scale = 255 if features.dtype == np.uint8 else 1
        self._x = (features.reshape(len(features), -1) / scale).astype(np.float32)
        self._model, self._labels, self._offsets, self._training = model, labels, offsets, training

    def under(self, conditions: Conditions) -> PlainWork:
        return self

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        for client in clients:
            steps, mine = schedule(self._offsets, [client], self._training, seed), weights.astype(np.float32)
            loss = correct = 0.0
            for first, last in zip(steps.step_bounds, steps.step_bounds[1:], strict=False):
                rows = steps.rows[first:last]
                losses, right, at_logits = _losses(self._model, mine, self._x[rows], self._labels[rows])
                loss, correct = loss + losses.sum(), correct + right.sum()
                gradient = np.concatenate([(self._x[rows].T @ at_logits).ravel(), at_logits.sum(0)])
                mine = (mine - self._training.learning_rate / len(rows) * gradient).astype(np.float32)
            size = np.diff(self._offsets)[[client]]
            yield ClientUpdates(
                (int(client),),
                (mine - weights)[None],
                size,
                np.array([loss]),
                np.array([correct]),
                self._training.seen(size),
            )


class PlainEvaluator:
    def __init__(self, model: Model, features: Any, labels: Any) -> None:
        self._model, self._x, self._y = model, features.reshape(len(features), -1), labels

    def __call__(self, weights: Vector) -> Evaluation:
        losses, right, _ = _losses(self._model, weights, self._x, self._y)
        return Evaluation(float(losses.mean()), float(right.mean()))


def install() -> None:
    """For this process."""
    experiment.LocalClientWork = PlainWork  # type: ignore[misc,assignment]
    experiment.Evaluator = PlainEvaluator  # type: ignore[misc,assignment]
