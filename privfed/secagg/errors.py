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


class SessionUsedError(LocalError):
    """This client has begun this session before, perhaps before a restart, and must not begin it again."""


class RemoteError(SecAggError):
    """A peer's message breaks the protocol: the message is refused and the state stays as it was.

    Attributes:
        offender: The client whose signature or tag is under what is wrong; ``None`` is the server, answerable for
            whatever it passes on without a valid signature.
    """

    def __init__(self, what: str, *, offender: int | None) -> None:
        self.offender = offender
        super().__init__(f"{'server' if offender is None else f'client {offender}'}: {what}")


class UnexpectedMessageError(RemoteError):
    """A message of a kind that the present state does not take: out of order, repeated or late."""


class UnexpectedSenderError(RemoteError):
    """A message from someone who has no part in this stage, or in somebody else's name."""


class DuplicateMessageError(RemoteError):
    """A second message from one client in one stage."""


class MalformedMessageError(RemoteError):
    """A message whose bytes or fields have the wrong length, type, range, order or set of identifiers."""


class SignatureRefusedError(RemoteError):
    """A signature or tag that the identity in the directory did not make over this content in this session."""


class KeyRefusedError(RemoteError):
    """A public key that is duplicated, of low order, or not the one that was advertised."""


class InconsistentModelError(RemoteError):
    """Two parties of one round hold different models."""


class InconsistentSurvivorsError(RemoteError):
    """A neighbour did not sign the list of survivors that this client was given, or not in this session."""


class BrokenSealError(RemoteError):
    """Sealed shares that do not open: forged, altered, or meant for another session, round or recipient.

    ``offender`` is the sender. The seal is symmetric: that the server altered it in passing cannot be ruled out.
    """


class UnmaskRefusedError(RemoteError):
    """A list of survivors, or a call to unmask, that would let the server learn more than the survivors' sum.

    ``offender`` is a client where its token is wrong; as with a broken seal, the server may have altered it.
    """


class CorruptShareError(RemoteError):
    """Shares that do not give back the secret that their owner committed to.

    ``offender`` is the holder whose share does not lie on the polynomial of the committed secret, when more shares
    are there than the threshold and so can tell; otherwise the owner, though a holder may be the one to blame.
    """


class RoundAborted(SecAggError):  # noqa: N818 - how a round may well end, not a mistake of anybody's
    """Fewer clients than the threshold were left, or ``reason``: the round is over and gave no sum.

    Attributes:
        stage: Stage whose messages were too few.
        survivors: How many sent that stage's message, among the holders of that client's shares who has fewest; in
            a complete graph, how many there are in all.
        threshold: How many were needed.
    """

    def __init__(self, stage: Stage, survivors: int, threshold: int, reason: str | None = None) -> None:
        self.stage, self.survivors, self.threshold = stage, survivors, threshold
        few = f"{survivors} clients left, threshold {threshold}; sample a larger cohort or lower the threshold"
        super().__init__(f"secure aggregation aborted at stage {stage.name}: {reason or few}")
