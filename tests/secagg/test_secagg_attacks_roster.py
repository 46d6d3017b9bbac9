"""A server that shows keys of its own, of nobody, or to some clients only: each ends in a refusal.

The table in ``docs/secure-aggregation.md`` names these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from shown_rosters import roster_of

from privfed.secagg import Directory, Identity, Stage, merkle, wire
from privfed.secagg.errors import (
    BrokenSealError,
    KeyRefusedError,
    MalformedMessageError,
    SignatureRefusedError,
)
from privfed.secagg.keys import KeyPair
from privfed.secagg.messages import AdvertiseKeys, Inbox, Roster

Refused = Callable[..., None]


def test_keys_that_the_server_made_up_are_refused(session: Any, refused: Refused) -> None:
    # The attack that an unauthenticated protocol cannot stop: masks and channel with the server in the middle.
    session.run_to(Stage.ADVERTISE_KEYS)
    honest = session.advertised
    forged = replace(honest[41], mask_key=KeyPair.generate().public, channel_key=KeyPair.generate().public)
    match = "keys that client 41 did not sign for this session"
    refused(session.clients[3], roster_of(session, 3, {**honest, 41: forged}), SignatureRefusedError, match, None)
    # Nor does it help to sign them as somebody that the directory does not have for client 41.
    made_up = Directory({**session.directory, 41: Identity.generate().public})
    assert made_up[41] != session.directory[41]
    session.clients[3].receive(roster_of(session, 3, honest))


def rosters(session: Any) -> dict[str, tuple[Any, Any, str, int | None]]:
    """Name → (roster for client 3, error, match, offender)."""
    honest = session.advertised

    def signed_by(client_id: int, entry: AdvertiseKeys) -> AdvertiseKeys:
        """``entry`` signed by ``client_id`` as a colluder of the server would."""
        client = session.clients[client_id]
        return client._sign(replace(entry, sender=client_id, signature=b""))

    def shown(**changes: AdvertiseKeys | None) -> Roster:
        entries = {**honest, **{int(name[1:]): entry for name, entry in changes.items()}}
        return roster_of(session, 3, {i: entry for i, entry in entries.items() if entry is not None})

    copied = signed_by(41, replace(honest[41], mask_key=honest[20].mask_key))
    swapped = signed_by(41, replace(honest[41], mask_key=honest[20].channel_key))
    mine = signed_by(41, replace(honest[41], channel_key=honest[3].channel_key))
    low = signed_by(41, replace(honest[41], channel_key=bytes(32)))
    unsigned = replace(honest[41], signature=bytes(64))
    good = shown()
    root = merkle.Tree([merkle.leaf(wire.encode(honest[i])) for i in session.params.client_ids]).root
    return {
        "somebody else's": (roster_of(session, 7, honest), MalformedMessageError, "roster of client 7", None),
        "unsorted": (replace(good, entries=good.entries[::-1]), MalformedMessageError, "not an ascending", None),
        "repeated": (replace(good, entries=good.entries[:2] * 2), MalformedMessageError, "not an ascending", None),
        "stranger": (
            replace(good, entries=(*good.entries, replace(honest[41], sender=99))),
            MalformedMessageError,
            "not an ascending",
            None,
        ),
        "too few": (shown(x20=None, x41=None), MalformedMessageError, "2 clients, below the threshold 3", None),
        "not my keys": (
            shown(x3=replace(honest[3], mask_key=KeyPair.generate().public)),
            KeyRefusedError,
            "does not hold client 3's own keys",
            None,
        ),
        "another top": (replace(good, top=bytes(32)), KeyRefusedError, "client 3's own keys", None),
        "short path": (replace(good, path=good.path[:1]), KeyRefusedError, "client 3's own keys", None),
        "swapped ids": (
            shown(x20=replace(honest[41], sender=20), x41=replace(honest[20], sender=41)),
            SignatureRefusedError,
            "client 20 did not sign",
            None,
        ),
        "unsigned": (shown(x41=unsigned), SignatureRefusedError, "client 41", None),
        "key copied": (shown(x41=copied), KeyRefusedError, "stands twice", 41),
        "key swapped": (shown(x41=swapped), KeyRefusedError, "stands twice", 41),
        "my key reflected": (shown(x41=mine), KeyRefusedError, "stands twice", 41),
        "another server": (
            replace(good, server_key=honest[20].mask_key),
            KeyRefusedError,
            "and the server's",
            None,
        ),
        "low order server": (
            replace(good, server_key=bytes(32), top=merkle.top(root, bytes(32))),
            KeyRefusedError,
            "server: public key is not a point of full order",
            None,
        ),
        "low order": (shown(x41=low), KeyRefusedError, "full order", 41),
    }


ROSTERS = [
    "somebody else's",
    "unsorted",
    "repeated",
    "stranger",
    "too few",
    "not my keys",
    "another top",
    "another server",
    "low order server",
    "short path",
    "swapped ids",
    "unsigned",
    "key copied",
    "key swapped",
    "my key reflected",
    "low order",
]


@pytest.mark.parametrize("case", ROSTERS)
def test_rosters_with_forged_duplicated_or_swapped_keys_are_refused(
    case: str, session: Any, refused: Refused
) -> None:
    session.run_to(Stage.ADVERTISE_KEYS)
    cases = rosters(session)
    assert sorted(cases) == sorted(ROSTERS)
    refused(session.clients[3], *cases[case])
    session.clients[3].receive(roster_of(session, 3, session.advertised))


def test_a_mask_key_of_low_order_stops_the_contribution(session: Any, refused: Refused) -> None:
    # Signed by a colluder, so that the roster passes; its mask with client 3 would be known to everybody.
    session.run_to(Stage.ADVERTISE_KEYS)
    low = replace(session.advertised[41], mask_key=bytes(32), signature=b"")
    entries = {**session.advertised, 41: session.clients[41]._sign(low)}
    session.clients[41]._advertisement = entries[41]
    shared = {i: session.clients[i].receive(roster_of(session, i, entries))[0] for i in entries}
    client = session.clients[3]
    client.receive(Inbox(3, {i: message.sealed[3] for i, message in shared.items() if i != 3}))
    refused(client, session.inputs[3], KeyRefusedError, "client 41", 41, client.contribute)


def test_two_rosters_in_one_session_do_not_mix(session: Any, refused: Refused) -> None:
    # Each client's own keys are there, but clients 3 and 7 are not told of 41's: other root, other keys.
    session.run_to(Stage.ADVERTISE_KEYS)
    fewer = {i: session.advertised[i] for i in (3, 7, 20)}
    shared = {i: session.clients[i].receive(roster_of(session, i, fewer))[0] for i in (3, 7)}
    shared[20] = session.clients[20].receive(roster_of(session, 20, session.advertised))[0]
    inbox = Inbox(3, {i: shared[i].sealed[3] for i in (7, 20)})
    refused(session.clients[3], inbox, BrokenSealError, "client 20", 20)
