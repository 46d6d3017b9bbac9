"""Runs a command for as long as one other process lives: ``worker_guard.py PARENT_PID COMMAND…``.

TFF's worker outlives a parent that exits or is killed. This process stands between them. It ends the worker when
its standard input closes, when its parent is no longer ``PARENT_PID``, and, since the worker asks the kernel for
that, when it is killed itself. A script of its own that imports the standard library only, so that it starts at
once and has a single thread, which makes running code between fork and exec safe.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 0.5


def run(parent: int, command: list[str]) -> int:
    """Run ``command`` until it ends or ``parent`` is gone; returns its exit code, negative for a signal."""
    if os.getppid() != parent:
        return 0
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    guard = os.getpid()

    def die_with_guard() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before the line above
            os._exit(1)

    worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)
    while worker.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        # A forked child of the parent can hold the pipe open: the parent's identity decides then.
        if (readable and not os.read(0, 1)) or os.getppid() != parent:
            worker.kill()
            break
    return worker.wait()


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]) % 256)
