"""The ways to a clipped sum on this machine, each with the same call: some clients in, their sum out.

* ``ghost``: one local step on dense layers; no update is ever built;
* ``xla``: client after client in a compiled graph; dense models, whose small operations it fuses;
* ``loop``: client after client in a graph; every model.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.executors import ghost
from privfed.executors.compiled import Batches, CallShape, compiled_sum_graph
from privfed.executors.dense import dense_widths
from privfed.executors.loop import sum_graph
from privfed.federated.client_work import LocalTraining, Schedule, schedule
from privfed.models.functional import Model

PATHS = ("auto", "loop", "xla", "ghost")

CLIENTS_IN_FLOAT32 = 32
"""Contributions of a model that the loop adds up in float32 before they go into the float64 total."""

CLIENTS_MAPPED = 16
"""Clients that a thread reads from a map before it gives their pages back: the kernel maps up to 2 MiB each."""

LEAST_FILLED = 0.5
"""Share of real examples in filled-up batches below which compiled steps waste what they gain."""


class SumPath(Protocol):
    """One way, for one thread."""

    def pieces(self, clients: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Positions in ``clients`` for one call after another."""
        ...

    def __call__(
        self, weights: Any, clients: NDArray[np.int64], seed: Sequence[int], rate: Any, clip_norm: Any
    ) -> list[NDArray[Any]]:
        """Total ``[d]``, and squared norms, loss sums and counts of right answers ``[clients]``."""
        ...


def choose_path(model: Model, training: LocalTraining, sizes: NDArray[np.int64], exact: bool) -> str:
    """The fastest way, by the structure of model and population alone: the same on every machine and every day."""
    widths = dense_widths(model)
    if widths is None:
        return "loop"
    if not exact and ghost.worth_it(sizes, training, widths):
        return "ghost"
    shape = CallShape.for_population(sizes, training)
    filled = sizes.sum() / max(1, shape.batch * (-(-sizes // shape.batch)).sum())
    return "xla" if filled >= LEAST_FILLED else "loop"


def check_path(path: str, model: Model, training: LocalTraining, sizes: NDArray[np.int64]) -> None:
    """Refuse a way that does not exist or cannot be gone.

    Raises:
        ValueError: In words.
    """
    if path not in PATHS:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    if path == "ghost":
        if not training.takes_one_step(int(sizes.max(initial=0))):
            raise ValueError("path 'ghost' needs clients that take one local step: 1 epoch of a single batch")
        if dense_widths(model) is None:
            raise ValueError(f"path 'ghost' needs a model of dense layers alone, {model.name} is not")


class Data:
    """The packed population where TensorFlow has it: on the CPU without a copy, as far as the memory is aligned.

    Attributes:
        features: ``[n, *input_shape]``.
        labels: ``[n]``, int32.
        offsets: Of the population, ``[clients + 1]``, in memory of NumPy.
    """

    def __init__(
        self, features: NDArray[Any], labels: NDArray[np.int32], offsets: NDArray[np.int64], device: str
    ) -> None:
        self.offsets, self._device = offsets, device
        self._set(features, labels)
        self._firsts: NDArray[np.int64] | None = None

    def hold(self, clients: NDArray[np.int64], features: NDArray[Any], labels: NDArray[np.int32]) -> None:
        """From now on the arrays are examples of ``clients``, who rise, alone; more rows may lie behind them."""
        sizes = self.offsets[clients + 1] - self.offsets[clients]
        self._firsts = self.offsets[clients[sizes > 0]]
        self._moved = self._firsts - (np.cumsum(sizes) - sizes)[sizes > 0]
        self._set(features, labels)

    def rows(self, steps: Schedule) -> NDArray[np.int32]:
        """Where in ``features`` the examples of a schedule lie, ``[examples seen]``."""
        if self._firsts is None or not len(steps.rows):
            return steps.rows
        owner = np.searchsorted(self._firsts, steps.rows, "right") - 1
        rows: NDArray[np.int32] = (steps.rows - self._moved[owner]).astype(np.int32)
        return rows

    def _set(self, features: NDArray[Any], labels: NDArray[np.int32]) -> None:
        owners = features, labels  # of memory that the tensors may share
        self._maps = [owner for array in owners if (owner := _map_behind(array)) is not None]
        with tf.device(self._device):
            self.features, self.labels = (
                _sharing(array) if self._device.startswith("CPU") and _can_be_shared(array) else tf.constant(array)
                for array in owners
            )
        self._owners = owners

    def in_parts(self, pieces: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """``pieces`` cut into what may be read before ``give_back``, which only mapped data need."""
        for piece in pieces:
            most = CLIENTS_MAPPED if self._maps else max(1, len(piece))
            for first in range(0, len(piece), most):
                yield piece[first : first + most]

    def give_back(self) -> None:
        """Take mapped pages out of this process, where the kernel would leave all that was ever read."""
        for owner in self._maps:
            owner.madvise(mmap.MADV_DONTNEED)


_ALIGNMENT = 64
"""Bytes; TensorFlow's operations take no other memory. Arrays mapped from ``.npy`` files have it."""


def _can_be_shared(array: NDArray[Any]) -> bool:
    return array.size > 0 and array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0


def _map_behind(array: NDArray[Any]) -> mmap.mmap | None:
    """The file map that a read-only array lies in."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    known = isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED")  # which not every system has
    return owner if known and not array.flags.writeable else None


def _sharing(array: NDArray[Any]) -> Any:
    """A tensor over the memory of ``array``, which must outlive it."""
    # DLPack cannot say that memory is read-only, and so refuses it; nothing here writes to an input.
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    alias = np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
    return tf.experimental.dlpack.from_dlpack(alias.__dlpack__())


class LoopSum:
    """Path ``loop``."""

    def __init__(self, model: Model, training: LocalTraining, data: Data, exact: bool) -> None:
        self._training, self._data = training, data
        self._graph = sum_graph(model, training, data.features.dtype, tf.float64 if exact else tf.float32)

    def pieces(self, clients: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """As ``SumPath``."""
        for first in range(0, len(clients), CLIENTS_IN_FLOAT32):
            yield np.arange(first, min(first + CLIENTS_IN_FLOAT32, len(clients)))

    def __call__(
        self, weights: Any, clients: NDArray[np.int64], seed: Sequence[int], rate: Any, clip_norm: Any
    ) -> list[NDArray[Any]]:
        """As ``SumPath``."""
        data, steps = self._data, schedule(self._data.offsets, clients, self._training, seed)
        got = self._graph(
            weights,
            data.features,
            data.labels,
            rate,
            data.rows(steps),
            steps.step_bounds,
            steps.client_bounds,
            clip_norm,
        )
        return [value.numpy() for value in got]


class CompiledSum:
    """Path ``xla``; threads may share one."""

    def __init__(self, model: Model, training: LocalTraining, data: Data, exact: bool) -> None:
        self._training, self._data = training, data
        self._shape = CallShape.for_population(np.diff(data.offsets), training)
        dtype = tf.float64 if exact else tf.float32
        self._graph = compiled_sum_graph(model, training, self._shape, data.features, data.labels, dtype)
        self._loop = cache(lambda: LoopSum(model, training, data, exact))
        self._looping = threading.Lock()

    def pieces(self, clients: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """As ``SumPath``."""
        sizes = self._data.offsets[clients + 1] - self._data.offsets[clients]
        steps = self._training.steps_of(sizes)
        first, used = 0, 0
        for i, need in enumerate(steps):
            if used + need > self._shape.steps:
                yield np.arange(first, i)
                first, used = i, 0
            used += need
        if first < len(clients):
            yield np.arange(first, len(clients))

    def __call__(
        self, weights: Any, clients: NDArray[np.int64], seed: Sequence[int], rate: Any, clip_norm: Any
    ) -> list[NDArray[Any]]:
        """As ``SumPath``."""
        data = self._data
        planned = schedule(data.offsets, clients, self._training, seed)
        steps = Batches.of(replace(planned, rows=data.rows(planned)), self._shape)
        total, *known = self._graph(
            weights,
            data.features,
            data.labels,
            rate,
            steps.rows,
            steps.real,
            steps.client_bounds,
            steps.clients,
            clip_norm,
        )
        result = [total.numpy(), *(value.numpy()[: len(clients)] for value in known)]
        return self._with_diverged(result, weights, clients, seed, rate, clip_norm)

    def _with_diverged(
        self,
        result: list[NDArray[Any]],
        weights: Any,
        clients: NDArray[np.int64],
        seed: Sequence[int],
        rate: Any,
        clip_norm: Any,
    ) -> list[NDArray[Any]]:
        """Go through clients again whose norm float32 cannot tell from infinity: rare, so it may be slow."""
        diverged = np.flatnonzero(~np.isfinite(result[1]))
        if len(diverged):
            with self._looping:
                part, squared, *_ = self._loop()(weights, clients[diverged], seed, rate, clip_norm)
            squared_norms = result[1].copy()
            squared_norms[diverged] = squared
            result[:2] = [result[0] + part, squared_norms]
        return result


class GhostSum:
    """Path ``ghost``."""

    def __init__(self, model: Model, training: LocalTraining, data: Data) -> None:
        self._training, self._data = training, data
        self._graph = ghost.ghost_graph(model, data.features.dtype)

    def pieces(self, clients: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """As ``SumPath``."""
        yield from ghost.blocks(self._data.offsets[clients + 1] - self._data.offsets[clients])

    def __call__(
        self, weights: Any, clients: NDArray[np.int64], seed: Sequence[int], rate: Any, clip_norm: Any
    ) -> list[NDArray[Any]]:
        """As ``SumPath``."""
        data = self._data
        sizes = (data.offsets[clients + 1] - data.offsets[clients]).astype(np.int32)
        steps = schedule(data.offsets, clients, self._training, seed)
        got = self._graph(
            weights, data.features, data.labels, rate, data.rows(steps), sizes, ghost.places(sizes), clip_norm
        )
        return [value.numpy() for value in got]
