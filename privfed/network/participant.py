"""A client in the rounds of one run, without input or output: frames in, frames out.

It trusts its authority, its own memory and the plan that it accepted, and nothing that a server says beyond them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.network import frames
from privfed.network.certificates import Authority, RevocationList, check_valid
from privfed.network.errors import DeclinedError, FrameError, NotAdmittedError, declined
from privfed.network.frames import Closed, Invitation, Relay
from privfed.network.half import Expected
from privfed.network.limits import Limits
from privfed.network.memory import ClientMemory
from privfed.secagg import (
    Client,
    Directory,
    Identity,
    SecAggError,
    SecAggParams,
    Stage,
    decode,
    encode,
)
from privfed.secagg.messages import Inbox, ToClient

Vector = NDArray[np.float32]

CLOSED = len(Stage)
"""Step of the end of a round; step 0 is the invitation, and between are the server's messages after each stage."""


class Half(Protocol):
    """As ``ClientHalf``."""

    @property
    def client(self) -> int:
        """Its number."""
        ...

    @property
    def initial(self) -> Vector:
        """Weights before round 1."""
        ...

    @property
    def rounds(self) -> int:
        """Of the plan."""
        ...

    @property
    def clients(self) -> int:
        """In the population."""
        ...

    def expected(self, cohort: int) -> Expected:
        """What a round must ask for."""
        ...

    def check_clip(self, number: int, clip_norm: float | None) -> None:
        """Judge the clip norm that a round names."""
        ...

    def __call__(self, number: int, weights: Vector, cohort: int, clip_norm: float | None = None) -> NDArray[Any]:
        """The vector to send."""
        ...


@dataclass
class _Session:
    """A round that the client takes part in."""

    number: int
    weights: Vector
    cohort: int
    clip_norm: float | None
    protocol: Client


class Participant:
    """One client in one run.

    Args:
        half: Its training.
        identity: Its signing key.
        authority: Whose certificates count.
        limits: Its own.
        memory: Of this client.
        run: Whose plan was accepted, and is in ``memory``.
        revocations: The newest list that the server showed.
    """

    def __init__(
        self,
        half: Half,
        identity: Identity,
        authority: Authority,
        limits: Limits,
        memory: ClientMemory,
        run: str,
        revocations: RevocationList,
    ) -> None:
        self._half, self._identity, self._authority, self._limits = half, identity, authority, limits
        self._memory, self._run, self.revocations = memory, run, revocations
        self._session: _Session | None = None
        self.position = (0, 0)

    def receive(self, data: bytes) -> bytes | None:
        """Take what the server says; the frame to answer with, if any. ``position`` moves on.

        Raises:
            DeclinedError: The client does not go along: it sits this round out.
        """
        try:
            frame, body = frames.decode(data, frames.Frame)
        except FrameError as error:
            raise declined(error) from None
        if not isinstance(frame, Invitation | Relay | Closed):
            raise DeclinedError(
                "malformed frame", f"the server's frame is a {type(frame).__name__}, which was not due"
            )
        step = 0 if isinstance(frame, Invitation) else frame.step if isinstance(frame, Relay) else CLOSED
        self.position = (frame.round, step)
        try:
            if isinstance(frame, Invitation):
                return self._begin(frame, body)
            if isinstance(frame, Closed) or self._session is None or self._session.number != frame.round:
                self._leave()
                return None
            return self._go_on(self._session, bytes(body))
        except (SecAggError, NotAdmittedError) as error:
            self._leave()
            raise declined(error) from None
        except DeclinedError:
            self._leave()
            raise

    def start_over(self) -> None:
        """Forget where the client stood: the server may have been started anew."""
        self._leave()
        self.position = (0, 0)

    def _begin(self, invitation: Invitation, body: memoryview) -> bytes:
        self._leave()
        half, number = self._half, invitation.round
        if not 1 <= number <= half.rounds:
            raise DeclinedError("plan mismatch", f"round {number} is not among the plan's {half.rounds}")
        if not len(invitation.members) <= invitation.cohort:
            raise DeclinedError("plan mismatch", "more clients are there than were drawn")
        if not 1 <= invitation.cohort <= half.clients:
            raise DeclinedError(
                "plan mismatch", f"{invitation.cohort} clients were drawn of the plan's {half.clients}"
            )
        self._limits.check_round(invitation)
        half.check_clip(number, invitation.clip_norm)
        asked = Expected(invitation.dimension, invitation.threshold, invitation.ring_bits)
        if asked != (planned := half.expected(invitation.cohort)):
            raise DeclinedError("plan mismatch", f"the round asks for {asked}, the accepted plan for {planned}")
        size = 4 * len(half.initial)
        if len(body) != size + sum(invitation.certificates):
            raise DeclinedError("malformed frame", "the invitation's body does not have the announced length")
        weights: Vector = np.frombuffer(body[:size], "<f4").astype(np.float32)
        if not np.isfinite(weights).all():
            raise DeclinedError("model", "the model's weights are not finite")
        if number == 1 and not np.array_equal(weights, half.initial):
            raise DeclinedError("model", "round 1 does not begin with the plan's initial weights")
        if not invitation.session:
            vector = half(number, weights, invitation.cohort, invitation.clip_norm)
            self._memory.claim_contribution(self._run, number)
            plain = np.ascontiguousarray(vector, "<f8")
            return frames.encode(Relay(round=number, step=0), plain.tobytes())
        directory = self._directory(invitation, body[size:])
        params = SecAggParams(
            session=bytes.fromhex(invitation.session),
            round_number=number,
            client_ids=tuple(invitation.members),
            threshold=invitation.threshold,
            dimension=invitation.dimension,
            ring_bits=invitation.ring_bits,
        )
        protocol = Client(
            params,
            half.client,
            identity=self._identity,
            directory=directory,
            sessions=self._memory.sessions,
            model=hashlib.sha256(weights.tobytes()).digest(),
        )
        advertisement = protocol.start()
        self._session = _Session(number, weights, invitation.cohort, invitation.clip_norm, protocol)
        return frames.encode(Relay(round=number, step=0), encode(advertisement))

    def _directory(self, invitation: Invitation, certificates: memoryview) -> Directory:
        """The members' keys, each vouched for by the authority: the server can make none up."""
        if len(invitation.certificates) != len(invitation.members):
            raise DeclinedError("malformed frame", "the invitation does not have a certificate for each member")
        keys, at = {}, 0
        for member, size in zip(invitation.members, invitation.certificates, strict=True):
            certificate = self._authority.client(bytes(certificates[at : at + size]))
            check_valid(certificate, self.revocations)
            if certificate.client != member:
                raise DeclinedError(
                    "foreign member", f"the certificate of client {certificate.client} stands for client {member}"
                )
            keys[member], at = certificate.key, at + size
        return Directory(keys)

    def _go_on(self, session: _Session, body: bytes) -> bytes | None:
        message: ToClient = decode(body, peer=None)  # type: ignore[assignment]  # others are refused by the protocol
        answers = session.protocol.receive(message)
        if isinstance(message, Inbox):
            vector = self._half(session.number, session.weights, session.cohort, session.clip_norm)
            self._memory.claim_contribution(self._run, session.number)
            answers = [session.protocol.contribute(vector)]
        (answer,) = answers
        return frames.encode(Relay(round=session.number, step=self.position[1]), encode(answer))

    def _leave(self) -> None:
        """Forget the session, if there is one: no share is revealed after this."""
        self._session = None
