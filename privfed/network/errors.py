"""Why somebody is not let in, and why a client does not go along; each by a cause of few words, to be counted."""

from __future__ import annotations

from typing import Literal, get_args

from privfed.secagg import SecAggError
from privfed.secagg.errors import (
    InconsistentModelError,
    InconsistentSurvivorsError,
    ParameterError,
    SessionUsedError,
    UnmaskRefusedError,
)

Cause = Literal[
    # A limit of the client's own, by the name of its option.
    "min-noise",
    "max-epsilon",
    "min-cohort",
    "min-threshold",
    "max-clip-norm",
    "model-hash",
    "allow-unmasked",
    "allow-research",
    # The plan.
    "plan",
    "plan changed",
    "data",
    # A round that is not the accepted plan's.
    "plan mismatch",
    "clip norm",
    "rounds used up",
    "model",
    # The members of a round.
    "foreign member",
    "expired member",
    "revoked member",
    "revocation list",
    # The masking protocol.
    "models differ",
    "survivors differ",
    "session used",
    "masking",
    # The rest.
    "malformed frame",
    "local training",
    "other",
]
"""Why a client does not go along; what a server counts, and no other."""

CAUSES: frozenset[str] = frozenset(get_args(Cause))

_OF_MEMBERS: dict[str, Cause] = {
    "revoked": "revoked member",
    "expired": "expired member",
    "revocation list out of date": "revocation list",
    "malformed revocation list": "revocation list",
}
_OF_MASKING: dict[type[SecAggError], Cause] = {
    InconsistentModelError: "models differ",
    InconsistentSurvivorsError: "survivors differ",
    UnmaskRefusedError: "survivors differ",
    SessionUsedError: "session used",
    ParameterError: "plan mismatch",
}


class NotAdmittedError(Exception):
    """A peer that is not let in.

    Attributes:
        cause: One of few words, to be counted.
    """

    def __init__(self, cause: str, what: str) -> None:
        self.cause = cause
        super().__init__(what)


class DeclinedError(Exception):
    """A plan, or a round, that a client does not accept; its text is the reason that the server is told.

    Attributes:
        cause: Told as well, to be counted.
    """

    def __init__(self, cause: Cause, reason: str) -> None:
        self.cause: Cause = cause
        super().__init__(reason)


class FrameError(Exception):
    """Bytes that are no frame, or not the one that was due."""


def declined(error: DeclinedError | NotAdmittedError | FrameError | SecAggError) -> DeclinedError:
    """What made a client stop, as what it tells the server."""
    match error:
        case DeclinedError():
            return error
        case NotAdmittedError():
            cause = _OF_MEMBERS.get(error.cause, "foreign member")
        case FrameError():
            return DeclinedError("malformed frame", f"the server's frame {error}")
        case _:
            cause = _OF_MASKING.get(type(error), "masking")
    return DeclinedError(cause, str(error))
