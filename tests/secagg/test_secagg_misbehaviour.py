"""What a server, a client or the network may try, each refused by name with nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privfed.secagg import Client, Server, ServerState, Stage
from privfed.secagg.errors import (
    BrokenSealError,
    CorruptShareError,
    KeyRefusedError,
    MalformedMessageError,
    RemoteError,
    UnmaskRefusedError,
)
from privfed.secagg.keys import SEALED_BYTES, KeyPair, channel_key, seal
from privfed.secagg.messages import AdvertiseKeys, Inbox, MaskedInput, Roster, UnmaskRequest
from privfed.secagg.shamir import PRIME

Picture = Callable[[Client | Server], dict[str, Any]]


def refused(
    machine: Any, message: Any, error: type[RemoteError], match: str, offender: int | None, picture: Any
) -> None:
    """``machine`` refuses ``message`` by name and is as before."""
    before = picture(machine)
    with pytest.raises(error, match=match) as caught:
        machine.receive(message)
    assert caught.value.offender == offender
    assert picture(machine) == before


# What the server may ask of a client ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("survivors", "dropped", "error", "match"),
    [
        ((3, 7, 20), (20, 41), UnmaskRefusedError, "both shares of client 20"),
        ((3, 7, 20, 41), (41,), UnmaskRefusedError, "both shares of client 41"),
        ((3, 7, 20), (), UnmaskRefusedError, "not the clients that shared"),
        ((3, 7, 20), (41, 99), UnmaskRefusedError, "not the clients that shared"),
        ((7, 20, 41), (3,), UnmaskRefusedError, "calls client 3 dropped"),
        ((3, 7), (20, 41), UnmaskRefusedError, "2 survivors are below the threshold 3"),
        ((3, 7, 20, 41, 41), (), MalformedMessageError, "twice in one list"),
    ],
)
def test_unmasking_requests_that_would_tell_more_than_the_sum(
    survivors: tuple[int, ...],
    dropped: tuple[int, ...],
    error: type[RemoteError],
    match: str,
    session: Any,
    picture: Picture,
) -> None:
    session.run_to(Stage.UNMASK)
    refused(session.clients[3], UnmaskRequest(survivors, dropped), error, match, None, picture)
    assert (session.reveal().finish() == session.expected()).all()


def test_a_second_request_with_another_list_finds_nothing(session: Any) -> None:
    session.run_to(Stage.UNMASK).reveal()
    with pytest.raises(RemoteError, match="UnmaskRequest is not taken in state DONE"):
        session.clients[3].receive(UnmaskRequest((3, 7, 20), (41,)))
    assert session.clients[3]._held == {}


def rosters(entries: tuple[AdvertiseKeys, ...]) -> dict[str, tuple[tuple[AdvertiseKeys, ...], str, int | None]]:
    own, second, third, fourth = entries
    stranger = replace(fourth, sender=99)
    copied = replace(fourth, mask_key=third.mask_key)
    swapped = replace(fourth, mask_key=third.channel_key)
    forged = replace(own, mask_key=KeyPair.generate().public)
    return {
        "unsorted": ((own, third, second, fourth), "not an ascending list", None),
        "repeated": ((own, second, second, third), "not an ascending list", None),
        "stranger": ((own, second, third, stranger), "not an ascending list", None),
        "too few": ((own, second), "2 clients, below the threshold 3", None),
        "without me": ((second, third, fourth), "client 3's own keys", None),
        "my key forged": ((forged, second, third, fourth), "client 3's own keys", None),
        "key copied": ((own, second, third, copied), "stands twice", 41),
        "key swapped": ((own, second, third, swapped), "stands twice", 41),
        "low order": ((own, second, third, replace(fourth, channel_key=bytes(32))), "full order", 41),
    }


@pytest.mark.parametrize("case", sorted(rosters((AdvertiseKeys(0, b"", b""),) * 4)))
def test_rosters_that_a_client_refuses(case: str, session: Any, picture: Picture) -> None:
    session.run_to(Stage.ADVERTISE_KEYS)
    honest = tuple(client._advertisement() for client in session.clients.values())
    entries, match, offender = rosters(honest)[case]
    error = MalformedMessageError if "list" in match or "threshold" in match else KeyRefusedError
    refused(session.clients[3], Roster(entries), error, match, offender, picture)
    session.clients[3].receive(Roster(honest))


def test_a_mask_key_of_low_order_stops_the_contribution(session: Any, picture: Picture) -> None:
    # The server relays such a key instead of client 41's; the pair's mask would be known to it.
    session.run_to(Stage.ADVERTISE_KEYS)
    honest = [client._advertisement() for client in session.clients.values()]
    roster = Roster((*honest[:3], replace(honest[3], mask_key=bytes(32))))
    shared = {i: session.clients[i].receive(Roster((*honest[:3], honest[3])))[0] for i in (7, 20, 41)}
    client = session.clients[3]
    client.receive(roster)
    client.receive(Inbox(3, {i: message.sealed[3] for i, message in shared.items()}))
    before = picture(client)
    with pytest.raises(KeyRefusedError, match="client 41"):
        client.contribute(session.inputs[3])
    assert picture(client) == before


# What reaches a client's inbox --------------------------------------------------------------------------------


def flipped(sealed: bytes, position: int) -> bytes:
    return sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :]


@pytest.mark.parametrize("position", [0, 11, 12, 40, SEALED_BYTES - 17, SEALED_BYTES - 1])
def test_altered_shares_do_not_open(position: int, session: Any, picture: Picture) -> None:
    session.run_to(Stage.MASKED_INPUT)
    inbox = session.inboxes[3]
    altered = Inbox(3, {**inbox.sealed, 20: flipped(inbox.sealed[20], position)})
    refused(session.clients[3], altered, BrokenSealError, "client 20: sealed shares for client 3", 20, picture)
    session.clients[3].receive(inbox)


def test_shares_of_another_sender_recipient_or_session_do_not_open(
    session: Any, make_session: Callable[..., Any], picture: Picture
) -> None:
    session.run_to(Stage.MASKED_INPUT)
    inbox, client = session.inboxes[3], session.clients[3]
    other = make_session().run_to(Stage.MASKED_INPUT).inboxes[3]
    for wrong in (inbox.sealed[7], session.inboxes[7].sealed[20], session.inboxes[20].sealed[3], other.sealed[20]):
        refused(client, Inbox(3, {**inbox.sealed, 20: wrong}), BrokenSealError, "client 20", 20, picture)


@pytest.mark.parametrize("change", [{"session": b"z" * 16}, {"round_number": 10}])
def test_sealing_is_bound_to_session_and_round(change: dict[str, Any], session: Any) -> None:
    from privfed.secagg.keys import unseal

    key = channel_key(session.params, bytes(32), 3, 7)
    sealed = seal(session.params, key, 3, 7, 1, 2)
    assert unseal(session.params, key, 3, 7, sealed) == (1, 2)
    with pytest.raises(BrokenSealError):
        unseal(replace(session.params, **change), key, 3, 7, sealed)
    with pytest.raises(BrokenSealError):
        unseal(session.params, key, 7, 3, sealed)


def test_inboxes_of_the_wrong_form_are_refused(session: Any, picture: Picture) -> None:
    session.run_to(Stage.MASKED_INPUT)
    inbox, client = session.inboxes[3], session.clients[3]
    cases: list[tuple[Inbox, str, int | None]] = [
        (session.inboxes[7], "inbox of client 7 came to client 3", None),
        (Inbox(3, {**inbox.sealed, 99: bytes(SEALED_BYTES)}), "not in the roster", None),
        (Inbox(3, {**inbox.sealed, 3: bytes(SEALED_BYTES)}), "not in the roster", None),
        (Inbox(3, {7: inbox.sealed[7]}), "2 clients shared, below the threshold 3", None),
        (Inbox(3, {**inbox.sealed, 7: inbox.sealed[7][:-1]}), "must be 94 bytes", 7),
        (Inbox(3, {**inbox.sealed, 7: inbox.sealed[7] + b"0"}), "must be 94 bytes", 7),
    ]
    for message, match, offender in cases:
        refused(client, message, MalformedMessageError, match, offender, picture)
    # A share outside of the field, properly sealed by its sender.
    key = client._inbound_keys[20]
    outside = seal(session.params, key, 20, 3, PRIME, 1)
    message = Inbox(3, {**inbox.sealed, 20: outside})
    refused(client, message, MalformedMessageError, "outside of the field", 20, picture)


# What reaches the server ---------------------------------------------------------------------------------------


def test_advertisements_that_the_server_refuses(session: Any, picture: Picture) -> None:
    first = session.clients[3].start()
    session.server.receive(first)
    good = session.clients[7].start()
    for message, error, match in [
        (replace(good, mask_key=first.mask_key), KeyRefusedError, "in use already"),
        (replace(good, mask_key=first.channel_key), KeyRefusedError, "in use already"),
        (replace(good, channel_key=good.mask_key), KeyRefusedError, "in use already"),
        (replace(good, mask_key=bytes(32)), KeyRefusedError, "full order"),
        (replace(good, mask_key=good.mask_key[:31]), MalformedMessageError, "32 bytes"),
    ]:
        refused(session.server, message, error, match, 7, picture)
    session.server.receive(good)


def test_sharings_that_the_server_refuses(session: Any, picture: Picture) -> None:
    session.run_to(Stage.SHARE_KEYS)
    good = session.shared[3]
    missing = {i: sealed for i, sealed in good.sealed.items() if i != 7}
    for message, match in [
        (replace(good, commitment=b""), "commitment must be 32 bytes"),
        (replace(good, sealed=missing), "every other client"),
        (replace(good, sealed={**good.sealed, 3: bytes(SEALED_BYTES)}), "every other client"),
        (replace(good, sealed={**good.sealed, 7: b"short"}), "must be 94 bytes"),
    ]:
        refused(session.server, message, MalformedMessageError, match, 3, picture)
    session.server.receive(good)


def test_inputs_that_the_server_refuses(session: Any, picture: Picture) -> None:
    session.run_to(Stage.MASKED_INPUT)
    for vector in (np.zeros(6, np.uint32), np.zeros(5, np.uint64), np.zeros(5), b"12345"):
        refused(session.server, MaskedInput(3, vector), MalformedMessageError, "input vector", 3, picture)


def test_reveals_that_the_server_refuses(session: Any, picture: Picture) -> None:
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    good = session.reveals[3]
    for message, match in [
        (replace(good, seed_shares={3: 1}), "not the ones that were asked for"),
        (replace(good, key_shares={}), "not the ones that were asked for"),
        (replace(good, seed_shares={**good.seed_shares, 41: 1}), "not the ones that were asked for"),
        (replace(good, key_shares={41: PRIME}), "outside of the field"),
        (replace(good, key_shares={41: -1}), "outside of the field"),
    ]:
        refused(session.server, message, MalformedMessageError, match, 3, picture)
    assert (session.finish() == session.expected()).all()


@pytest.mark.parametrize(("kind", "owner"), [("seed_shares", 7), ("seed_shares", 3), ("key_shares", 41)])
@pytest.mark.parametrize("change", [1, PRIME // 2])
def test_a_corrupted_share_is_detected(kind: str, owner: int, change: int, session: Any) -> None:
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    good = session.reveals[20]
    shares = dict(getattr(good, kind))
    shares[owner] = (shares[owner] + change) % PRIME
    session.reveals[20] = replace(good, **{kind: shares})
    with pytest.raises(CorruptShareError, match=f"client {owner}") as caught:
        session.finish()
    assert caught.value.offender == owner
    assert session.server.state is ServerState.ABORTED
    assert not session.server._total.any()


def test_shares_that_combine_beyond_32_bytes_are_detected(session: Any) -> None:
    # All three answering holders conspire so that the secret comes out as 2**256.
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    for holder, good in session.reveals.items():
        session.reveals[holder] = replace(good, key_shares={41: 2**256})
    with pytest.raises(CorruptShareError, match="no 32-byte secret"):
        session.finish()


def test_a_wrong_commitment_is_detected(session: Any) -> None:
    session.run_to(Stage.SHARE_KEYS)
    session.shared[7] = replace(session.shared[7], commitment=bytes(32))
    for message in session.shared.values():
        session.server.receive(message)
    for i, inbox in session.server.close_stage().items():
        session.clients[i].receive(inbox)
        session.server.receive(session.clients[i].contribute(session.inputs[i]))
    session.request = next(iter(session.server.close_stage().values()))
    with pytest.raises(CorruptShareError, match="client 7: the self-mask seed does not match its commitment"):
        session.reveal().finish()


def test_without_the_commitment_the_corruption_would_pass(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Why the commitment is there: a field element within range is no sign that the shares were right.
    monkeypatch.setattr("privfed.secagg.server.matches", lambda expected, actual: True)
    session.run_to(Stage.UNMASK).reveal()
    good = session.reveals[3]
    session.reveals[3] = replace(good, seed_shares={**good.seed_shares, 7: (good.seed_shares[7] + 1) % PRIME})
    assert (session.finish() != session.expected()).any()
