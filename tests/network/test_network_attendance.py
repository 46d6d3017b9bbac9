"""A client between rounds: what it asks the server for, and what ends its part in the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from loopback import CLIENTS, Federation, eventually

from privfed.errors import PrivFedError
from privfed.network import frames, pki
from privfed.network.attendance import Attendance
from privfed.network.certificates import Authority
from privfed.network.frames import CheckIn, Nothing, Offer
from privfed.network.link import Link
from privfed.network.tls import client_credentials


class Attending(threading.Thread):
    """Client 0, in a loop of the real kind; ``stop`` ends it."""

    def __init__(self, federation: Federation, folder: Path, renewing: float) -> None:
        super().__init__(daemon=True)
        self.party = party = federation.join(0, folder, start=False)
        self.said: list[str] = []
        self.failure: str | None = None
        self.attendance = Attendance(
            party.link,
            party.participant,
            Authority(party.identity.authority),
            party.memory,
            federation.offer.run,
            frames.digest(federation.offer),
            self.said.append,
            renewing,
        )

    def run(self) -> None:
        try:
            self.attendance.take_part()
        except PrivFedError as error:
            self.failure = str(error)
        except ValueError:
            pass  # the channel was closed at the end of the test


@pytest.fixture
def attend(federation: Federation, tmp_path: Path) -> Iterator[Callable[..., Attending]]:
    made: list[Attending] = []

    def begin(renewing: float = 600.0, **changes: Any) -> Attending:
        made.append(Attending(federation, tmp_path, renewing))
        for name, value in changes.items():
            setattr(made[-1].party.participant, name, value)
        made[-1].start()
        return made[-1]

    yield begin
    for attending in made:
        attending.party.stop()
        attending.join(5)


def test_a_client_learns_of_a_revocation_while_it_waits(
    federation: Federation, attend: Callable[..., Attending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privfed.network.exchange.HOLD_SECONDS", 0.2)
    attending = attend(renewing=0.5)
    federation.wait_for(1)
    before = attending.party.participant.revocations
    pki.revoke(federation.folder, client=7)
    assert eventually(lambda: attending.party.participant.revocations.number > before.number)
    after = attending.party.participant.revocations
    assert after.serials - before.serials == {federation.certificate(7).serial}
    federation.wait_for(1)  # it is checked in still
    assert attending.failure is None
    assert (tmp_path / "events.jsonl").read_text("utf-8").count("checked in") == 1


def test_a_list_that_ended_costs_one_round_and_is_renewed(
    federation: Federation, attend: Callable[..., Attending], tmp_path: Path
) -> None:
    """As of a client that has been there for longer than a list is one."""
    ended = replace(federation.revocations(), next_update=datetime.now(timezone.utc) - timedelta(days=1))
    attending = attend(revocations=ended)
    for client in range(1, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    assert federation.round(1).survivors == tuple(range(1, CLIENTS))
    assert federation.tally.refused == {"declined by client: revocation list": 1}
    assert eventually(lambda: attending.party.participant.revocations.next_update > ended.next_update)
    federation.wait_for(CLIENTS)
    assert federation.round(2).survivors == tuple(range(CLIENTS))


def test_a_server_that_comes_back_with_another_run_is_left(
    federation: Federation, attend: Callable[..., Attending]
) -> None:
    attending = attend()
    federation.wait_for(1)

    async def begin_another() -> None:
        exchange = federation.exchange
        exchange._offer = federation.offer.model_copy(update={"run": "f" * 32})
        exchange._digest = frames.digest(exchange._offer)
        exchange._seats[0].accepted = False
        exchange._seats[0].news.set()

    federation.service.call(begin_another())
    attending.join(20)
    assert attending.failure is not None
    assert "another run than the one that was joined" in attending.failure
    assert federation.tally.refused == {"declined by client: plan changed": 1}


def test_a_server_that_makes_no_sense_ends_a_client_in_one_line(
    federation: Federation, attend: Callable[..., Attending], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nonsense(*_: Any) -> bytes:
        return b"nonsense"

    monkeypatch.setattr(federation.exchange, "next_for", nonsense)
    attending = attend()
    attending.join(20)
    assert attending.failure == "this client does not go on: the server's frame ends before its header does"


def test_calls_that_trying_again_does_not_mend_are_refused_in_one_line(federation: Federation) -> None:
    """As by a server of another version."""
    link = Link(federation.address, client_credentials(federation.identity(0)), most_bytes=1 << 20, patience=5)
    with pytest.raises(PrivFedError, match="the server refuses the call: the frame is of kind 4"):
        link._again(lambda: link._joined(link._check_in(frames.encode(Nothing(state="wait")), timeout=5)))
    link.close()


def test_a_frame_that_is_too_long_is_refused_in_one_line(federation: Federation) -> None:
    link = Link(federation.address, client_credentials(federation.identity(0)), most_bytes=100, patience=5)
    with pytest.raises(PrivFedError, match="the server's frame is longer than 100 bytes"):
        link.check_in(None)
    link.close()
    assert len(frames.encode(CheckIn())) < 100 < len(frames.encode(Offer(**federation.offer.model_dump())))
