"""Client work on many machines: Ray's actors train, each as one thread of ``local`` does, and with its bits.

The population goes into Ray's object store once, which has one copy on each machine for all actors there; the
weights go there once a round. A float sum is made of ``parts`` that are cut as ``local`` cuts them; an actor
returns its part's sum, and the sums are added in order here: neither the number of actors nor who dies matters.
Sums in a ring need no order: an actor returns what its clients' encoded vectors add up to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.errors import SettingError
from privfed.executors.parts import cut, total_of
from privfed.executors.population import check_population
from privfed.executors.ray_cluster import LEAST_STORE_MIB, MIB, Cluster, Crew
from privfed.executors.threads import available_cores
from privfed.federated.client_work import ClientUpdates, ClientWork, ClippedSum, Conditions, Fold, LocalTraining
from privfed.models.functional import Model, Vector

_COPIES = 3
"""Of updates on their way: with the actor, in the store, and here."""
_JOBS_EACH = 4
"""Pieces of a cohort for each actor, so that none waits long for the slowest."""


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
        object_store_mib: Of a cluster that is started here; what the population needs when not given.
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
        held = (features.nbytes + labels.nbytes + self._offsets.nbytes + memory_budget_bytes) // MIB
        # Of each actor the weights it was sent, and the sum that it returns.
        needed = LEAST_STORE_MIB + held + (cores + parts + 2) * 12 * model.dimension // MIB
        self._cluster = Cluster(address, cores, object_store_mib or needed)
        try:
            self._crew = self._hire(workers, model, (features, labels, self._offsets))
        except BaseException:
            self._cluster.close()
            raise

    def _hire(self, workers: int | None, model: Model, arrays: tuple[NDArray[Any], ...]) -> Crew:
        import ray

        if workers is not None and workers > self._cluster.cores:
            raise SettingError(
                f"the cluster has {self._cluster.cores} cores",
                where="ray.workers",
                value=workers,
                remedy="Use fewer, or add machines",
            )
        shared = [ray.put(array) for array in arrays]
        # Ray would give a single core's worth of threads to what computes outside TensorFlow's graphs.
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Shard)
        return Crew(lambda: actor.remote(model, self._training, *shared), workers or max(1, self._cluster.cores))

    @property
    def lost_workers(self) -> int:
        """Actors that died and were replaced."""
        return self._crew.lost

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
        start, ids = self._broadcast(weights), np.asarray(clients, np.int64)
        ahead = 2 * self._crew.size
        room = self._budget // (_COPIES * ahead * 4 * self._dimension)
        most = max(1, min(room, -(-len(ids) // (_JOBS_EACH * self._crew.size))))
        jobs = [(start, ids[i : i + most], tuple(seed), self._conditions) for i in range(0, len(ids), most)]
        yield from self._crew.run("updates", jobs, ahead)

    def fold(self, weights: Vector, clients: Sequence[int], seed: Sequence[int], fold: Fold) -> None:
        """Train ``clients``; copies of ``fold`` take their updates in where they are made; see ``ClientWork``."""
        import ray

        start, ids, empty = self._broadcast(weights), np.asarray(clients, np.int64), ray.put(fold)
        shares = cut(self._offsets[ids + 1] - self._offsets[ids], _JOBS_EACH * self._crew.size)
        jobs = [(start, ids[share], tuple(seed), self._conditions, empty) for share in shares]
        for taken in self._crew.run("fold", jobs, 2 * self._crew.size):
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
        jobs = [(start, ids[share], tuple(seed), clip_norm, exact, self._conditions) for share in shares]
        norms, loss_sum, correct = np.zeros((3, len(ids)))
        finite = np.ones(len(ids), bool)

        def totals() -> Iterator[NDArray[np.float64]]:
            ahead = _JOBS_EACH * self._crew.size
            for share, got in zip(shares, self._crew.run("clipped_sum", jobs, ahead), strict=True):
                norms[share], finite[share] = got.norms, got.finite
                loss_sum[share], correct[share] = got.loss_sum, got.correct
                yield got.total

        total, seen = total_of(totals(), self._dimension), self._training.seen(sizes)
        return ClippedSum(total, tuple(ids.tolist()), norms, finite, loss_sum, correct, seen)

    def _broadcast(self, weights: Vector) -> Any:
        """The weights in the object store, from where every machine takes them once."""
        import ray

        if np.shape(weights) != (self._dimension,):
            raise ValueError(f"the model has {self._dimension} weights, got shape {np.shape(weights)}")
        return ray.put(np.asarray(weights, np.float32))


class _Shard:
    """An actor: one thread of ``local``, over the population in its machine's shared memory."""

    def __init__(
        self,
        model: Model,
        training: LocalTraining,
        features: NDArray[Any],
        labels: NDArray[Any],
        offsets: NDArray[Any],
    ) -> None:
        from privfed.executors.local import LocalClientWork, configure_threads

        configure_threads()
        self._work = LocalClientWork(model, features, labels, offsets, training, threads=1)

    def updates(
        self, weights: Vector, clients: NDArray[np.int64], seed: tuple[int, ...], conditions: Conditions
    ) -> ClientUpdates:
        """Single updates of a piece of the cohort."""
        chunks = list(self._work.under(conditions)(weights, clients.tolist(), seed))
        if len(chunks) == 1:
            return chunks[0]
        columns = ("deltas", "examples", "loss_sum", "correct", "seen")
        joined = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in columns)
        return ClientUpdates(tuple(clients.tolist()), *joined)

    def fold(
        self,
        weights: Vector,
        clients: NDArray[np.int64],
        seed: tuple[int, ...],
        conditions: Conditions,
        fold: Fold,
    ) -> Any:
        """What ``fold``, a copy for this call alone, takes in of a piece of the cohort."""
        self._work.under(conditions).fold(weights, clients.tolist(), seed, fold)
        return fold.taken()

    def clipped_sum(
        self,
        weights: Vector,
        clients: NDArray[np.int64],
        seed: tuple[int, ...],
        clip_norm: float | None,
        exact: bool,
        conditions: Conditions,
    ) -> ClippedSum:
        """The sum of a part."""
        return self._work.under(conditions).clipped_sum(weights, clients.tolist(), seed, clip_norm, exact=exact)
