"""A client that goes through the rounds of the run that it joined, over its link."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from privfed.errors import PrivFedError
from privfed.network import frames
from privfed.network.certificates import Authority
from privfed.network.errors import DeclinedError, FrameError, NotAdmittedError, declined
from privfed.network.frames import Frame, Invitation, Nothing, Offer
from privfed.network.link import Link
from privfed.network.memory import ClientMemory
from privfed.network.participant import Participant

DRAINING_SECONDS = 2.0
"""Before a client looks whether a server that went away is back."""

RENEWING_SECONDS = 600.0
"""After which a client asks for the newest revocation list."""


@dataclass
class Attendance:
    """What a client does from its acceptance of the offer to the end of the run.

    Attributes:
        link: To the server.
        participant: Its part of the rounds.
        authority: Whose revocation lists count.
        memory: Where the offer is noted as accepted.
        run: That was joined.
        offer: Digest of the offer.
        say: Told what a person may want to know.
        renewing: Seconds after which to ask for the newest revocation list.
    """

    link: Link
    participant: Participant
    authority: Authority
    memory: ClientMemory
    run: str
    offer: str
    say: Callable[[str], None]
    renewing: float = RENEWING_SECONDS
    _renewed: float = field(default_factory=time.monotonic)

    def take_part(self) -> dict[str, Any]:
        """Answer what the server says until it says that the run is over; how often, by what became of it.

        Raises:
            PrivFedError: The server has changed the plan, makes no sense, or is not there for too long.
        """
        counts = {"rounds": 0, "sent": 0, "late": 0, "declined": 0}
        self.link.check_in(self.offer)
        while True:
            data = self.link.poll(self.participant.position)
            frame, _ = _decoded(data)
            if isinstance(frame, Nothing):
                if frame.state == "finished":
                    return {**counts, "status": "finished"}
                self._wait(frame)
                continue
            counts["rounds"] += isinstance(frame, Invitation)
            try:
                answer = self.participant.receive(data)
            except DeclinedError as error:
                counts["declined"] += 1
                self.say(f"declined: {error}")
                self.link.refuse(self.participant.position[0], error)
                if error.cause == "revocation list":
                    self._check_in()
                continue
            if answer is None:
                continue
            verdict = self.link.send(answer)
            counts["sent"] += verdict == "taken"
            counts["late"] += verdict == "late"
            if verdict not in ("taken", "repeated"):
                self.say(f"round {self.participant.position[0]}: an answer was {verdict}")

    def _wait(self, nothing: Nothing) -> None:
        if nothing.state == "draining":
            time.sleep(DRAINING_SECONDS)
        if nothing.state != "wait":  # the server may have been started anew, and count from a checkpoint
            self.participant.start_over()
            self._check_in()
        elif time.monotonic() - self._renewed > self.renewing:
            self._check_in()

    def _check_in(self) -> None:
        """Look whether the offer is still the one that was accepted, take its revocation list, and check in."""
        self._renewed = time.monotonic()
        frame, body = _decoded(self.link.check_in(None))
        if not isinstance(frame, Offer):
            return  # the server goes away, as the next poll will say
        try:
            if frame.run != self.run:
                raise DeclinedError("plan changed", "the server has another run than the one that was joined")
            self.memory.check(self.run, frames.digest(frame))
            revocations = self.authority.revocations(bytes(body))
            self.memory.note_revocations(self.run, revocations.number)
        except (DeclinedError, NotAdmittedError) as error:
            self.link.refuse(None, declined(error))
            raise PrivFedError(f"this client does not go on: {error}") from None
        self.participant.revocations = revocations
        self.link.check_in(self.offer)


def _decoded(data: bytes) -> tuple[Frame, memoryview]:
    try:
        return frames.decode(data, Frame)
    except FrameError as error:
        raise PrivFedError(f"this client does not go on: the server's frame {error}") from None
