"""Clients one after another in one graph, whatever the model: steps of any length, shapes found at run time."""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from privfed.executors.accumulate import add_contribution, clip_factor, squared_norm
from privfed.executors.examples import noised_gradients
from privfed.executors.population import as_model_input
from privfed.executors.steps import Rule, local_gradients
from privfed.federated.client_work import LocalTraining
from privfed.models.functional import Model


def updates_graph(model: Model, training: LocalTraining, feature_dtype: Any) -> Any:
    """``(weights, features, labels, rate, *schedule) -> (deltas [k, d], loss sums [k], correct [k])``.

    Further arguments, where training takes them: the noise of DP-SGD ``[k, steps, d]``, or corrections ``[k, d]``.
    """

    def train(weights, features, labels, rate, rows, step_bounds, client_bounds, *extra):  # type: ignore[no-untyped-def]  # traced
        start = model.unflatten(weights)
        count = tf.size(client_bounds) - 1
        steps = _Steps(model, training, features, labels, rate, rows, step_bounds)

        def client(i, deltas, losses, corrects):  # type: ignore[no-untyped-def]  # traced
            own = [values[i] for values in extra]
            w, loss_sum, correct = steps.run(start, client_bounds[i], client_bounds[i + 1], *own)
            delta = tf.concat([tf.reshape(b - a, [-1]) for a, b in zip(start, w, strict=True)], 0)
            return i + 1, deltas.write(i, delta), losses.write(i, loss_sum), corrects.write(i, correct)

        rows_of = [tf.TensorArray(dtype, count) for dtype in (tf.float32, tf.float64, tf.float64)]
        _, *filled = tf.while_loop(lambda i, *_: i < count, client, (0, *rows_of), parallel_iterations=1)
        return [array.stack() for array in filled]

    signature = [*_signature(model, feature_dtype), *_extra(model, training, [None])]
    return tf.function(train, input_signature=signature, autograph=False).get_concrete_function()


def update_graph(model: Model, training: LocalTraining, feature_dtype: Any) -> Any:
    """``(weights, features, labels, rate, rows, step bounds) -> (delta [d], loss sum, correct)`` of one client.

    For long updates, which an array of updates would copy twice. Noise or a correction come behind, if any, and
    then ``weights`` once more as the model's variables: to cut them out for each client would copy them.
    """
    extra, count = _extra(model, training, []), len(model.variables)

    def train(weights, features, labels, rate, rows, step_bounds, *more):  # type: ignore[no-untyped-def]  # traced
        own, start = more[:-count], list(more[-count:])
        steps = _Steps(model, training, features, labels, rate, rows, step_bounds)
        w, loss_sum, correct = steps.run(start, tf.constant(0), tf.size(step_bounds) - 1, *own)
        delta = tf.concat([tf.reshape(variable, [-1]) for variable in w], 0) - weights
        return delta, loss_sum, correct

    variables = [tf.TensorSpec(spec.shape, tf.float32) for spec in model.variables]
    signature = [*_signature(model, feature_dtype)[:-1], *extra, *variables]
    return tf.function(train, input_signature=signature, autograph=False).get_concrete_function()


def sum_graph(model: Model, training: LocalTraining, feature_dtype: Any, total_dtype: Any) -> Any:
    """``(weights, features, labels, rate, *schedule, clip norm)`` to the clipped sum and what is known of clients.

    Returns the total ``[d]`` of ``total_dtype``; then squared norms, loss sums and right answers ``[k]``, float64.
    """

    def train(weights, features, labels, rate, rows, step_bounds, client_bounds, clip_norm):  # type: ignore[no-untyped-def]  # traced
        start = model.unflatten(weights)
        count = tf.size(client_bounds) - 1
        steps = _Steps(model, training, features, labels, rate, rows, step_bounds)

        def client(i, total, *known):  # type: ignore[no-untyped-def]  # traced
            w, loss_sum, correct = steps.run(start, client_bounds[i], client_bounds[i + 1])
            update = [b - a for a, b in zip(start, w, strict=True)]
            squared = squared_norm(update)
            factor = clip_factor(tf.sqrt(squared), clip_norm, model.dimension)
            total = add_contribution(total, update, factor, tf.math.is_finite(squared), fused=False)
            values = (squared, loss_sum, correct)
            return i + 1, total, *(array.write(i, v) for array, v in zip(known, values, strict=True))

        zeros = [tf.zeros(spec.shape, total_dtype) for spec in model.variables]
        _, total, *known = tf.while_loop(
            lambda i, *_: i < count,
            client,
            (0, zeros, *(tf.TensorArray(tf.float64, count) for _ in range(3))),
            parallel_iterations=1,
        )
        return [tf.concat([tf.reshape(t, [-1]) for t in total], 0), *(array.stack() for array in known)]

    signature = [*_signature(model, feature_dtype), tf.TensorSpec([], tf.float64)]
    return tf.function(train, input_signature=signature, autograph=False).get_concrete_function()


def _signature(model: Model, feature_dtype: Any) -> list[Any]:
    return [
        tf.TensorSpec([model.dimension], tf.float32),
        tf.TensorSpec([None, *model.input_shape], feature_dtype),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([], tf.float32),
        *[tf.TensorSpec([None], tf.int32)] * 3,
    ]


def _extra(model: Model, training: LocalTraining, clients: list[int | None]) -> list[Any]:
    if training.example is not None:
        dtype = tf.float64 if training.example.secure else tf.float32
        return [tf.TensorSpec([*clients, training.steps, model.dimension], dtype)]
    return [tf.TensorSpec([*clients, model.dimension], tf.float32)] if training.corrected else []


class _Steps:
    """Local training over a span of steps, in a graph that is being traced."""

    def __init__(
        self, model: Model, training: LocalTraining, features: Any, labels: Any, rate: Any, rows: Any, bounds: Any
    ) -> None:
        self._model, self._training, self._rate = model, training, rate
        # Not inlined: in a graph without the loop TensorFlow fuses operations which in one with it it does not.
        self._gradients = tf.function(
            partial(local_gradients, model), autograph=False, experimental_attributes={"_noinline": True}
        )
        self._features, self._labels, self._rows, self._bounds = features, labels, rows, bounds

    def run(self, start: list[Any], first: Any, last: Any, extra: Any = None) -> tuple[list[Any], Any, Any]:
        """New weights, sum of losses and count of right answers of the steps from ``first`` to ``last``.

        ``extra`` is the client's correction ``[d]``, or the noise of its steps ``[steps, d]``.
        """
        model, training = self._model, self._training
        rule = Rule(training, self._rate, start, model.unflatten(extra) if training.corrected else None)

        def step(s, w, v, loss_sum, correct):  # type: ignore[no-untyped-def]  # traced
            batch = self._rows[self._bounds[s] : self._bounds[s + 1]]
            x, y = as_model_input(tf.gather(self._features, batch)), tf.gather(self._labels, batch)
            if training.example is None:
                gradients, loss, right = self._gradients(w, x, y)
            else:
                noise = model.unflatten(extra[s - first])
                gradients, loss, right = noised_gradients(model, training, w, x, y, noise)
            w, v = rule.move(w, v, gradients)
            return s + 1, w, v, loss_sum + loss, correct + right

        zero = tf.constant(0.0, tf.float64)
        _, w, _, loss_sum, correct = tf.while_loop(
            lambda s, *_: s < last, step, (first, start, rule.velocity(), zero, zero), parallel_iterations=1
        )
        return w, loss_sum, correct
