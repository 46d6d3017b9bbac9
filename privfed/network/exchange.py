"""The server's table: who is there, what waits for each of them, and what they send in the open stage.

All of it lives in one event loop; the round asks from its own thread, through ``Service.call``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from privfed.network import frames
from privfed.network.certificates import Certificate
from privfed.network.errors import CAUSES
from privfed.network.frames import Nothing, Offer, Relay
from privfed.network.tally import Tally

HOLD_SECONDS = 15.0
"""A poll is answered after this at the latest."""

PRESENT_SECONDS = 2 * HOLD_SECONDS
"""Who has not been heard of for so long is not there."""

Taker = Callable[[int, int, memoryview], bool]
"""``(client, step, body)`` to whether it counts as new; raises what is wrong with it."""


@dataclass
class _Seat:
    """One client, as long as it is there."""

    certificate: Certificate
    seen: float
    accepted: bool = False
    noted: bool = False
    round: int = 0
    step: int = -1
    mail: bytes | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    poll: int = 0


class Exchange:
    """Mail for clients, and the open stage; no more seats than there are clients in the population.

    Args:
        offer: What the run is.
        revocations: The body of the offer.
        tally: Counts.
    """

    def __init__(self, offer: Offer, revocations: Callable[[], bytes], tally: Tally) -> None:
        self._offer, self._revocations, self._tally = offer, revocations, tally
        self._digest = frames.digest(offer)
        self._seats: dict[int, _Seat] = {}
        self._round = self._step = 0
        self._take: Taker | None = None
        self._changed = asyncio.Event()
        self._gone: set[int] = set()
        self.state: str = "wait"

    # What clients call.

    def check_in(self, certificate: Certificate, accepted: str | None) -> bytes:
        """Let a client sit down, or renew its place; the offer, unless it has accepted just that."""
        seat = self._seats.get(certificate.client)
        if seat is None:
            seat = self._seats[certificate.client] = _Seat(certificate, time.monotonic())
        elif seat.certificate.der != certificate.der:
            seat.certificate, seat.accepted, seat.noted = certificate, False, False
        seat.seen = time.monotonic()
        if self.state != "wait":
            return frames.encode(Nothing(state=self.state))  # type: ignore[arg-type]  # finished, draining
        if accepted != self._digest:
            seat.accepted = False
            return frames.encode(self._offer, self._revocations())
        seat.accepted = True
        if not seat.noted:  # not again whenever it asks for the newest revocation list
            seat.noted = True
            self._tally.event("checked in", client=certificate.client)
        self._tally.present = len(self._present())
        self._changed.set()
        return frames.encode(Nothing(state="wait"))

    async def next_for(self, certificate: Certificate, round_number: int, step: int) -> bytes:
        """What a client at ``(round_number, step)`` has not got yet; waits for it a while."""
        seat = self._seats.get(certificate.client)
        if seat is None or not seat.accepted or seat.certificate.der != certificate.der:
            return frames.encode(Nothing(state="check in"))
        seat.poll += 1
        mine, until = seat.poll, time.monotonic() + HOLD_SECONDS
        seat.news.set()  # an earlier poll of the same client, perhaps of a connection that is gone, ends
        seat.news.clear()
        while True:
            seat.seen = time.monotonic()
            if seat.mail is not None and (seat.round, seat.step) > (round_number, step):
                return seat.mail
            left = until - time.monotonic()
            if self.state != "wait" and seat.mail is None:
                seat.accepted = False  # it knows, and need not be waited for
                self._changed.set()
                return frames.encode(Nothing(state=self.state))  # type: ignore[arg-type]  # finished, draining
            if left <= 0 or seat.poll != mine:
                return frames.encode(Nothing(state="wait"))
            await _set_within(seat.news, left)
            if seat.poll == mine:
                seat.news.clear()

    def take(self, certificate: Certificate, relay: Relay, body: memoryview) -> str:
        """Take what a client sends for the open stage: ``taken``, ``late`` or ``repeated``.

        Raises:
            Exception: Whatever the stage finds wrong with it.
        """
        client, seat = certificate.client, self._seats.get(certificate.client)
        if seat is not None:
            seat.seen = time.monotonic()
        if self._take is None or (relay.round, relay.step) != (self._round, self._step):
            self._tally.late += 1
            return "late"
        if seat is None or seat.certificate.der != certificate.der:
            self._tally.late += 1
            return "late"  # the round knows another key of this client
        new = self._take(client, relay.step, body)
        if not new:
            self._tally.repeated += 1
            return "repeated"
        self._tally.received_bytes += len(body)
        self._changed.set()
        return "taken"

    def decline(self, certificate: Certificate, round_number: int | None, cause: str, reason: str) -> None:
        """A client does not go along; a cause that is none of ``CAUSES`` counts as ``other``."""
        client = certificate.client
        self._tally.refuse(f"declined by client: {cause if cause in CAUSES else 'other'}", client, reason)
        if round_number is None:
            self._seats.pop(client, None)
        if round_number in (None, self._round):  # of another round it comes late
            self._gone.add(client)
            self._changed.set()

    # What the round calls.

    async def arrivals(self, wanted: int, seconds: float) -> int:
        """Wait until so many clients are there, or the time is over; how many are."""
        until = time.monotonic() + seconds
        while (there := len(self._present())) < wanted and (left := until - time.monotonic()) > 0:
            self._changed.clear()
            await _set_within(self._changed, min(left, 1.0))
        self._tally.present = there
        return there

    async def members(self, cohort: Iterable[int]) -> dict[int, Certificate]:
        """Those of ``cohort`` that are there, ascending."""
        there = self._present()
        return {client: there[client] for client in sorted(cohort) if client in there}

    async def stage(
        self,
        round_number: int,
        step: int,
        mail: Mapping[int, bytes],
        take: Taker,
        waiting: Callable[[], Iterable[int]],
        seconds: float,
    ) -> None:
        """Deliver ``mail``, and take what comes for ``step`` until nobody is waited for or the time is over."""
        if step == 0 or self._round != round_number:
            self._gone.clear()
        self._round, self._step, self._take = round_number, step, take
        self._deliver(round_number, step, mail)
        until = time.monotonic() + seconds
        try:
            while (left := until - time.monotonic()) > 0:
                if self._gone.issuperset(waiting()):
                    break
                self._changed.clear()
                await _set_within(self._changed, left)
        finally:
            self._take = None

    async def close_round(self, round_number: int, members: Iterable[int], mail: bytes, step: int) -> None:
        """Tell everybody who was in it that the round is over, when they ask next: nobody need hurry."""
        self._deliver(round_number, step, dict.fromkeys(members, mail), wake=False)

    async def leave(self, state: str, seconds: float) -> None:
        """Answer polls by ``finished`` or ``draining`` from now on; wait until all that are there know it."""
        self.state = state
        for seat in self._seats.values():
            seat.mail = None
            seat.news.set()
        until = time.monotonic() + seconds
        while self._present() and (left := until - time.monotonic()) > 0:
            self._changed.clear()
            await _set_within(self._changed, left)

    def _deliver(self, round_number: int, step: int, mail: Mapping[int, bytes], *, wake: bool = True) -> None:
        for client, content in mail.items():
            seat = self._seats.get(client)
            if seat is not None:
                seat.round, seat.step, seat.mail = round_number, step, content
                if wake:
                    seat.news.set()
                self._tally.sent_bytes += len(content)

    def _present(self) -> dict[int, Certificate]:
        since = time.monotonic() - PRESENT_SECONDS
        return {c: seat.certificate for c, seat in self._seats.items() if seat.accepted and seat.seen >= since}


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait until ``event`` is set, which the clock does after ``seconds``; without the task of ``wait_for``."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
