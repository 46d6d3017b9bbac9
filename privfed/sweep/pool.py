"""Worker processes that train trials beside each other, each starting TensorFlow once."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from privfed.sweep.grid import Trial

WORKER = (sys.executable, "-m", "privfed.sweep.worker")
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10
"""How long an idle worker may take to end."""


@dataclass(frozen=True)
class Event:
    """Something happened to a trial.

    Attributes:
        trial: Which.
        kind: ``round`` as rounds end; the others end the trial.
        rounds: Of ``round``: how many.
        words: Of ``round``, how the training stands; of ``failed``, why.
        figures: Of ``done``: what ``run_training`` returned.
    """

    trial: Trial
    kind: Literal["round", "done", "failed", "stopped"]
    rounds: int = 0
    words: str = ""
    figures: Mapping[str, Any] | None = None


class Runner(Protocol):
    """Runs trials, each in its folder."""

    def run(self, trials: Sequence[tuple[Trial, Path]], observe: Callable[[Event], None]) -> None:
        """Return when each trial has ended; ``observe`` is called in the caller's thread.

        Raises:
            KeyboardInterrupt: After the trials under way have stopped, when the user asked for it.
        """
        ...


class Pool:
    """``jobs`` workers, started as they are needed, each on cores of its own while there are enough."""

    def __init__(self, jobs: int, logs: Path, command: Sequence[str] = WORKER) -> None:
        self._workers = [
            _Worker([*command, ",".join(map(str, cores))], logs / f"worker-{number}.log")
            for number, cores in enumerate(split_cores(jobs))
        ]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def run(self, trials: Sequence[tuple[Trial, Path]], observe: Callable[[Event], None]) -> None:
        """See ``Runner``. A first interrupt stops the trainings after their round, a second one kills them."""
        waiting: queue.SimpleQueue[tuple[Trial, Path]] = queue.SimpleQueue()
        for item in trials:
            waiting.put(item)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stopping = threading.Event()
        threads = [
            threading.Thread(target=_serve, args=(worker, waiting, events.put, stopping), daemon=True)
            for worker in self._workers[: len(trials)]
        ]
        with self._stop_requests(stopping):
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) or not events.empty():
                with contextlib.suppress(queue.Empty):
                    observe(events.get(timeout=POLL_SECONDS))
        if stopping.is_set():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _stop_requests(self, stopping: threading.Event) -> Iterator[None]:
        """Handlers in place of the exception, which could come between two lines and lose an event."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
            yield
            return

        def stop(number: int, frame: object) -> None:
            again = stopping.is_set()
            stopping.set()
            for worker in self._workers:
                worker.signal(signal.SIGKILL if again else signal.SIGTERM)

        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def split_cores(jobs: int) -> list[list[int]]:
    """Cores for each of ``jobs`` workers: disjoint while there are enough, shared in turns beyond that."""
    cores = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    )
    return [cores[i::jobs] or [cores[i % len(cores)]] for i in range(jobs)]


def _serve(
    worker: _Worker,
    waiting: queue.SimpleQueue[tuple[Trial, Path]],
    tell: Callable[[Event], None],
    stopping: threading.Event,
) -> None:
    """One worker's thread: hands it trials until none are left."""
    while not stopping.is_set():
        try:
            trial, folder = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            worker.train(trial, folder, tell)
        except Exception as error:  # noqa: BLE001 - a thread's error must reach the trial, or nobody hears of it
            worker.kill()
            tell(Event(trial, "failed", words=f"{type(error).__name__}: {error}"))


class _Worker:
    """One process and the pipe to it; started anew after it died."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command, self._log = command, log
        self._process: subprocess.Popen[str] | None = None
        self._asked_to_stop = False

    def train(self, trial: Trial, folder: Path, tell: Callable[[Event], None]) -> None:
        """Have one trial trained, and tell what happens until it has ended."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        message = {"settings": trial.settings.model_dump(mode="json"), "folder": str(folder)}
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; its output ends, which is found below
        if self._asked_to_stop:  # in the moment before the process was there
            process.send_signal(signal.SIGTERM)
        for line in process.stdout:
            answer = json.loads(line)
            kind = answer["event"]
            if kind == "round":
                tell(Event(trial, "round", rounds=answer["rounds"], words=answer["state"]))
            elif kind != "ready":
                tell(Event(trial, kind, words=answer.get("error", ""), figures=answer.get("figures")))
                return
        self._process = None
        code = _end(process)
        if self._asked_to_stop:
            tell(Event(trial, "stopped"))
        else:
            tell(Event(trial, "failed", words=f"the worker {_ending(code)}; see {self._log}"))

    def signal(self, number: int) -> None:
        """Pass a signal on, if the process lives."""
        self._asked_to_stop = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End a process that does not speak the protocol; the next trial gets a new one."""
        if self._process is not None:
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Let the process end; it is idle."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                # A session of its own: the keyboard's interrupt reaches this process only, which passes it on.
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,
                    env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
                )
        return self._process


def _end(process: subprocess.Popen[str]) -> int:
    """Close the pipes, which ends an idle worker, and return the exit code; one that does not end is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        code = process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    process.stdout.close()
    return code


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
