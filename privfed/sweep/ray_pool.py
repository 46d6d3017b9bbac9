"""A sweep's trials on a Ray cluster: an actor for each job, which starts and minds a worker process beside it.

Where the machines differ, the sweep's folder must be one that all of them see by the same path: trials leave their
files and their checkpoints there, and one whose machine is lost goes on from them on another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from privfed.errors import SettingError
from privfed.executors.ray_cluster import LEAST_STORE_MIB, Cluster
from privfed.sweep.grid import Trial
from privfed.sweep.pool import WORKER, Event, Pool, _Worker, split_cores

ATTEMPTS = 3
"""Machines or actors that one trial may lose."""


class RayPool(Pool):
    """``jobs`` workers, each of one core of the cluster at ``address``; of one started here without."""

    def __init__(self, jobs: int, logs: Path, address: str | None, command: Sequence[str] = WORKER) -> None:
        self._cluster = Cluster(address, jobs, LEAST_STORE_MIB)
        try:
            if jobs > self._cluster.cores:
                raise SettingError(
                    f"the cluster has {self._cluster.cores} cores", where="--jobs", value=jobs, remedy="Use fewer"
                )
            places = split_cores(jobs) if address is None else [None] * jobs
            self._workers = [
                _RemoteWorker(
                    [*command, *([] if cores is None else [",".join(map(str, cores))])],
                    logs.absolute() / f"worker-{number}.log",
                )
                for number, cores in enumerate(places)
            ]
        except BaseException:
            self._cluster.close()
            raise

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._cluster.close()


class _Host:
    """The actor: a worker process, and what it tells as a stream."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._worker = _Worker(command, log)

    def train(self, trial: Trial, folder: Path) -> Iterator[Event]:
        """See ``_Worker.train``."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                self._worker.train(trial, folder, events.put)
            except Exception as error:  # noqa: BLE001 - the trial must hear of it
                self._worker.kill()
                events.put(Event(trial, "failed", words=f"{type(error).__name__}: {error}"))
            finally:
                events.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (event := events.get()) is not None:
            yield event

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        self._worker.signal(number)

    def close(self) -> None:
        """Let the process end."""
        self._worker.close()


class _RemoteWorker(_Worker):
    """What a pool's thread speaks to; an actor that is lost is replaced, and its trial goes on there."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        super().__init__(command, log)
        self._host: Any = None

    def train(self, trial: Trial, folder: Path, tell: Callable[[Event], None]) -> None:
        """As there."""
        import ray
        from ray import exceptions

        for _ in range(ATTEMPTS):
            if self._asked_to_stop:
                tell(Event(trial, "stopped"))
                return
            if self._host is None:
                # Two calls at a time: a signal must not wait for the training.
                actor: Any = ray.remote(num_cpus=1)(_Host)
                self._host = actor.options(max_concurrency=2).remote(self._command, self._log)
            try:
                for event in self._host.train.options(num_returns="streaming").remote(trial, folder.absolute()):
                    tell(ray.get(event))
                return
            except (exceptions.RayActorError, exceptions.ObjectLostError):
                self._host = None
        tell(Event(trial, "failed", words=f"{ATTEMPTS} of Ray's actors were lost over it"))

    def signal(self, number: int) -> None:
        """As there."""
        self._asked_to_stop = True
        if self._host is not None:
            self._host.signal.remote(number)

    def kill(self) -> None:
        """As there."""
        self.close()

    def close(self) -> None:
        """End process and actor."""
        import ray

        host, self._host = self._host, None
        if host is not None:
            with suppress(Exception):  # it may be lost already
                ray.get(host.close.remote(), timeout=15)
            with suppress(Exception):
                ray.kill(host)
