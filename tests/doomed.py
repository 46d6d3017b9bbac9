"""PrivFed's command line in a forked process that can be told to die at a given call that changes a file.

Kills at random times seldom hit the few microseconds in which a file is written. Here every such call in the run's
folder has a number, and the process kills itself just before the call, with half of it done, or just after it.
From that call on the disk can also be full, or read-only. Beside that, a fault can be put into the program, to
show that the tests of killing would find it, and training can be done without TensorFlow, which takes longest.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS, RATE, NOISE, DELTA = 12, 0.15, 1.2, 1e-4
"""Of the runs that are killed."""
MOMENTS = ("before", "amid", "after")
DISKS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
"""Moments after which nobody dies, but nothing can be written any more."""
_TAKE_NO_SPACE = ("replace", "unlink", "ftruncate")
CALLS = ("write", "fsync", "replace", "unlink", "ftruncate")


@dataclass(frozen=True)
class Death:
    """At which call, from 0, and when: one of ``MOMENTS`` or ``DISKS``."""

    call: int
    moment: str


class Fate:
    """Counts the calls that change files in ``folder``, and dies at one of them."""

    def __init__(self, folder: Path, death: Death | None) -> None:
        self.calls: list[str] = []
        self._folder, self._death = os.path.realpath(folder), death
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name), _halves[name]))
        from privfed.rundir import MetricsFile

        MetricsFile.write = self._wrapped("line", MetricsFile.write, _half_a_line)  # type: ignore[method-assign]

    def _wrapped(self, name: str, call: Callable[..., Any], half: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            path = _path(name, arguments)
            if not path.startswith(self._folder):
                return call(*arguments, **options)
            death, number = self._death, len(self.calls)
            if death is not None and death.moment in DISKS and number >= death.call:
                self.calls.append(f"{name} refused")
                if death.moment == "read-only" or name not in _TAKE_NO_SPACE:
                    if death.moment == "full" and number == death.call:
                        half(call, *arguments)
                    raise OSError(DISKS[death.moment], os.strerror(DISKS[death.moment]), path)
                return call(*arguments, **options)
            fatal = death is not None and death.call == number
            self.calls.append(f"{name} {os.path.relpath(path, self._folder)}")
            if fatal and death is not None and death.moment != "after":
                if death.moment == "amid":
                    half(call, *arguments)
                die()
            try:
                return call(*arguments, **options)
            finally:  # also where there was nothing to unlink
                if fatal:
                    die()

        return counted


def _path(name: str, arguments: tuple[Any, ...]) -> str:
    """Of the file that a call changes."""
    if name == "line":
        return os.path.realpath(arguments[0]._file.name)
    target = arguments[1] if name == "replace" else arguments[0]
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.path.realpath(target)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _half_a_write(call: Callable[..., Any], file: int, data: bytes) -> None:
    call(file, data[: len(data) // 2])


def _half_a_sync(call: Callable[..., Any], file: int) -> None:
    """A temporary file may be there in part; what was appended to another file is there."""
    if os.path.basename(os.readlink(f"/proc/self/fd/{file}")).startswith("."):
        os.truncate(file, os.fstat(file).st_size // 2)


def _half_a_line(call: Callable[..., Any], file: Any, values: dict[str, Any]) -> None:
    file._file.write(str(values)[:40])
    file._file.flush()


def _nothing(*_: Any) -> None:
    """Such a call is done or not."""


_halves = {
    "write": _half_a_write,
    "fsync": _half_a_sync,
    "replace": _nothing,
    "unlink": _nothing,
    "ftruncate": _nothing,
}


def commit_too_late() -> None:
    """The ledger hears of a model one round after it was shown."""
    from privfed.federated.spending import LedgerSpending

    commit, waiting = LedgerSpending.commit, list[Any]()

    def later(self: LedgerSpending, *values: Any) -> None:
        if waiting:
            commit(self, *waiting.pop())
        waiting.append(values)

    LedgerSpending.commit = later  # type: ignore[method-assign]


def reserve_nothing() -> None:
    """Rounds are on the ledger only when they are committed, and after they were shown."""
    from privfed.federated.spending import LedgerSpending

    LedgerSpending.reserve = LedgerSpending.commit = LedgerSpending.abort = lambda *_: None  # type: ignore[method-assign,assignment]


def forget_the_momentum() -> None:
    """The checkpoint keeps the model, but not the state of the server's optimizer."""
    from dataclasses import replace

    from privfed.federated.checkpoint import Checkpoints, Progress

    load = Checkpoints._load

    def without(self: Checkpoints, path: Path) -> Progress:
        found = load(self, path)
        found.state = replace(found.state, server=tuple(0 * part for part in found.state.server))
        return found

    Checkpoints._load = without  # type: ignore[method-assign]


def clock_jumps() -> None:
    """Whoever asks for the time gets one of the next or the last ten years."""
    import random
    import time

    rng, now = random.Random(1), time.time
    time.time = lambda: now() + rng.uniform(-1, 1) * 10 * 365 * 86400


FAULTS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (commit_too_late, reserve_nothing, forget_the_momentum, clock_jumps)
}


def run(
    arguments: list[str], folder: str, log: str, death: Death | None, fault: str | None, plain: bool = False
) -> None:
    """Run ``privfed ARGUMENTS``; never returns. The list of calls goes to ``log`` with ``.calls`` behind it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code, fate = 99, None
    try:
        assert "warm" in sys.modules, "not forked from a process that has imported everything"
        from privfed import cli

        if plain:
            import plain_work

            plain_work.install()
        fate = Fate(Path(folder), death)
        if fault:
            FAULTS[fault]()
        sys.argv = ["privfed", *arguments]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - a traceback in the log is what a fault of the program looks like
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    Path(f"{log}.calls").write_text(json.dumps(fate.calls if fate else []))
    os._exit(code)
