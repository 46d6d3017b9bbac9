"""What can go wrong in secure aggregation: the caller's faults, a peer's misbehaviour, and a round given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privfed.secagg.states import Stage


class SecAggError(Exception):
    """Base of every error of this package; its text is one line: what, where, value, remedy."""


class LocalError(SecAggError):
    """The caller's own fault: nothing was sent and nothing changed."""


class ParameterError(LocalError):
    """Parameters that are out of range or contradict each other."""


class CodecError(LocalError):
    """A vector that the codec cannot encode or decode."""


class InputError(LocalError):
    """A ring vector of the wrong type or shape."""


class IllegalEventError(LocalError):
    """The caller asked for a step that the present state does not allow."""


class RemoteError(SecAggError):
    """A peer's message breaks the protocol: the message is refused and the state stays as it was.

    Attributes:
        offender: Client that sent the message or owns the offending part; ``None`` is the server.
    """

    def __init__(self, what: str, *, offender: int | None) -> None:
        self.offender = offender
        super().__init__(f"{'server' if offender is None else f'client {offender}'}: {what}")


class UnexpectedMessageError(RemoteError):
    """A message of a kind that the present state does not take: out of order, repeated or late."""


class UnexpectedSenderError(RemoteError):
    """A message from someone who has no part in this stage."""


class DuplicateMessageError(RemoteError):
    """A second message from one client in one stage."""


class MalformedMessageError(RemoteError):
    """A message whose fields have the wrong length, type, range or set of identifiers."""


class KeyRefusedError(RemoteError):
    """A public key that is duplicated, of low order, or not the one that was advertised."""


class BrokenSealError(RemoteError):
    """Sealed shares that do not open: forged, altered, or meant for another session, round or recipient."""


class UnmaskRefusedError(RemoteError):
    """An unmasking request that would let the server learn more than the survivors' sum."""


class CorruptShareError(RemoteError):
    """Shares that do not give back the secret that their owner committed to; ``offender`` is that owner.

    Somebody's share is wrong, the owner's dealing or a holder's answer; this does not tell which.
    """


class RoundAborted(SecAggError):  # noqa: N818 - how a round may well end, not a mistake of anybody's
    """Fewer clients than the threshold were left: the round is over and nothing about any input was revealed.

    Attributes:
        stage: Stage whose messages were too few.
        survivors: How many clients sent that stage's message.
        threshold: How many were needed.
    """

    def __init__(self, stage: Stage, survivors: int, threshold: int) -> None:
        self.stage, self.survivors, self.threshold = stage, survivors, threshold
        super().__init__(
            f"secure aggregation aborted at stage {stage.name}: {survivors} clients left, threshold {threshold}; "
            f"sample a larger cohort or lower the threshold"
        )
