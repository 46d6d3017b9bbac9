"""Client work on TensorFlow Federated's runtime: the reference, and not the fast path.

The same steps over the same examples as ``local``, but the model is TFF's ``FunctionalModel``, the step is taken
by ``tff.learning.optimizers``, and clients train under a federated computation whose results come back placed at
the clients, as a list; so whatever happens to an update afterwards is the same code for both.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from numpy.typing import NDArray

from privfed.executors.population import as_model_input, check_population
from privfed.executors.tff_runtime import TffRuntime
from privfed.federated.client_work import ClientUpdates, ClientWork, Conditions, LocalTraining, schedule
from privfed.models.functional import Model, Vector
from privfed.models.tff import to_functional_model

_COPIES = 3
"""Of what a client sends and is sent: here, on the wire, and in the worker."""


class TffClientWork(ClientWork):
    """Trains clients on TFF's runtime; arguments as ``LocalClientWork``, and a context manager.

    Args:
        model: What is trained.
        features: Examples of all clients ``[n, *input_shape]``: uint8, scaled by 1/255, or float32 in [0, 1].
        labels: Class numbers ``[n]``.
        offsets: Client ``c`` owns the rows ``offsets[c]:offsets[c + 1]``, ``[clients + 1]``.
        training: What each client does.
        memory_budget_bytes: Bound on the memory that examples and updates take; it sets the size of a chunk.

    Raises:
        ValueError: The arrays do not fit, or training has what this executor has not: corrections, DP-SGD.
    """

    def __init__(
        self,
        model: Model,
        features: NDArray[Any],
        labels: NDArray[Any],
        offsets: NDArray[Any],
        training: LocalTraining,
        *,
        memory_budget_bytes: int = 256 << 20,
    ) -> None:
        self._features, self._labels, self._offsets = check_population(model, features, labels, offsets)
        if training.corrected or training.example is not None:
            raise ValueError("the executor 'tff' has neither control variates nor DP-SGD")
        self._dimension, self._training = model.dimension, training
        self._rate = np.float32(training.learning_rate)
        self._budget = memory_budget_bytes
        self._computation = _federated_training(model, training, self._features.dtype)
        self._runtime = TffRuntime()

    def under(self, conditions: Conditions) -> TffClientWork:
        """The same work, on the same worker, in a round with these conditions."""
        work = copy.copy(self)
        work._rate = np.float32(self._training.learning_rate * conditions.rate_factor)
        return work

    def __enter__(self) -> TffClientWork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End TFF's worker process; this also happens when this process ends, however it does."""
        self._runtime.close()

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Train ``clients`` from ``weights`` ``[d]``; see ``ClientWork``."""
        if np.shape(weights) != (self._dimension,):
            raise ValueError(f"the model has {self._dimension} weights, got shape {np.shape(weights)}")
        start = np.asarray(weights, np.float32)
        for chunk in self._chunks([int(client) for client in clients]):
            work = [self._work_of(client, seed) for client in chunk]
            with self._runtime.installed():
                results = self._computation(start, work)
            yield ClientUpdates(
                tuple(chunk),
                np.stack([result["delta"] for result in results]),
                np.array([len(client["labels"]) for client in work], np.int64),
                np.array([result["loss_sum"] for result in results], np.float64),
                np.array([result["correct"] for result in results], np.float64),
                np.array([len(client["rows"]) for client in work], np.float64),
            )

    def _work_of(self, client: int, seed: Sequence[int]) -> collections.OrderedDict[str, NDArray[Any]]:
        """What one client holds: its examples, and the order in which its steps take them."""
        steps = schedule(self._offsets, [client], self._training, seed)
        first, last = self._offsets[client], self._offsets[client + 1]
        return collections.OrderedDict(
            features=self._features[first:last],
            labels=self._labels[first:last],
            rows=(steps.rows - first).astype(np.int32),
            step_bounds=steps.step_bounds,
            rate=self._rate,
        )

    def _chunks(self, clients: list[int]) -> Iterator[list[int]]:
        chunk: list[int] = []
        used = 0
        for client in clients:
            first, last = self._offsets[client], self._offsets[client + 1]
            need = _COPIES * (self._features[first:last].nbytes + 4 * self._dimension)
            if chunk and used + need > self._budget:
                yield chunk
                chunk, used = [], 0
            chunk.append(client)
            used += need
        if chunk:
            yield chunk


def _federated_training(model: Model, training: LocalTraining, feature_dtype: Any) -> Any:
    """``(weights@SERVER, work@CLIENTS) -> results@CLIENTS`` as a TFF computation."""
    functional = to_functional_model(model)
    optimizer = tff.learning.optimizers.build_sgdm(training.learning_rate, training.momentum or None)
    weights_type = tff.TensorType(np.float32, [model.dimension])
    work_type = tff.to_type(
        collections.OrderedDict(
            features=tff.TensorType(feature_dtype.type, [None, *model.input_shape]),
            labels=tff.TensorType(np.int32, [None]),
            rows=tff.TensorType(np.int32, [None]),
            step_bounds=tff.TensorType(np.int32, [None]),
            rate=tff.TensorType(np.float32),
        )
    )

    @tff.tensorflow.computation(weights_type, work_type)
    def train(vector, work):  # type: ignore[no-untyped-def]  # traced
        start = model.unflatten(vector)
        bounds = work["step_bounds"]
        state = optimizer.initialize([tf.TensorSpec(w.shape, w.dtype) for w in start])
        state = optimizer.set_hparams(state, {"learning_rate": work["rate"]})
        zero = tf.constant(0.0, tf.float64)

        def step(s, weights, state, loss_sum, correct):  # type: ignore[no-untyped-def]  # traced
            batch = work["rows"][bounds[s] : bounds[s + 1]]
            x, y = as_model_input(tf.gather(work["features"], batch)), tf.gather(work["labels"], batch)
            with tf.GradientTape() as tape:
                tape.watch(weights)
                logits = functional.predict_on_batch((tuple(weights), ()), x, True)
                loss = functional.loss(logits, y)
            gradients = tape.gradient(loss, weights)
            if mu := training.proximal:
                gradients = [g + mu * (w - s) for g, w, s in zip(gradients, weights, start, strict=True)]
            state, weights = optimizer.next(state, weights, gradients)
            right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), y), tf.float64))
            seen = tf.cast(tf.size(y), tf.float64)
            return s + 1, weights, state, loss_sum + seen * tf.cast(loss, tf.float64), correct + right

        _, end, _, loss_sum, correct = tf.while_loop(
            lambda s, *_: s < tf.size(bounds) - 1, step, (tf.constant(0), start, state, zero, zero)
        )
        delta = tf.concat([tf.reshape(b - a, [-1]) for a, b in zip(start, end, strict=True)], 0)
        return collections.OrderedDict(delta=delta, loss_sum=loss_sum, correct=correct)

    @tff.federated_computation(
        tff.FederatedType(weights_type, tff.SERVER), tff.FederatedType(work_type, tff.CLIENTS)
    )
    def train_clients(weights, work):  # type: ignore[no-untyped-def]  # traced
        return tff.federated_map(train, (tff.federated_broadcast(weights), work))

    return train_clients
