"""Ends what is left of a Ray cluster when its owner ends, however it does: ``ray_guard.py PARENT_PID FOLDER``.

Of an owner that is killed, Ray's two agents live on for minutes. This process waits until its standard input
closes or its parent is no longer ``PARENT_PID``; then it kills whatever was started with ``FOLDER``, the cluster's
own, in its command line, and removes the folder. It imports the standard library only: it starts at once.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0
"""How long what dies by itself, the raylet and the workers, may take."""


def started_with(folder: str) -> list[int]:
    """Processes of this user with ``folder`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it ended meanwhile, or is another user's
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def wait_for_the_end_of(parent: int) -> None:
    """Return when the other end of standard input is closed, or ``parent`` is gone."""
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if readable and not os.read(0, 1):
            return


def clean_up(folder: str) -> None:
    """Kill, until nobody is left, and remove the folder."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (left := started_with(folder)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS / 5)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    wait_for_the_end_of(int(sys.argv[1]))
    if Path("/proc").is_dir():
        clean_up(sys.argv[2])
