"""Files that are there whole or not at all, even when the machine stops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_UNFINISHED = ".tmp"


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` that takes its place, and is on disk, when all went well.

    Nobody but its owner reads a ``private`` one.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=_UNFINISHED, delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not private:  # as temporary files are at first
                os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            with suppress(FileNotFoundError):  # an interrupt just after it took its place
                os.unlink(file.name)
            raise
    _sync(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written in ``folder``; only for who alone writes there."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def _sync(folder: Path) -> None:
    """Put the folder's names on disk: without it a file is there, but not under its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
