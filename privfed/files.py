"""Files that are there whole or not at all, even when the machine stops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` that takes its place, and is on disk, when all went well."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)  # temporary files are private by default; a run's files are not
    os.replace(file.name, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())
