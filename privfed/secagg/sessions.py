"""Which sessions a client has begun: the memory that keeps a restarted client from masking a second vector.

A client keeps no other state. One that restarts in the middle of a session finds the session used, refuses to
begin it again, and counts as dropped; its old secrets are gone with the old process. Resuming is not offered on
purpose: a restored copy of a state (a snapshot of a virtual machine, a forked process) is what a second vector is
made of.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol


class UsedSessions(Protocol):
    """Remembers, for as long as a server may come back with a session: best for ever."""

    def claim(self, client_id: int, session: bytes) -> bool:
        """Record that ``client_id`` begins ``session``; whether this is the first time.

        Atomic among all processes that act for the client, and on disk before it returns.
        """
        ...


class SessionsInMemory:
    """For simulations and tests, where no client outlives the process."""

    def __init__(self) -> None:
        self._used: set[tuple[int, bytes]] = set()

    def claim(self, client_id: int, session: bytes) -> bool:
        """As ``UsedSessions.claim``, for the life of this object."""
        first = (client_id, session) not in self._used
        self._used.add((client_id, session))
        return first


class SessionsOnDisk:
    """One empty file for each session, created exclusively and synchronised: POSIX file systems make that atomic.

    Args:
        folder: Private to the client's user, on a file system that is not rolled back; made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def claim(self, client_id: int, session: bytes) -> bool:
        """As ``UsedSessions.claim``, for the life of the folder."""
        name = hashlib.sha256(client_id.to_bytes(8, "big") + session).hexdigest()
        try:
            os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True
