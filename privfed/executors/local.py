"""Client work on this machine: one compiled graph for each thread, each looping over a share of the clients.

Operations run on one thread each and clients run beside each other: small models gain nothing from threads inside
an operation, and a client's result then depends neither on who trains beside it nor on how many threads there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.federated.client_work import ClientUpdates, LocalTraining, Schedule, schedule
from privfed.models.functional import Model, Vector

_COPIES_OF_A_DELTA = 3
"""The loop's array of rows, the stacked rows, and the chunk that the caller may still hold."""


def configure_threads() -> bool:
    """Set TensorFlow up for parallelism across clients; call it before anything else uses TensorFlow.

    Returns whether operations now run on one thread each: a runtime that is already up keeps what it has, which
    costs speed only. Grappler's arithmetic rewrites are switched off in either case: of two threads in one
    rewritten graph, one can meet the other's temporary variable (``AlreadyExistsError … AddOpsRewrite …``).
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(available_cores())
    except RuntimeError:  # the runtime is up; its thread pools are fixed
        return bool(tf.config.threading.get_intra_op_parallelism_threads() == 1)
    return True


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_population(
    model: Model, features: NDArray[Any], labels: NDArray[Any], offsets: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]:
    """The packed arrays as every executor takes them.

    Raises:
        ValueError: Shapes, types, labels or offsets do not fit the model or each other.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    offsets = np.asarray(offsets, np.int64)
    if features.dtype not in (np.uint8, np.float32):
        raise ValueError(f"features must be uint8 or float32, got {features.dtype}")
    if features.shape[1:] != model.input_shape:
        raise ValueError(f"model {model.name} takes {model.input_shape}, the examples are {features.shape[1:]}")
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {features.shape[:1]} integers, got {labels.dtype} of shape {labels.shape}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < model.classes:
        raise ValueError(
            f"labels must lie in [0, {model.classes}), got values from {labels.min()} to {labels.max()}"
        )
    bounds = (offsets.ndim == 1 and offsets.size > 0 and offsets[0] >= 0) and offsets[-1] <= len(labels)
    if not bounds or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise within [0, {len(labels)}]")
    return features, labels.astype(np.int32), offsets


def as_model_input(x: Any) -> Any:
    """Raw pixels to [0, 1] inside the graph; features that are floats already pass unchanged."""
    return tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x


class LocalClientWork:
    """Trains clients from packed arrays on this machine's cores.

    Args:
        model: What is trained.
        features: Examples of all clients ``[n, *input_shape]``: uint8, scaled by 1/255, or float32 in [0, 1].
        labels: Class numbers ``[n]``.
        offsets: Client ``c`` owns the rows ``offsets[c]:offsets[c + 1]``, ``[clients + 1]``.
        training: What each client does.
        threads: Clients trained at the same time; as many as cores when not given.
        memory_budget_bytes: Bound on the memory that updates take; it sets how many clients make a chunk.
    """

    def __init__(
        self,
        model: Model,
        features: NDArray[Any],
        labels: NDArray[Any],
        offsets: NDArray[Any],
        training: LocalTraining,
        *,
        threads: int | None = None,
        memory_budget_bytes: int = 256 << 20,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        features, labels, self._offsets = check_population(model, features, labels, offsets)
        self._dimension = model.dimension
        self._training = training
        self._threads = threads or available_cores()
        self._chunk = max(1, memory_budget_bytes // (_COPIES_OF_A_DELTA * 4 * model.dimension))
        with tf.device("CPU:0"):
            self._features, self._labels = tf.constant(features), tf.constant(labels)
        # A graph of its own for every thread, traced when first used.
        self._graphs = [_client_loop(model, training, self._features.dtype) for _ in range(self._threads)]

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Train ``clients`` from ``weights`` ``[d]``; see ``ClientWork``."""
        if np.shape(weights) != (self._dimension,):
            raise ValueError(f"the model has {self._dimension} weights, got shape {np.shape(weights)}")
        start = tf.constant(weights, tf.float32)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clients")
        try:
            for first in range(0, len(clients), self._chunk):
                chunk = [int(client) for client in clients[first : first + self._chunk]]
                shares = self._shares(chunk)
                parts = list(
                    pool.map(self._train, self._graphs, shares, [start] * len(shares), [seed] * len(shares))
                )
                yield self._updates(chunk, parts)
        finally:
            # Nothing is left to wait for, unless the user interrupts, who should not wait for a round of clients.
            pool.shutdown(wait=False, cancel_futures=True)

    def _shares(self, chunk: list[int]) -> list[list[int]]:
        """Cut a chunk into consecutive shares of about the same number of examples, one for each thread."""
        sizes = self._offsets[np.array(chunk) + 1] - self._offsets[chunk]
        # A client costs something even without examples; the middle of its work decides whose it is.
        work = np.cumsum(sizes + 1) - (sizes + 1) / 2
        owner = (work * self._threads / (sizes + 1).sum()).astype(int)
        shares = [[c for c, o in zip(chunk, owner, strict=True) if o == thread] for thread in range(self._threads)]
        return [share for share in shares if share]

    def _train(self, graph: Any, share: list[int], weights: Any, seed: Sequence[int]) -> list[NDArray[Any]]:
        steps = schedule(self._offsets, share, self._training, seed)
        results = graph(weights, self._features, self._labels, steps.rows, steps.step_bounds, steps.client_bounds)
        return [*(result.numpy() for result in results), _examples_seen(steps)]

    def _updates(self, chunk: list[int], parts: list[list[NDArray[Any]]]) -> ClientUpdates:
        deltas, loss_sum, correct, seen = (
            column[0] if len(column) == 1 else np.concatenate(column)
            for column in (list(column) for column in zip(*parts, strict=True))
        )
        examples = self._offsets[np.array(chunk) + 1] - self._offsets[chunk]
        return ClientUpdates(tuple(chunk), deltas, examples, loss_sum, correct, seen)


def _examples_seen(steps: Schedule) -> NDArray[np.float64]:
    return np.diff(steps.step_bounds[steps.client_bounds]).astype(np.float64)


def local_step(
    model: Model, learning_rate: float, weights: list[Any], x: Any, y: Any
) -> tuple[list[Any], Any, Any]:
    """One SGD step on the mean cross-entropy of a batch.

    Returns the new weights, the sum of the losses and the count of right answers, both from before the step.
    """
    with tf.GradientTape() as tape:
        tape.watch(weights)
        logits = model.logits(weights, x)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    moved = [w - learning_rate * g for w, g in zip(weights, gradients, strict=True)]
    right = tf.equal(tf.argmax(logits, 1, tf.int32), y)
    return moved, tf.cast(tf.reduce_sum(losses), tf.float64), tf.reduce_sum(tf.cast(right, tf.float64))


def _client_loop(model: Model, training: LocalTraining, feature_dtype: Any) -> Any:
    """A graph ``(weights, features, labels, *schedule) -> (deltas [k, d], loss sums [k], correct [k])``."""

    def train(weights, features, labels, rows, step_bounds, client_bounds):  # type: ignore[no-untyped-def]  # traced
        start = model.unflatten(weights)
        count = tf.size(client_bounds) - 1
        zero = tf.constant(0.0, tf.float64)

        def step(s, w, loss_sum, correct):  # type: ignore[no-untyped-def]  # traced
            batch = rows[step_bounds[s] : step_bounds[s + 1]]
            x, y = as_model_input(tf.gather(features, batch)), tf.gather(labels, batch)
            w, loss, right = local_step(model, training.learning_rate, w, x, y)
            return s + 1, w, loss_sum + loss, correct + right

        def client(i, deltas, losses, corrects):  # type: ignore[no-untyped-def]  # traced
            last = client_bounds[i + 1]
            _, w, loss_sum, correct = tf.while_loop(
                lambda s, *_: s < last, step, (client_bounds[i], start, zero, zero), parallel_iterations=1
            )
            delta = tf.concat([tf.reshape(b - a, [-1]) for a, b in zip(start, w, strict=True)], 0)
            return i + 1, deltas.write(i, delta), losses.write(i, loss_sum), corrects.write(i, correct)

        rows_of = [tf.TensorArray(dtype, count) for dtype in (tf.float32, tf.float64, tf.float64)]
        _, *filled = tf.while_loop(lambda i, *_: i < count, client, (0, *rows_of), parallel_iterations=1)
        return [array.stack() for array in filled]

    return tf.function(
        train,
        input_signature=[
            tf.TensorSpec([model.dimension], tf.float32),
            tf.TensorSpec([None, *model.input_shape], feature_dtype),
            tf.TensorSpec([None], tf.int32),
            *[tf.TensorSpec([None], tf.int32)] * 3,
        ],
        autograph=False,
    )
