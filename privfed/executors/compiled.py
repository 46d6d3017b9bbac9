"""Clients one after another in one graph compiled by XLA: for dense models, whose many small operations it fuses.

XLA knows static shapes only, so a call takes a fixed number of steps of a fixed number of examples, filled up
where there are fewer. It is compiled once, whatever the cohort.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.executors.accumulate import add_contribution, clip_factor, squared_norm_in_pieces
from privfed.executors.population import as_model_input
from privfed.executors.steps import Rule, local_gradients
from privfed.federated.client_work import LocalTraining, Schedule
from privfed.models.functional import Model, Weights

VECTOR_WIDTH = 16
"""float32 numbers in the widest vectors of common CPUs: products with fewer columns leave them half empty."""


@dataclass(frozen=True)
class CallShape:
    """What one call takes at most.

    Attributes:
        steps: Steps of all its clients together, and so clients as well.
        batch: Examples in a step.
        full: Whether every step has exactly so many.
    """

    steps: int
    batch: int
    full: bool

    @classmethod
    def for_population(cls, sizes: NDArray[np.int64], training: LocalTraining, fewest: int = 256) -> CallShape:
        """Room for the largest client, and for enough small ones to make a call worth it."""
        batch = int(min(training.batch_size, sizes.max(initial=1)))
        batch = max(batch, 1)
        most = int(training.steps_of(sizes).max(initial=1))
        return cls(max(most, fewest), batch, not (sizes % batch).any())


@dataclass(frozen=True, eq=False)
class Batches:
    """A schedule in the shape of a call.

    Attributes:
        rows: Of each step; a shorter step is filled up with its own first example, which keeps one client's
            numbers out of another's, ``[steps, batch]``.
        real: How many of them count, ``[steps]``.
        client_bounds: As in the schedule, ``[steps + 1]``.
        clients: How many there are.
    """

    rows: NDArray[np.int32]
    real: NDArray[np.int32]
    client_bounds: NDArray[np.int32]
    clients: int

    @classmethod
    def of(cls, schedule: Schedule, shape: CallShape) -> Batches:
        """Lay out ``schedule``, which must fit."""
        first, real = schedule.step_bounds[:-1], np.diff(schedule.step_bounds)
        column = np.arange(shape.batch, dtype=np.int32)
        rows = np.zeros((shape.steps, shape.batch), np.int32)
        rows[: len(real)] = schedule.rows[first[:, None] + np.where(column < real[:, None], column, 0)]
        padded_real = np.zeros(shape.steps, np.int32)
        padded_real[: len(real)] = real
        client_bounds = np.zeros(shape.steps + 1, np.int32)
        client_bounds[: len(schedule.client_bounds)] = schedule.client_bounds
        return cls(rows, padded_real, client_bounds, len(schedule.client_bounds) - 1)


def compiled_sum_graph(
    model: Model, training: LocalTraining, shape: CallShape, features: Any, labels: Any, total_dtype: Any
) -> Any:
    """``(weights, features, labels, rate, *batches, clip norm)`` as ``loop.sum_graph``, for clients with examples.

    A client whose squared norm is not finite is not in the total, although its update may be: see
    ``squared_norm_in_pieces``; a branch for it in here would cost every client a copy of its update.
    What is known of each client is as long as the call has steps; the first ``clients`` entries are filled.
    """
    turned = [_better_turned(spec.shape) for spec in model.variables]

    def turn(weights: Weights) -> list[Any]:
        return [tf.transpose(w) if t else w for w, t in zip(weights, turned, strict=True)]

    # The loop carries narrow kernels turned; XLA folds the turning back into the products.
    inner = dataclasses.replace(model, logits=lambda weights, x: model.logits(turn(weights), x))

    def train(weights, features, labels, rate, rows, real, client_bounds, clients, clip_norm):  # type: ignore[no-untyped-def]  # traced
        start = turn(model.unflatten(weights))
        rule = Rule(training, rate, start)

        def step(s, w, v, loss_sum, correct):  # type: ignore[no-untyped-def]  # traced
            x, y = as_model_input(tf.gather(features, rows[s])), tf.gather(labels, rows[s])
            gradients, loss, right = local_gradients(inner, w, x, y, None if shape.full else real[s])
            w, v = rule.move(w, v, gradients)
            return s + 1, w, v, loss_sum + loss, correct + right

        def client(i, total, *known):  # type: ignore[no-untyped-def]  # traced
            zero, last = tf.constant(0.0, tf.float64), client_bounds[i + 1]
            # The first step is taken out of the loop, which saves the loop's copy of the weights.
            first = step(client_bounds[i], start, rule.velocity(), zero, zero)  # type: ignore[no-untyped-call]  # traced
            _, w, _, loss_sum, correct = tf.while_loop(lambda s, *_: s < last, step, first, parallel_iterations=1)
            update = [b - a for a, b in zip(start, w, strict=True)]
            squared = squared_norm_in_pieces(update)
            factor = clip_factor(tf.sqrt(squared), clip_norm, model.dimension)
            total = add_contribution(total, update, factor, tf.math.is_finite(squared), fused=True)
            values = (squared, loss_sum, correct)
            return i + 1, total, *(array.write(i, v) for array, v in zip(known, values, strict=True))

        zeros = [tf.zeros(w.shape, total_dtype) for w in start]
        arrays = [tf.TensorArray(tf.float64, shape.steps, element_shape=[]) for _ in range(3)]
        _, total, *known = tf.while_loop(
            lambda i, *_: i < clients, client, (0, zeros, *arrays), parallel_iterations=1
        )
        return [tf.concat([tf.reshape(t, [-1]) for t in turn(total)], 0), *(array.stack() for array in known)]

    return tf.function(
        train,
        input_signature=[
            tf.TensorSpec([model.dimension], tf.float32),
            tf.TensorSpec(features.shape, features.dtype),
            tf.TensorSpec(labels.shape, tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([shape.steps, shape.batch], tf.int32),
            tf.TensorSpec([shape.steps], tf.int32),
            tf.TensorSpec([shape.steps + 1], tf.int32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.float64),
        ],
        autograph=False,
        jit_compile=True,
    ).get_concrete_function()


def _better_turned(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[1] < VECTOR_WIDTH <= shape[0]
