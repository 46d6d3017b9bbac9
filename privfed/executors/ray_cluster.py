"""Ray as PrivFed uses it: a cluster joined or started, and a crew of actors whose losses are made good."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from privfed.errors import PrivFedError, SettingError
from privfed.executors import ray_guard

MIB = 1 << 20
LEAST_STORE_MIB = 80
"""Ray starts with no less."""
ATTEMPTS = 4
"""Workers that one job may lose before the job is at fault."""
START_SECONDS = 600.0
"""That a cluster has to start a first worker: a machine may have to be had first."""
_POLL_SECONDS = 1.0


class Cluster:
    """A connection to Ray; ``close`` ends it, and with it all that was started here.

    Without ``address`` Ray is started on this machine: on the loopback interface alone, without dashboard and
    usage statistics, its processes tied to the life of this one. A connection that this process has already is
    shared, and left as it is.

    Args:
        address: Of the head, ``HOST:PORT`` or ``auto``.
        cores: Of a cluster started here.
        store_mib: Shared memory of a cluster started here.

    Raises:
        PrivFedError: Ray is not installed, or nobody answers there, or there is no such memory.
    """

    def __init__(self, address: str | None, cores: int, store_mib: int) -> None:
        if importlib.util.find_spec("ray") is None:
            raise PrivFedError("needs Ray", where='executor = "ray"', remedy="pip install 'privfed[ray]'")
        # Read when Ray is imported. The last one: Ray shall not hide GPUs from actors that ask for none.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it complains of metrics that nobody asked for
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with _quietly():
            import ray
        self._owned = not ray.is_initialized()
        self._folder: str | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        if not self._owned:
            return
        if address is None:
            self._start(cores, store_mib)
            return
        try:
            with _quietly(), _own_environment():
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise PrivFedError(
                f"no Ray cluster answers: {reason}",
                where="ray.address",
                value=address,
                remedy="See docs/cluster.md",
            ) from None

    def _start(self, cores: int, store_mib: int) -> None:
        import ray

        shared = "/dev/shm"  # noqa: S108 - where Ray puts the store, and nothing of ours
        if os.path.isdir(shared) and (free := shutil.disk_usage(shared).free) < store_mib * MIB:
            raise SettingError(
                f"the object store needs {store_mib:,} MiB, and {free // MIB:,} MiB are free in {shared}",
                where="ray.object_store_mib",
                remedy='Use a smaller population, or executor = "local"',
            )
        # Short: the paths of its sockets may have about a hundred letters.
        self._folder = tempfile.mkdtemp(prefix="pf-ray-")
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", ray_guard.__file__, str(os.getpid()), self._folder],
            stdin=subprocess.PIPE,
            start_new_session=True,  # the keyboard's interrupt is for this process
        )
        with _quietly(), _own_environment():
            ray.init(
                address="local",
                num_cpus=cores,
                object_store_memory=store_mib * MIB,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=self._folder,
            )

    @property
    def cores(self) -> int:
        """Of all machines."""
        import ray

        return int(ray.cluster_resources().get("CPU", 0))

    def close(self) -> None:
        """End the connection."""
        import ray

        if self._owned:
            with _quietly():
                ray.shutdown()
            if self._guard is not None:
                self._guard.communicate()
            self._owned = False


class Job(NamedTuple):
    """Something for one actor to do.

    Attributes:
        seat: Whose actor does it best.
        arguments: ``seat -> arguments`` of whoever does it; asked when it is sent, in the order in which each
            actor gets its jobs.
    """

    seat: int
    arguments: Callable[[int], tuple[Any, ...]]


class Crew:
    """Actors that do jobs, each in its seat; one that dies is replaced, and its job done again by whoever is free.

    Args:
        start: Makes the actor of a seat; called again for each that is lost.
        size: How many.
    """

    def __init__(self, start: Callable[[int], Any], size: int) -> None:
        self._start = start
        self._workers = {seat: start(seat) for seat in range(size)}
        self._free = list(self._workers)
        self._busy: dict[Any, int] = {}
        self._starting = [worker.__ray_ready__.remote() for worker in self._workers.values()]
        self.size, self.lost = size, 0

    def run(self, method: str, jobs: Sequence[Job], ahead: int | None = None) -> Iterator[Any]:
        """The results of ``method`` for each job: as they come, or in the order of the jobs.

        With ``ahead`` in that order, and no more than so many results wait for an earlier one. Who is free does a
        job of its own seat, and without one that of another who is not free.

        Raises:
            PrivFedError: A job loses worker after worker, no worker starts, or the cluster is gone.
        """
        import ray
        from ray import exceptions

        dead = (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.WorkerCrashedError)
        left, under_way = _Left([job.seat for job in jobs], self.size), dict[Any, int]()
        done, losses, wanted = dict[int, Any](), [0] * len(jobs), 0
        try:
            while wanted < len(jobs):
                for seat, job in left.take(self._free, len(jobs) if ahead is None else wanted + ahead):
                    self._free.remove(seat)
                    future = getattr(self._workers[seat], method).remote(*jobs[job].arguments(seat))
                    under_way[future], self._busy[future] = job, seat
                ready = self._first_of(list(under_way))
                seat, job = self._busy.pop(ready), under_way.pop(ready)
                try:
                    result = ray.get(ready)
                    self._free.append(seat)
                except dead as error:
                    self._replace(seat)
                    losses[job] += 1
                    if losses[job] == ATTEMPTS:
                        raise PrivFedError(
                            f"{ATTEMPTS} workers died over the same clients: {_first_line(error)}",
                            where='executor = "ray"',
                            remedy="Look for the reason, often memory; a run goes on from its checkpoint",
                        ) from None
                    left.put_back(job)
                    continue
                except exceptions.RayTaskError as error:
                    self._free.append(seat)
                    raise error.cause from error
                if ahead is None:
                    wanted += 1
                    yield result
                    continue
                done[job] = result
                while wanted in done:
                    yield done.pop(wanted)
                    wanted += 1
        finally:
            # Whoever still works for a caller that has given up is free when done: its next job waits for that.
            for future in under_way:
                self._free.append(self._busy.pop(future))

    def _first_of(self, futures: list[Any]) -> Any:
        """The first that is there; in slices, between which Python hears of signals."""
        import ray

        began = time.monotonic()
        while not (there := ray.wait(futures, num_returns=1, timeout=_POLL_SECONDS)[0]):
            if self._starting and ray.wait(self._starting, num_returns=1, timeout=0)[0]:
                self._starting = []
            if self._starting and time.monotonic() - began > START_SECONDS:
                raise PrivFedError(
                    f"no worker has started for {START_SECONDS:.0f} seconds",
                    where='executor = "ray"',
                    remedy="Look into the cluster's logs, and `ray status`",
                )
        return there[0]

    def _replace(self, seat: int) -> None:
        import ray

        self.lost += 1
        with suppress(Exception):  # it is dead, or cannot be reached
            ray.kill(self._workers[seat])
        self._workers[seat] = self._start(seat)
        self._free.append(seat)

    def close(self) -> None:
        """End the actors."""
        import ray

        for worker in self._workers.values():
            with suppress(Exception):
                ray.kill(worker)
        self._workers.clear()
        self._free.clear()


class _Left:
    """Jobs that nobody does yet, by seat.

    Args:
        seats: Of each job.
        size: How many seats there are.
    """

    def __init__(self, seats: Sequence[int], size: int) -> None:
        self._seats, self._queues = seats, [deque[int]() for _ in range(size)]
        for job, seat in enumerate(seats):
            self._queues[seat].append(job)

    def take(self, free: Sequence[int], limit: int) -> list[tuple[int, int]]:
        """Seats that are free, each with a job below ``limit`` for it: first its own, then the first of all."""
        taken = [(seat, self._queues[seat].popleft()) for seat in free if self._first(seat) < limit]
        for seat in set(free).difference(seat for seat, _ in taken):
            longest = min(range(len(self._queues)), key=self._first)
            if self._first(longest) < limit:
                taken.append((seat, self._queues[longest].popleft()))
        return taken

    def put_back(self, job: int) -> None:
        """To be done before the others of its seat."""
        self._queues[self._seats[job]].appendleft(job)

    def _first(self, seat: int) -> float:
        return self._queues[seat][0] if self._queues[seat] else math.inf


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Under ``uv run`` Ray would start workers by the same words in a copy of the folder, which may lack uv.

    Whether it does is read from the environment when Ray is imported, which may be long ago.
    """
    from ray._private import ray_constants

    name = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    found = getattr(ray_constants, name, False)
    setattr(ray_constants, name, False)
    try:
        yield
    finally:
        setattr(ray_constants, name, found)


@contextmanager
def _quietly() -> Iterator[None]:
    """Ray leaves files to the collector, takes the handler of SIGTERM, which is the training's, and tells stderr
    from its C++ that it will be quiet."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
