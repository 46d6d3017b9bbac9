"""A process that trains one trial after another: ``python -m privfed.sweep.worker CORE,CORE,…``.

It speaks JSON, an object a line. On standard input: ``{"settings": …, "folder": …}`` for each trial. On standard
output: ``{"event": "ready"}`` once TensorFlow is there, then for each trial ``round`` events and one of ``done``
(with ``figures``), ``failed`` (with ``error``) and ``stopped``. SIGTERM stops a training after its round, with a
checkpoint; so does the end of standard input, which is how a parent that was killed is noticed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from privfed.console import Advance, Console
from privfed.errors import PrivFedError, Stopped

Send = Callable[..., None]


class Reporting(Console):
    """Sends the progress of a training to the parent, and keeps the rest for the log."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    @contextmanager
    def progress(self, title: str, steps: int, done: int = 0) -> Iterator[Advance]:
        """One event a round; ``done`` rounds are an event of their own."""
        if done:
            self._send(event="round", rounds=done, state="going on")
        yield lambda state: self._send(event="round", rounds=1, state=state)


class Inbox:
    """Trials in the order of their arrival, read by a thread that notices the end of input during a training."""

    def __init__(self, source: IO[str]) -> None:
        self.busy = False
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(source,), daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (message := self._messages.get()) is not None:
            self.busy = True
            yield message
            self.busy = False

    def _read(self, source: IO[str]) -> None:
        for line in source:
            self._messages.put(json.loads(line))
        self._messages.put(None)
        if self.busy:
            os.kill(os.getpid(), signal.SIGTERM)


def work(inbox: Inbox, send: Send) -> None:
    """Train what comes in, until no more comes."""
    # Imported late: the cores must be set before TensorFlow counts them.
    from privfed.privacy.errors import PrivacyError
    from privfed.runs import run_training
    from privfed.secagg.errors import SecAggError
    from privfed.settings_file import resolve_settings

    console = Reporting(send)
    send(event="ready")
    for message in inbox:
        try:
            figures = run_training(resolve_settings(message["settings"]), Path(message["folder"]), console)
            send(event="done", figures=figures)
        except Stopped:
            send(event="stopped")
        except (PrivFedError, PrivacyError, SecAggError) as error:
            send(event="failed", error=str(error))
        except Exception as error:  # noqa: BLE001 - one trial's fault is not the next one's
            traceback.print_exc()
            send(event="failed", error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        _let_go()


def _let_go() -> None:
    """Drop the graphs of a training that is over."""
    import gc

    import tensorflow as tf

    tf.keras.backend.clear_session()
    gc.collect()


def main() -> None:
    """Serve the parent."""
    if len(sys.argv) > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
    # Whatever a library prints goes to the log: the protocol has the only handle on standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    try:
        work(Inbox(sys.stdin), send)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone


if __name__ == "__main__":
    main()
