"""Client work on this machine: one graph for each thread, each looping over a share of the clients."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.executors.loop import update_graph, updates_graph
from privfed.executors.parts import cut, total_of
from privfed.executors.population import check_population
from privfed.executors.sums import CompiledSum, Data, GhostSum, LoopSum, SumPath, check_path, choose_path
from privfed.executors.threads import available_cores, configure_threads, training_device
from privfed.federated.client_work import (
    ClientUpdates,
    ClientWork,
    ClippedSum,
    Conditions,
    LocalTraining,
    Schedule,
    drawn_schedule,
    schedule,
)
from privfed.models.functional import Model, Vector

__all__ = ["LocalClientWork", "available_cores", "configure_threads"]

_COPIES_OF_A_DELTA = 3
"""The loop's array of rows, the stacked rows, and the chunk that the caller may still hold."""

_COPIES_OF_NOISE = 4
"""Of each step, in updates' worth: a client's own and the stacked ones, in float64 where they are secure."""

_LONG = 1 << 18
"""Updates longer than this leave the graph one by one: stacking them would copy them twice."""


class LocalClientWork(ClientWork):
    """Trains clients from packed arrays on this machine: on all its cores, or on the first GPU that it has.

    A client's result depends neither on who trains beside it nor on threads and chunks; a sum depends, in its
    rounding, on ``parts``.

    Args:
        model: What is trained.
        features: Examples of all clients ``[n, *input_shape]``: uint8, scaled by 1/255, or float32 in [0, 1].
        labels: Class numbers ``[n]``.
        offsets: Client ``c`` owns the rows ``offsets[c]:offsets[c + 1]``, ``[clients + 1]``.
        training: What each client does.
        threads: Clients trained at the same time; as many as cores when not given, and one on a GPU.
        memory_budget_bytes: Bound on the memory that updates take; it sets how many clients make a chunk.
        path: How ``clipped_sum`` goes through the clients: ``loop``, ``xla``, ``ghost``, or ``auto`` for the one
            that suits the model. It changes nothing but rounding.
        parts: That a float sum is made of; as many as threads when not given. Sums of as many parts have the same
            bits, whatever the number of threads.
        held: Clients, rising, whose examples alone are in ``features`` and ``labels``, where those of the others
            are elsewhere: these are trained until ``hold`` brings others. ``offsets`` stay the population's.

    Raises:
        ValueError: The arrays do not fit, or the path cannot be gone with this model.
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
        path: str = "auto",
        parts: int | None = None,
        held: NDArray[np.int64] | None = None,
    ) -> None:
        for name, value in (("threads", threads), ("parts", parts)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        features, labels, self._offsets = check_population(model, features, labels, offsets, held)
        check_path(path, model, training, np.diff(self._offsets))
        self._model, self._training, self._path = model, training, path
        self._device = training_device()
        self._threads = threads or (1 if self._device.startswith("GPU") else available_cores())
        self._parts = parts or self._threads
        copies = _COPIES_OF_A_DELTA + (_COPIES_OF_NOISE * (training.steps or 0) if training.example else 0)
        room = max(1, memory_budget_bytes // (copies * 4 * model.dimension))
        # Whole rounds of the threads, so that none of them waits for the others.
        self._chunk = room - room % self._threads or room
        self._data = Data(features, labels, self._offsets, self._device)
        if held is not None:
            self._data.hold(held, features, labels)
        # For every thread a graph of its own, traced when first used.
        self._updates: list[_Updates] = [
            _Updates(model, training, self._data, self._device) for _ in range(self._threads)
        ]
        self._sums: dict[bool, list[SumPath]] = {}
        self._building = threading.Lock()
        self._conditions = Conditions()

    def hold(self, clients: NDArray[np.int64], features: NDArray[Any], labels: NDArray[np.int32]) -> None:
        """Exchange the examples for those of ``clients``, who rise, in arrays of the same shapes and types.

        Their values are not looked at. Nothing may be training meanwhile.
        """
        self._data.hold(clients, features, labels)

    def under(self, conditions: Conditions) -> LocalClientWork:
        """The same work in a round with these conditions; graphs are shared, so nothing is traced again."""
        if self._training.corrected != (conditions.corrections is not None):
            raise ValueError("corrections go with training that is corrected, and with no other")
        work = copy.copy(self)
        work._conditions = conditions
        return work

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Train ``clients`` from ``weights`` ``[d]``; see ``ClientWork``."""
        start, ids = self._start(weights), np.asarray(clients, np.int64)
        with self._pool() as pool:
            for first in range(0, len(ids), self._chunk):
                chunk = ids[first : first + self._chunk]
                deltas = np.empty((len(chunk), self._model.dimension), np.float32)
                loss_sum, correct = np.zeros((2, len(chunk)))

                def train(updates: _Updates, share: NDArray[np.int64], made: tuple[Any, ...]) -> None:
                    clients, columns = made[0], made[1:]
                    for piece in updates.pieces(share, len(share)):
                        got = updates(start, clients[piece], seed, self._conditions)
                        for column, value in zip(columns, got, strict=True):
                            column[piece] = value

                made = (chunk, deltas, loss_sum, correct)
                shares = cut(self._offsets[chunk + 1] - self._offsets[chunk], self._threads)
                list(pool.map(train, self._updates, shares, [made] * len(shares)))
                self._data.give_back()
                yield self._as_updates(*made)

    def each(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        consume: Callable[[ClientUpdates], None],
    ) -> None:
        """Train ``clients``, and consume updates beside the threads that go on training; see ``ClientWork``.

        What consumes is short NumPy calls: threads that train and consume in turn would wait for the interpreter.
        """
        start, ids = self._start(weights), np.asarray(clients, np.int64)
        waiting = queue.SimpleQueue[ClientUpdates | None]()
        room, given_up = threading.Semaphore(self._threads), threading.Event()
        most = min(self._chunk // (2 * self._threads + 1), -(-len(ids) // self._threads))
        # Whoever is free takes the next piece: what consumes slows one thread or the other.
        left = queue.SimpleQueue[NDArray[np.int64]]()
        for piece in self._updates[0].pieces(ids, max(1, most)):
            left.put(piece)

        def train(updates: _Updates) -> None:
            try:
                while not given_up.is_set():
                    mine = left.get_nowait()
                    made = self._as_updates(mine, *updates(start, mine, seed, self._conditions))
                    room.acquire()
                    waiting.put(made)
                    self._data.give_back()
            except queue.Empty:
                pass
            finally:
                waiting.put(None)

        with self._pool() as pool:
            training = [pool.submit(train, updates) for updates in self._updates[: left.qsize()]]
            at_work = len(training)
            try:
                while at_work:
                    made = waiting.get()
                    if made is None:
                        at_work -= 1
                    else:
                        consume(made)
                        room.release()
            except BaseException as error:
                given_up.set()
                room.release(len(training))  # nobody may be left waiting for room
                if isinstance(error, Exception):  # else the user interrupts, who should not wait for clients
                    wait(training)
                raise
            for thread in training:
                thread.result()

    def clipped_sum(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        clip_norm: float | None,
        *,
        exact: bool = False,
    ) -> ClippedSum:
        """Train ``clients``, clip and add up inside the graph; see ``ClientWork``."""
        if self._training.corrected or self._training.example is not None:
            return super().clipped_sum(weights, clients, seed, clip_norm, exact=exact)
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm}")
        start, ids = self._start(weights).weights, np.asarray(clients, np.int64)
        bound = tf.constant(np.inf if clip_norm is None else clip_norm, tf.float64)
        rate = _rate(self._training, self._conditions)
        sizes = self._offsets[ids + 1] - self._offsets[ids]
        squared, loss_sum, correct = np.zeros((3, len(ids)))

        free = queue.SimpleQueue[SumPath]()
        for one in self._sum_paths(exact):
            free.put(one)

        def add_up(share: NDArray[np.int64]) -> NDArray[np.float64]:
            total, path = np.zeros(self._model.dimension), free.get()
            try:
                with tf.device(self._device):
                    for piece in self._data.in_parts(path.pieces(ids[share])):
                        here = share[piece]
                        part, squared[here], loss_sum[here], correct[here] = path(
                            start, ids[here], seed, rate, bound
                        )
                        total += part
                        self._data.give_back()
            finally:
                free.put(path)
            return total

        # Clients without examples send zeros: nothing to train.
        shares = [np.flatnonzero(sizes > 0)[part] for part in cut(sizes[sizes > 0], self._parts)]
        with self._pool() as pool:
            totals = list(pool.map(add_up, shares))
        return ClippedSum(
            total_of(totals, self._model.dimension),
            tuple(ids.tolist()),
            np.sqrt(squared),
            np.isfinite(squared),
            loss_sum,
            correct,
            self._training.seen(sizes),
        )

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clients")
        try:
            yield pool
        finally:
            # Nothing is left to wait for, unless the user interrupts, who should not wait for a round of clients.
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, weights: Vector) -> _Start:
        if np.shape(weights) != (self._model.dimension,):
            raise ValueError(f"the model has {self._model.dimension} weights, got shape {np.shape(weights)}")
        with tf.device(self._device):
            flat = tf.constant(weights, tf.float32)
            return _Start(flat, self._model.unflatten(flat))

    def _sum_paths(self, exact: bool) -> list[SumPath]:
        """One for each thread, made when first needed."""
        with self._building:
            if exact not in self._sums:
                self._sums[exact] = self._build_sum_paths(exact)
        return self._sums[exact]

    def _build_sum_paths(self, exact: bool) -> list[SumPath]:
        model, training, data = self._model, self._training, self._data
        path = self._path
        if path == "auto" or (exact and path == "ghost"):
            path = choose_path(model, training, np.diff(self._offsets), exact)
        if path == "ghost":
            return [GhostSum(model, training, data) for _ in range(self._threads)]
        if path == "xla":
            return [CompiledSum(model, training, data, exact)] * self._threads
        return [LoopSum(model, training, data, exact) for _ in range(self._threads)]

    def _as_updates(
        self, clients: NDArray[np.int64], deltas: NDArray[np.float32], loss_sum: Any, correct: Any
    ) -> ClientUpdates:
        examples = self._offsets[clients + 1] - self._offsets[clients]
        seen = self._training.seen(examples)
        return ClientUpdates(tuple(clients.tolist()), deltas, examples, loss_sum, correct, seen)


class _Start(NamedTuple):
    """Where training starts, on the device: once ``[d]``, and once as the model's variables."""

    weights: Any
    variables: list[Any]


class _Updates:
    """Single updates, for one thread."""

    def __init__(self, model: Model, training: LocalTraining, data: Data, device: str) -> None:
        self._training, self._data, self._device = training, data, device
        self._long, self._dimension = model.dimension > _LONG, model.dimension
        self._graph: Any = None
        self._build = partial(update_graph if self._long else updates_graph, model, training, data.features.dtype)

    def pieces(self, clients: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
        """``clients`` cut into what one call takes, and no more than ``most``."""
        most = 1 if self._long else most
        for first in range(0, len(clients), most):
            yield clients[first : first + most]

    def __call__(
        self, start: _Start, clients: NDArray[np.int64], seed: Sequence[int], conditions: Conditions
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Deltas ``[clients, d]``, loss sums and counts of right answers ``[clients]``."""
        if self._graph is None:
            self._graph = self._build()
        steps, noise = self._drawn(clients, seed, conditions)
        arguments: list[Any] = [self._data.rows(steps), steps.step_bounds]
        if not self._long:
            arguments.append(steps.client_bounds)
        if noise is not None:
            arguments.append(noise[0] if self._long else noise)
        if conditions.corrections is not None:
            corrections = conditions.corrections(clients.tolist())
            arguments.append(corrections[0] if self._long else corrections)
        if self._long:
            arguments += start.variables
        rate = _rate(self._training, conditions)
        with tf.device(self._device):
            got = self._graph(start.weights, self._data.features, self._data.labels, rate, *arguments)
        deltas, loss_sum, correct = (np.asarray(value) for value in got)  # where they are: `numpy()` copies
        if self._long:
            return deltas[None], np.array([loss_sum]), np.array([correct])
        return deltas, loss_sum, correct

    def _drawn(
        self, clients: NDArray[np.int64], seed: Sequence[int], conditions: Conditions
    ) -> tuple[Schedule, NDArray[Any] | None]:
        """The steps, and with DP-SGD the noise of each, ``[clients, steps, d]``."""
        offsets, training, example = self._data.offsets, self._training, self._training.example
        if example is None or training.steps is None:
            return schedule(offsets, clients, training, seed), None
        if conditions.source is None:
            raise ValueError("DP-SGD needs a source of randomness for each client")
        sources = [conditions.source(client) for client in clients.tolist()]
        steps = drawn_schedule(offsets, clients, training, sources)
        return steps, np.stack([example.noise(source, training.steps, self._dimension) for source in sources])


def _rate(training: LocalTraining, conditions: Conditions) -> np.float32:
    return np.float32(training.learning_rate * conditions.rate_factor)
