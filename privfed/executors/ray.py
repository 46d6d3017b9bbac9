"""Client work on many machines: Ray's actors train, each as one thread of ``local`` does, and with its bits.

Clients live with one actor each, which has their examples (``ray_shards``); the weights go into Ray's object store
once a round. A float sum is made of ``parts`` that are cut as ``local`` cuts them; an actor
returns its part's sum, and the sums are added in order here: neither the number of actors nor who dies matters.
Sums in a ring need no order: an actor returns what its clients' encoded vectors add up to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privfed.errors import SettingError
from privfed.executors.parts import cut, total_of
from privfed.executors.population import check_population
from privfed.executors.ray_cluster import LEAST_STORE_MIB, MIB, Cluster, Crew, Job
from privfed.executors.ray_shards import Examples, Sent, Shards
from privfed.executors.threads import available_cores
from privfed.federated.client_work import ClientUpdates, ClientWork, ClippedSum, Conditions, Fold, LocalTraining
from privfed.models.functional import Model, Vector

if TYPE_CHECKING:
    from privfed.executors.local import LocalClientWork

_COPIES = 3
"""Of updates on their way: with the actor, in the store, and here."""
_JOBS_EACH = 4
"""Pieces of a cohort for each actor, so that none waits long for the slowest."""
_AHEAD = 2
"""Pieces of single updates for each actor that may wait for an earlier one."""


class RayClientWork(ClientWork):
    """Trains clients on Ray's actors; a context manager, and arguments as ``LocalClientWork``.

    Args:
        model: What is trained.
        features: Examples of all clients ``[n, *input_shape]``: uint8, scaled by 1/255, or float32 in [0, 1].
        labels: Class numbers ``[n]``.
        offsets: Client ``c`` owns the rows ``offsets[c]:offsets[c + 1]``, ``[clients + 1]``.
        training: What each client does.
        parts: That a float sum is made of.
        address: Of a cluster, see ``Cluster``; started on this machine when not given.
        workers: Actors, one core each; as many as the cluster has cores when not given.
        object_store_mib: Of a cluster that is started here; what is under way at the same time when not given.
        memory_budget_bytes: Bound on the memory that updates take on their way.

    Raises:
        ValueError: The arrays do not fit, or training has control variates, which stay where clients are.
        PrivFedError: There is no such cluster, or it has fewer cores than workers.
    """

    def __init__(
        self,
        model: Model,
        features: NDArray[Any],
        labels: NDArray[Any],
        offsets: NDArray[Any],
        training: LocalTraining,
        *,
        parts: int,
        address: str | None = None,
        workers: int | None = None,
        object_store_mib: int | None = None,
        memory_budget_bytes: int = 256 << 20,
    ) -> None:
        features, labels, self._offsets = check_population(model, features, labels, offsets)
        if training.corrected:
            raise ValueError("the executor 'ray' has no control variates")
        self._dimension, self._training, self._parts = model.dimension, training, parts
        self._budget, self._conditions = memory_budget_bytes, Conditions()
        cores = workers or available_cores()
        # Examples that do not fit on their way Ray keeps on disk meanwhile.
        moving = (min(features.nbytes + labels.nbytes, memory_budget_bytes) + self._offsets.nbytes) // MIB
        # Of each actor the weights it was sent, and the sum that it returns.
        results = memory_budget_bytes // MIB + (cores + parts + 2) * 12 * model.dimension // MIB
        self._cluster = Cluster(address, cores, object_store_mib or LEAST_STORE_MIB + moving + results)
        try:
            self._crew, self._shards = self._hire(workers, model, features, labels)
        except BaseException:
            self._cluster.close()
            raise

    def _hire(
        self, workers: int | None, model: Model, features: NDArray[Any], labels: NDArray[np.int32]
    ) -> tuple[Crew, Shards]:
        import ray

        if workers is not None and workers > self._cluster.cores:
            raise SettingError(
                f"the cluster has {self._cluster.cores} cores",
                where="ray.workers",
                value=workers,
                remedy="Use fewer, or add machines",
            )
        size = workers or max(1, self._cluster.cores)
        shards = Shards(features, labels, self._offsets, max(size, self._parts), size)
        offsets = ray.put(self._offsets)
        # Ray would give a single core's worth of threads to what computes outside TensorFlow's graphs.
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Shard)

        def start(seat: int) -> Any:
            shards.forget(seat)
            return actor.remote(model, self._training, offsets)

        return Crew(start, size), shards

    @property
    def lost_workers(self) -> int:
        """Actors that died and were replaced."""
        return self._crew.lost

    @property
    def sent_bytes(self) -> int:
        """Examples that went to actors until now."""
        return self._shards.sent_bytes

    def under(self, conditions: Conditions) -> RayClientWork:
        """The same work, with the same actors, in a round with these conditions."""
        if conditions.corrections is not None:
            raise ValueError("the executor 'ray' has no control variates")
        work = copy.copy(self)
        work._conditions = conditions
        return work

    def __enter__(self) -> RayClientWork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and the cluster where it was started here; ends with this process in any case."""
        self._crew.close()
        self._cluster.close()

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Train ``clients`` from ``weights`` ``[d]``; see ``ClientWork``."""
        ids = np.asarray(clients, np.int64)
        most = min(self._room(), max(1, -(-len(ids) // (_JOBS_EACH * self._crew.size))))
        pieces = [ids[i : i + most] for i in range(0, len(ids), most)]
        jobs = self._jobs(pieces, self._broadcast(weights), tuple(seed), self._conditions)
        yield from self._crew.run("updates", jobs, _AHEAD * self._crew.size)

    def each(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        consume: Callable[[ClientUpdates], None],
    ) -> None:
        """Train ``clients``, each where it is at home, and consume updates as they come; see ``ClientWork``."""
        pieces = self._at_home(clients, self._room())
        jobs = self._jobs(pieces, self._broadcast(weights), tuple(seed), self._conditions)
        for chunk in self._crew.run("updates", jobs):
            consume(chunk)

    def fold(self, weights: Vector, clients: Sequence[int], seed: Sequence[int], fold: Fold) -> None:
        """Train ``clients``; copies of ``fold`` take their updates in where they are made; see ``ClientWork``."""
        import ray

        pieces, empty = self._at_home(clients, self._room() if fold.apart else None), ray.put(fold)
        jobs = self._jobs(pieces, self._broadcast(weights), tuple(seed), self._conditions, empty)
        for taken in self._crew.run("fold", jobs):
            fold.merge(taken)

    def clipped_sum(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        clip_norm: float | None,
        *,
        exact: bool = False,
    ) -> ClippedSum:
        """Train ``clients``, clip and add up where they train; see ``ClientWork``."""
        if self._training.example is not None:
            return super().clipped_sum(weights, clients, seed, clip_norm, exact=exact)
        start, ids = self._broadcast(weights), np.asarray(clients, np.int64)
        sizes = self._offsets[ids + 1] - self._offsets[ids]
        # Clients without examples send zeros: nothing to train.
        shares = [np.flatnonzero(sizes > 0)[part] for part in cut(sizes[sizes > 0], self._parts)]
        pieces = [ids[share] for share in shares]
        jobs = self._jobs(pieces, start, tuple(seed), self._conditions, clip_norm, exact)
        norms, loss_sum, correct = np.zeros((3, len(ids)))
        finite = np.ones(len(ids), bool)

        def totals() -> Iterator[NDArray[np.float64]]:
            results = self._crew.run("clipped_sum", jobs, _JOBS_EACH * self._crew.size)
            for share, got in zip(shares, results, strict=True):
                norms[share], finite[share] = got.norms, got.finite
                loss_sum[share], correct[share] = got.loss_sum, got.correct
                yield got.total

        total, seen = total_of(totals(), self._dimension), self._training.seen(sizes)
        return ClippedSum(total, tuple(ids.tolist()), norms, finite, loss_sum, correct, seen)

    def _room(self) -> int:
        """Clients whose updates one actor may have under way."""
        return max(1, self._budget // (_COPIES * _AHEAD * self._crew.size * 4 * self._dimension))

    def _at_home(self, clients: Sequence[int], most: int | None) -> list[NDArray[np.int64]]:
        """``clients`` in pieces of about the same work, each of one actor's, and of no more than ``most``."""
        pieces = [
            group[piece]
            for group in self._shards.at_home(np.asarray(clients, np.int64))
            for piece in cut(self._offsets[group + 1] - self._offsets[group], _JOBS_EACH)
        ]
        if most is None:
            return pieces
        return [piece[i : i + most] for piece in pieces for i in range(0, len(piece), most)]

    def _jobs(self, pieces: Sequence[NDArray[np.int64]], *rest: Any) -> list[Job]:
        """A job for each piece of a cohort."""

        def arguments(piece: NDArray[np.int64], seat: int) -> tuple[Any, ...]:
            return piece, self._shards.for_job(seat, piece), *rest

        return [Job(self._shards.seat_of(piece), partial(arguments, piece)) for piece in pieces]

    def _broadcast(self, weights: Vector) -> Any:
        """The weights in the object store, from where every machine takes them once."""
        import ray

        if np.shape(weights) != (self._dimension,):
            raise ValueError(f"the model has {self._dimension} weights, got shape {np.shape(weights)}")
        return ray.put(np.asarray(weights, np.float32))


class _Shard:
    """An actor: one thread of ``local``, over the examples of its own clients and of those that a job brings."""

    def __init__(self, model: Model, training: LocalTraining, offsets: NDArray[np.int64]) -> None:
        from privfed.executors.local import configure_threads

        configure_threads()
        self._model, self._training, self._offsets = model, training, offsets
        self.examples = Examples(offsets)
        self._work: LocalClientWork | None = None
        self._rows = 0

    def updates(
        self,
        clients: NDArray[np.int64],
        sent: Sent,
        weights: Vector,
        seed: tuple[int, ...],
        conditions: Conditions,
    ) -> ClientUpdates:
        """Single updates of a piece of the cohort."""
        work = self._holding(clients, sent).under(conditions)
        chunks = list(work(weights, clients.tolist(), seed))
        if len(chunks) == 1:
            return chunks[0]
        columns = ("deltas", "examples", "loss_sum", "correct", "seen")
        joined = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in columns)
        return ClientUpdates(tuple(clients.tolist()), *joined)

    def fold(
        self,
        clients: NDArray[np.int64],
        sent: Sent,
        weights: Vector,
        seed: tuple[int, ...],
        conditions: Conditions,
        fold: Fold,
    ) -> Any:
        """What ``fold``, a copy for this call alone, takes in of a piece of the cohort."""
        self._holding(clients, sent).under(conditions).fold(weights, clients.tolist(), seed, fold)
        return fold.taken()

    def clipped_sum(
        self,
        clients: NDArray[np.int64],
        sent: Sent,
        weights: Vector,
        seed: tuple[int, ...],
        conditions: Conditions,
        clip_norm: float | None,
        exact: bool,
    ) -> ClippedSum:
        """The sum of a part."""
        work = self._holding(clients, sent).under(conditions)
        return work.clipped_sum(weights, clients.tolist(), seed, clip_norm, exact=exact)

    def _holding(self, clients: NDArray[np.int64], sent: Sent) -> LocalClientWork:
        """Training over the examples of ``clients``."""
        from privfed.executors.local import LocalClientWork

        held, features, labels = self.examples.lay_out(clients, sent)
        if self._work is None or len(labels) != self._rows:
            self._work, self._rows = None, len(labels)
            self._work = LocalClientWork(
                self._model, features, labels, self._offsets, self._training, threads=1, held=held
            )
        else:
            self._work.hold(held, features, labels)
        return self._work
