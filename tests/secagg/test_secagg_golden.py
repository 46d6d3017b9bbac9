"""A whole round with known keys, byte for byte: what is on the wire may not change without a new version.

``golden/round.txt`` has one line for each message: to whom, from whom, and the wire form in hexadecimal. It was
written by this code when the wire form got version 3; the wire form itself is held to an independent reader in
``test_secagg_wire.py``, and the primitives to published vectors in ``test_secagg_vectors.py``.
To write it anew: ``PRIVFED_WRITE_GOLDEN=1 pytest tests/secagg/test_secagg_golden.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.secagg import Client, Directory, Identity, SecAggParams, Server, SessionsInMemory, decode, encode
from privfed.secagg.keys import KeyPair

GOLDEN = Path(__file__).parent / "golden" / "round.txt"
IDS = (2, 300, 70_000, 2**63)
GONE = 300


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """All randomness from SHA-256 of a counter."""
    numbers = itertools.count()

    def draw(length: int) -> bytes:
        return hashlib.sha256(b"golden %d" % next(numbers)).digest()[:length]

    monkeypatch.setattr("privfed.secagg.client.os.urandom", draw)
    monkeypatch.setattr("privfed.secagg.shamir.secrets.randbelow", lambda n: int.from_bytes(draw(32), "big") % n)
    monkeypatch.setattr(KeyPair, "generate", lambda: KeyPair.from_private_bytes(draw(32)))
    return numbers


def play() -> tuple[list[str], Any, Any]:
    """Lines of the transcript, the total and the sum of the survivors' inputs; client 300 vanishes."""
    params = SecAggParams(b"golden session 1", 7, IDS, 3, 3)
    identities = {i: Identity.from_private_bytes(hashlib.sha256(b"identity %d" % i).digest()) for i in IDS}
    directory = Directory({i: identity.public for i, identity in identities.items()})
    server, sessions = Server(params, directory, model=b"the model"), SessionsInMemory()
    clients = {
        i: Client(params, i, identity=identities[i], directory=directory, sessions=sessions, model=b"the model")
        for i in IDS
    }
    inputs = {i: np.array([place, 2**32 - 1, 10 * place], np.uint32) for place, i in enumerate(IDS)}
    lines: list[str] = []

    def carry(message: Any, sender: int | None, recipient: int | None) -> Any:
        data = encode(message)
        names = ["server" if who is None else str(who) for who in (sender, recipient)]
        lines.append(f"{type(message).__name__} {names[0]} {names[1]} {data.hex()}")
        return decode(data, peer=sender)

    def stage(messages: dict[int, Any]) -> dict[int, Any]:
        for sender, message in messages.items():
            server.receive(carry(message, sender, None))
        return {i: carry(message, None, i) for i, message in server.close_stage().items()}

    rosters = stage({i: clients[i].start() for i in IDS})
    inboxes = stage({i: clients[i].receive(message)[0] for i, message in rosters.items()})
    for i, message in inboxes.items():
        clients[i].receive(message)
    lists = stage({i: clients[i].contribute(inputs[i]) for i in IDS if i != GONE})
    requests = stage({i: clients[i].receive(message)[0] for i, message in lists.items()})
    stage({i: clients[i].receive(message)[0] for i, message in requests.items()})
    return lines, server.total, sum((inputs[i] for i in IDS if i != GONE), np.zeros(3, np.uint32))


def test_a_known_round_is_the_same_to_the_byte(known: Any) -> None:
    lines, total, expected = play()
    assert (total == expected).all()
    if os.environ.get("PRIVFED_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("\n".join(lines) + "\n")
    golden = GOLDEN.read_text().splitlines()
    assert len(lines) == len(golden) == 4 + 4 + 4 + 4 + 3 + 3 + 3 + 3 + 3
    for made, written in zip(lines, golden, strict=True):
        assert made == written


def test_with_real_randomness_only_the_survivor_list_stays_the_same() -> None:
    lines, total, expected = play()
    assert (total == expected).all()
    golden = GOLDEN.read_text().splitlines()
    same = [made.split()[0] for made, written in zip(lines, golden, strict=True) if made == written]
    assert same == ["SurvivorList"] * 3
