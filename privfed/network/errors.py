"""Why somebody is not let in, and why a client does not go along."""

from __future__ import annotations


class NotAdmittedError(Exception):
    """A peer that is not let in.

    Attributes:
        cause: One of few words, to be counted.
    """

    def __init__(self, cause: str, what: str) -> None:
        self.cause = cause
        super().__init__(what)


class DeclinedError(Exception):
    """A plan, or a round, that a client does not accept; its text is the reason that the server is told."""


class FrameError(Exception):
    """Bytes that are no frame, or not the one that was due."""
