"""Attacks by whoever sits on the wire: bytes and messages altered, cut, repeated, late or misdirected."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from privfed.secagg import Stage, decode, encode, merkle, wire
from privfed.secagg.errors import (
    BrokenSealError,
    DuplicateMessageError,
    MalformedMessageError,
    RemoteError,
    SignatureRefusedError,
    UnexpectedMessageError,
    UnexpectedSenderError,
)
from privfed.secagg.keys import KeyPair, channel_key, seal, tag_key, tag_of, unseal
from privfed.secagg.messages import SEALED_BYTES, Inbox

Refused = Callable[..., None]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("position", [0, 11, 12, 40, SEALED_BYTES - 17, SEALED_BYTES - 1])
def test_altered_shares_do_not_open(position: int, session: Any, refused: Refused) -> None:
    session.run_to(Stage.SHARE_KEYS)
    inbox = session.step(session.shared)[3]
    altered = Inbox(3, {**inbox.sealed, 20: flipped(inbox.sealed[20], position)})
    refused(session.clients[3], altered, BrokenSealError, "client 20: sealed shares for client 3", 20)
    session.clients[3].receive(inbox)


def test_shares_of_another_sender_recipient_or_session_do_not_open(
    session: Any, make_session: Callable[..., Any], refused: Refused
) -> None:
    inboxes = session.run_to(Stage.SHARE_KEYS).step(session.shared)
    inbox, client = inboxes[3], session.clients[3]
    other = make_session().run_to(Stage.MASKED_INPUT).inboxes[3]
    for wrong in (inbox.sealed[7], inboxes[7].sealed[20], inboxes[20].sealed[3], other.sealed[20]):
        refused(client, Inbox(3, {**inbox.sealed, 20: wrong}), BrokenSealError, "client 20", 20)


@pytest.mark.parametrize("change", [{"session": b"z" * 16}, {"round_number": 10}, {"dimension": 6}])
def test_sealing_is_bound_to_the_session_and_its_parameters(change: dict[str, Any], session: Any) -> None:
    from privfed.secagg.keys import Scope

    scope = Scope(session.params)
    key = channel_key(scope, bytes(32), 3, 7)
    sealed = seal(scope, key, 3, 7, 1, 2)
    assert unseal(scope, key, 3, 7, sealed) == (1, 2)
    for elsewhere in (Scope(replace(session.params, **change)), Scope(session.params, b"r" * 32)):
        with pytest.raises(BrokenSealError):
            unseal(elsewhere, key, 3, 7, sealed)
    with pytest.raises(BrokenSealError):
        unseal(scope, key, 7, 3, sealed)
    with pytest.raises(MalformedMessageError, match="must be 94 bytes"):
        unseal(scope, key, 3, 7, sealed[:-1])


def test_inboxes_of_the_wrong_form_are_refused(session: Any, refused: Refused) -> None:
    inboxes = session.run_to(Stage.SHARE_KEYS).step(session.shared)
    inbox, client = inboxes[3], session.clients[3]
    cases: list[tuple[Inbox, str]] = [
        (inboxes[7], "inbox of client 7 came to client 3"),
        (Inbox(3, {**inbox.sealed, 99: bytes(SEALED_BYTES)}), "not in the roster"),
        (Inbox(3, {**inbox.sealed, 3: bytes(SEALED_BYTES)}), "not in the roster"),
        (Inbox(3, {7: inbox.sealed[7]}), "2 clients shared, below the threshold 3"),
        (Inbox(3, {**inbox.sealed, 7: inbox.sealed[7][:-1]}), "must be 94 bytes"),
        (Inbox(3, {**inbox.sealed, 7: inbox.sealed[7] + b"0"}), "must be 94 bytes"),
    ]
    for message, match in cases:
        refused(client, message, MalformedMessageError, match, None)


def test_repeated_and_late_messages_are_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.ADVERTISE_KEYS)
    session.server.receive(session.advertised[3])
    refused(session.server, session.advertised[3], DuplicateMessageError, "a second AdvertiseKeys", 3)
    del session.advertised[3]
    rosters = session.step(session.advertised)
    session.shared = {i: session.clients[i].receive(message)[0] for i, message in rosters.items()}
    session.step(session.shared)
    refused(session.server, session.shared[7], UnexpectedMessageError, "ShareKeys is not taken", 7)
    refused(session.server, session.advertised[7], UnexpectedMessageError, "AdvertiseKeys is not taken", 7)


def test_a_client_that_was_too_late_has_no_part_afterwards(session: Any, refused: Refused) -> None:
    session.run_to(Stage.SHARE_KEYS)
    late = session.shared.pop(41)
    for i, inbox in session.step(session.shared).items():
        session.clients[i].receive(inbox)
    refused(session.server, late, UnexpectedMessageError, "ShareKeys is not taken", 41)
    forged = session.clients[3].contribute(session.inputs[3])
    refused(session.server, replace(forged, sender=41), UnexpectedSenderError, "no part in stage MASKED_INPUT", 41)


def test_messages_of_another_session_are_refused_by_the_server(
    session: Any, make_session: Callable[..., Any], refused: Refused
) -> None:
    other = make_session()
    other.identities, other.directory = session.identities, session.directory
    other.clients = {i: other.client(i) for i in other.clients}
    other.run_to(Stage.ADVERTISE_KEYS)
    refused(session.server, other.advertised[3], SignatureRefusedError, "for this session", 3)


def test_with_another_server_key_a_client_has_no_part(session: Any, refused: Refused) -> None:
    # Somebody between the two, with a top that fits, so that client 3 has nothing to complain of.
    session.run_to(Stage.ADVERTISE_KEYS)
    rosters = session.step(session.advertised)
    ids, between = session.params.client_ids, KeyPair.generate()
    root = merkle.Tree([merkle.leaf(encode(session.advertised[i])) for i in ids]).root
    rosters[3] = replace(rosters[3], server_key=between.public, top=merkle.top(root, between.public))
    shared = {i: session.clients[i].receive(message)[0] for i, message in rosters.items()}
    match = "does not carry its tag for this session"
    refused(session.server, shared.pop(3), SignatureRefusedError, match, 3)
    for i, inbox in session.step(shared).items():
        session.clients[i].receive(inbox)
    session.masked = {i: session.clients[i].contribute(session.inputs[i]) for i in shared}
    # Nor does the tag that the one between can make for another's vector pass.
    key = tag_key(session.clients[7]._scope, between.exchange(session.advertised[7].channel_key, owner=7), 7)
    honest = session.masked[7]
    mine = replace(honest, tag=tag_of(key, wire.kind_of(honest), wire.authenticated(honest)))
    refused(session.server, mine, SignatureRefusedError, match, 7)
    session.survivor_list = next(iter(session.step(session.masked).values()))
    session.requests = session.step(session.sign().signed)
    assert (session.reveal().finish() == session.expected()).all()
    assert session.survivor_list.survivors == (7, 20, 41)


def test_a_message_under_another_sender_is_refused_as_it_arrives(session: Any) -> None:
    data = encode(session.run_to(Stage.ADVERTISE_KEYS).advertised[3])
    assert decode(data, peer=3) == session.advertised[3]
    with pytest.raises(UnexpectedSenderError, match="client 7: sent a AdvertiseKeys in the name of client 3") as e:
        decode(data, peer=7)
    assert e.value.offender == 7
    with pytest.raises(UnexpectedSenderError, match="server: sent a AdvertiseKeys in the name of client 3"):
        decode(data, peer=None)


def test_every_mutation_of_a_clients_bytes_is_refused_by_the_server(make_session: Callable[..., Any]) -> None:
    """Flipped, cut, doubled and reversed messages are never accepted, and the sum is exact all the same."""
    session = make_session(dimension=3)
    draw = random.Random(7)
    tried = 0

    def attack(messages: dict[int, Any]) -> None:
        nonlocal tried
        for sender, message in messages.items():
            data = encode(message)
            positions = range(len(data)) if sender == 3 else draw.sample(range(len(data)), 20)
            mutants = [flipped(data, position) for position in positions]
            mutants += [data[:-1], data + b"\0", data[: len(data) // 2], data + data, b"", data[::-1]]
            for mutant in mutants:
                tried += 1
                with pytest.raises(RemoteError) as caught:
                    session.server.receive(decode(mutant, peer=sender))
                assert caught.value.offender == sender
            session.server.receive(decode(data, peer=sender))

    session.run_to(Stage.ADVERTISE_KEYS)
    attack(session.advertised)
    rosters = session.server.close_stage()
    session.shared = {i: session.clients[i].receive(message)[0] for i, message in rosters.items()}
    attack(session.shared)
    for i, inbox in session.server.close_stage().items():
        session.clients[i].receive(inbox)
    attack({i: client.contribute(session.inputs[i]) for i, client in session.clients.items()})
    session.survivor_list = next(iter(session.server.close_stage().values()))
    session.sign()
    attack(session.signed)
    session.requests = session.server.close_stage()
    session.reveal()
    attack(session.reveals)
    session.server.close_stage()
    assert (session.server.total == session.expected()).all()
    assert tried > 1400


def test_every_mutation_of_the_servers_bytes_is_refused_by_the_client(make_session: Callable[..., Any]) -> None:
    """A flipped bit in what client 3 receives is refused, whichever byte it is in; so are cuts and additions."""
    session = make_session(dimension=3)
    client = session.clients[3]

    def attack(message: Any) -> None:
        data = encode(message)
        for position in range(len(data)):
            with pytest.raises(RemoteError):
                client.receive(decode(flipped(data, position), peer=None))
        for mutant in (data[:-1], data + b"\0", data[: len(data) // 2], data + data):
            with pytest.raises(MalformedMessageError) as caught:
                decode(mutant, peer=None)
            assert caught.value.offender is None

    session.run_to(Stage.ADVERTISE_KEYS)
    session.rosters = session.step(session.advertised)
    attack(session.rosters[3])
    session.shared = {i: session.clients[i].receive(message)[0] for i, message in session.rosters.items()}
    session.inboxes = session.step(session.shared)
    attack(session.inboxes[3])
    for i, inbox in session.inboxes.items():
        session.clients[i].receive(inbox)
    session.masked = {i: each.contribute(session.inputs[i]) for i, each in session.clients.items()}
    session.survivor_list = next(iter(session.step(session.masked).values()))
    attack(session.survivor_list)
    session.requests = session.step(session.sign().signed)
    attack(session.requests[3])
    assert (session.reveal().finish() == session.expected()).all()
