"""Handshakes that fail, by cause. gRPC tells Python nothing of them: it writes a line each to standard error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FAILED = b"Handshake failed"
CAUSES = {
    b"certificate has expired": "expired",
    b"unable to get local issuer certificate": "unknown or revoked",
    b"PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate",
    b"NO_SHARED_CIPHER": "not TLS 1.3",
    b"UNSUPPORTED_PROTOCOL": "not TLS 1.3",
    b"WRONG_VERSION_NUMBER": "not TLS",
    b"HTTP_REQUEST": "not TLS",
}
"""What gRPC's line holds, and what that is counted as; ``other`` if none of them."""


def cause_of(line: bytes) -> str | None:
    """Why the handshake failed that ``line`` is about; ``None`` if it is about none."""
    if _FAILED not in line:
        return None
    return next((cause for text, cause in CAUSES.items() if text in line), "other")


@contextmanager
def counted_handshakes(count: Callable[[str], None]) -> Iterator[None]:
    """Call ``count`` with the cause of each handshake that fails; all else still goes to standard error.

    So strangers that knock for days do not fill a log either. The standard error looked at is the whole process's,
    hence one at a time.
    """
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)

    def read() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                cause = cause_of(line)
                if cause is None:
                    os.write(kept, line)
                else:
                    count(f"handshake: {cause}")

    thread = threading.Thread(target=read, name="handshakes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(kept, 2)  # which ends the pipe, unless a child process has it still
        thread.join(1.0)
        if not thread.is_alive():
            os.close(kept)
