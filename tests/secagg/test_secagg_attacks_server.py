"""Attacks by the server, alone or with clients of its own: each ends in a refusal and tells it nothing.

The table in ``docs/secure-aggregation.md`` names these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from shown_rosters import roster_of

from privfed.secagg import Client, SecAggParams, Server, SessionsOnDisk, Stage, wire
from privfed.secagg.errors import (
    BrokenSealError,
    IllegalEventError,
    InconsistentModelError,
    InconsistentSurvivorsError,
    KeyRefusedError,
    MalformedMessageError,
    ParameterError,
    SessionUsedError,
    SignatureRefusedError,
    UnexpectedMessageError,
    UnmaskRefusedError,
)
from privfed.secagg.keys import survivors_to_sign
from privfed.secagg.messages import Inbox, SurvivorList, UnmaskRequest

Refused = Callable[..., None]


# Both shares of one client -------------------------------------------------------------------------------------


def test_both_shares_of_a_client_are_never_given_by_one_holder(session: Any) -> None:
    # Flower's SecAgg+ answers such a request. Here a holder's list has every client once, as survivor or not.
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    for answer in session.reveals.values():
        assert not answer.seed_shares.keys() & answer.key_shares.keys()
        assert answer.seed_shares.keys() == {3, 7, 20}
    for client in (session.clients[i] for i in (3, 7, 20)):
        for message in (SurvivorList((3, 7, 20, 41)), session.requests[client.client_id]):
            with pytest.raises(UnexpectedMessageError, match="not taken in state DONE"):
                client.receive(message)
        assert client._held == {}


def test_survivor_lists_that_differ_abort_before_any_share_is_given(session: Any, refused: Refused) -> None:
    # Clients 3 and 7 are told that 20 survived, 20 and 41 that 3 did not: each half would give another share.
    session.run_to(Stage.CONSISTENCY)
    first, second = SurvivorList((3, 7, 20)), SurvivorList((7, 20, 41))
    signed = {i: session.clients[i].receive(first)[0].signature for i in (3, 7)}
    signed |= {i: session.clients[i].receive(second)[0].signature for i in (20, 41)}
    request = UnmaskRequest(3, {7: signed[7], 20: signed[20]}, {})
    refused(session.clients[3], request, InconsistentSurvivorsError, "client 20 did not sign", None)
    request = UnmaskRequest(41, {7: signed[7], 20: signed[20]}, {})
    refused(session.clients[41], request, InconsistentSurvivorsError, "client 7 did not sign", None)


def test_a_second_survivor_list_is_not_signed(session: Any, refused: Refused) -> None:
    session.run_to(Stage.CONSISTENCY).sign()
    for survivors in ((3, 7, 20), (3, 7, 20, 41)):
        refused(
            session.clients[3], SurvivorList(survivors), UnexpectedMessageError, "not taken in state SIGNED", None
        )


def test_no_share_is_given_before_the_list_is_signed(session: Any, refused: Refused) -> None:
    session.run_to(Stage.CONSISTENCY)
    refused(
        session.clients[3], UnmaskRequest(3, {}, {}), UnexpectedMessageError, "not taken in state MASKED", None
    )


@pytest.mark.parametrize(
    ("survivors", "error", "match"),
    [
        ((7, 20, 41), UnmaskRefusedError, "calls client 3 dropped"),
        ((3, 7), UnmaskRefusedError, "2 survivors among the holders .* below the threshold 3"),
        ((3, 7, 20, 99), MalformedMessageError, "not in the session"),
        ((3, 7, 20, 20), MalformedMessageError, "not strictly ascending"),
        ((7, 3, 20), MalformedMessageError, "not strictly ascending"),
    ],
)
def test_false_survivor_lists_are_refused(
    survivors: tuple[int, ...], error: Any, match: str, session: Any, refused: Refused
) -> None:
    session.run_to(Stage.CONSISTENCY)
    refused(session.clients[3], SurvivorList(survivors), error, match, None)
    session.requests = session.step(session.sign().signed)
    assert (session.reveal().finish() == session.expected()).all()


def test_a_client_that_did_not_share_cannot_be_called_a_survivor(session: Any, refused: Refused) -> None:
    session.run_to(Stage.SHARE_KEYS)
    del session.shared[41]
    session.inboxes = session.step(session.shared)
    client = session.clients[3]
    client.receive(session.inboxes[3])
    client.contribute(session.inputs[3])
    refused(client, SurvivorList((3, 7, 20, 41)), UnmaskRefusedError, "calls client 41 a survivor", None)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda s: {}, UnmaskRefusedError, "1 signed the survivor list, below the threshold 3"),
        (lambda s: {7: s[7]}, UnmaskRefusedError, "2 signed the survivor list"),
        (lambda s: {7: s[20], 20: s[7]}, InconsistentSurvivorsError, "client 7 did not sign"),
        (lambda s: {7: s[7], 20: bytes(64)}, InconsistentSurvivorsError, "client 20 did not sign"),
        (lambda s: {7: s[7], 99: s[20]}, MalformedMessageError, "no surviving neighbour"),
        (lambda s: {7: s[7], 3: s[3]}, MalformedMessageError, "no surviving neighbour"),
        (lambda s: {7: s[7], 20: s[20][:-1]}, MalformedMessageError, "a signature must be 64 bytes"),
    ],
)
def test_too_few_or_false_signatures_on_the_list_are_refused(
    change: Any, error: Any, match: str, session: Any, refused: Refused
) -> None:
    session.run_to(Stage.UNMASK)
    signatures = {i: message.signature for i, message in session.signed.items()}
    refused(session.clients[3], UnmaskRequest(3, change(signatures), {}), error, match, None)
    refused(session.clients[3], session.requests[7], MalformedMessageError, "request to client 7", None)
    assert (session.reveal().finish() == session.expected()).all()


def test_a_vector_without_the_mask_of_a_holder_is_not_unmasked_by_it(session: Any, refused: Refused) -> None:
    # The server keeps client 41's shares from 3, so that 3 has no mask with 41, and yet asks 41 to unmask 3. Doing
    # so all along an arc of a sparse ring would cut it off; see privfed/secagg/bounds.py.
    session.run_to(Stage.SHARE_KEYS)
    inboxes = session.step(session.shared)
    inboxes[3] = Inbox(3, {i: box for i, box in inboxes[3].sealed.items() if i != 41})
    masked = {}
    for i, client in session.clients.items():
        client.receive(inboxes[i])
        masked[i] = client.contribute(session.inputs[i])
    assert masked[3].included.keys() == {7, 20}
    refused(session.server, masked[3], MalformedMessageError, "a token for every neighbour", 3)
    everybody = SurvivorList((3, 7, 20, 41))
    signed = {i: session.clients[i].receive(everybody)[0].signature for i in (7, 20, 41)}
    signatures = {i: signed[i] for i in (7, 20)}
    included = {i: masked[i].included[41] for i in (7, 20)}
    client = session.clients[41]
    for token in (bytes(32), masked[3].included[7], masked[41].included[3]):
        request = UnmaskRequest(41, signatures, {**included, 3: token})
        refused(client, request, UnmaskRefusedError, "client 3: does not show that its vector has the mask", 3)
    refused(client, UnmaskRequest(41, signatures, included), MalformedMessageError, "neighbour's token", None)
    # Nor will client 3 sign that 41, of which it has no shares, survives.
    match = "calls client 41 a survivor"
    refused(session.clients[3], everybody, UnmaskRefusedError, match, None)


def test_signatures_of_another_round_do_not_unmask(
    session: Any, make_session: Callable[..., Any], refused: Refused
) -> None:
    earlier = make_session()
    earlier.identities, earlier.directory = session.identities, session.directory
    earlier.server = Server(earlier.params, earlier.directory, model=b"model")
    earlier.clients = {i: earlier.client(i) for i in earlier.clients}
    earlier.run_to(Stage.UNMASK)
    session.run_to(Stage.UNMASK)
    refused(session.clients[3], earlier.requests[3], InconsistentSurvivorsError, "client 7 did not sign", None)


# Models --------------------------------------------------------------------------------------------------------


def test_a_server_that_sends_different_models_makes_the_round_abort(
    make_session: Callable[..., Any], refused: Refused
) -> None:
    # Pasquini et al. 2022: a crafted model for one client makes the sum that client's update.
    session = make_session(models={41: b"crafted"}).run_to(Stage.ADVERTISE_KEYS)
    for i in (3, 7, 20):
        roster = roster_of(session, i, session.advertised)
        match = f"clients {i} and 41 were given different models"
        refused(session.clients[i], roster, InconsistentModelError, match, None)
    roster = roster_of(session, 41, session.advertised)
    refused(session.clients[41], roster, InconsistentModelError, "clients 41 and 3", None)


def test_different_models_cannot_be_hidden_by_two_rosters(
    make_session: Callable[..., Any], refused: Refused
) -> None:
    session = make_session(range(4), models={2: b"crafted", 3: b"crafted"}).run_to(Stage.ADVERTISE_KEYS)
    for group in ((0, 1), (2, 3)):
        entries = {i: session.advertised[i] for i in group}
        for i in group:
            match = "2 clients, below the threshold 3"
            refused(session.clients[i], roster_of(session, i, entries), MalformedMessageError, match, None)


def test_the_model_is_part_of_what_the_survivors_sign(session: Any) -> None:
    client = session.run_to(Stage.UNMASK).clients[3]
    survivors = session.survivor_list.survivors
    assert client._statement == survivors_to_sign(client._scope, client._model_digest, survivors)
    assert client._statement != survivors_to_sign(client._scope, bytes(32), survivors)


# Sessions ------------------------------------------------------------------------------------------------------


def test_a_second_masked_vector_is_refused(session: Any) -> None:
    client = session.run_to(Stage.CONSISTENCY).clients[3]
    with pytest.raises(IllegalEventError, match="cannot contribute in state MASKED"):
        client.contribute(session.inputs[3])


def test_a_restarted_client_is_not_tricked_into_a_second_masked_vector(session: Any, tmp_path: Any) -> None:
    used = SessionsOnDisk(tmp_path / "sessions")
    session.clients[3] = session.client(3, sessions=used)
    session.run_to(Stage.CONSISTENCY)
    restarted = session.client(3, sessions=SessionsOnDisk(tmp_path / "sessions"))
    with pytest.raises(SessionUsedError, match=r"has begun .* before and will not mask a second vector"):
        restarted.start()
    # The number of the round does not make it another session; another identifier does.
    again = session.client(3, replace(session.params, round_number=10), sessions=used)
    with pytest.raises(SessionUsedError):
        again.start()
    session.client(3, replace(session.params, session=b"n" * 16), sessions=used).start()
    assert len(list((tmp_path / "sessions").iterdir())) == 2


def test_an_earlier_round_cannot_be_replayed(
    session: Any, make_session: Callable[..., Any], refused: Refused
) -> None:
    # Same clients, same parameters but for the session: yesterday's roster and inbox mean nothing today.
    session.run_to(Stage.UNMASK)
    today = make_session()
    today.identities, today.directory = session.identities, session.directory
    today.clients = {i: today.client(i) for i in today.clients}
    today.server = Server(today.params, today.directory, model=b"model")
    today.run_to(Stage.ADVERTISE_KEYS)
    client = today.clients[3]
    refused(client, session.rosters[3], KeyRefusedError, "client 3's own keys", None)
    mixed = roster_of(today, 3, {**session.advertised, 3: today.advertised[3]})
    refused(client, mixed, SignatureRefusedError, "client 7 did not sign for this session", None)
    client.receive(roster_of(today, 3, today.advertised))
    refused(client, session.inboxes[3], BrokenSealError, "client 7", 7)


@pytest.mark.parametrize(
    "change",
    [
        {"round_number": 10},
        {"threshold": 4},
        {"ring_bits": 64},
        {"dimension": 6},
        {"client_ids": (3, 7, 20, 41, 50)},
    ],
)
def test_clients_that_were_told_different_parameters_do_not_meet(
    change: dict[str, Any], session: Any, refused: Refused
) -> None:
    told = replace(session.params, **change)
    session.clients[41] = session.client(41, told)
    session.run_to(Stage.ADVERTISE_KEYS)
    roster = roster_of(session, 3, session.advertised)
    refused(session.clients[3], roster, SignatureRefusedError, "client 41 did not sign for this session", None)
    refused(session.server, session.advertised[41], SignatureRefusedError, "AdvertiseKeys", 41)


def test_a_threshold_that_is_too_low_is_refused_by_every_client() -> None:
    for threshold in (0, 1, 2):
        with pytest.raises(ParameterError, match="threshold: must be at least 2 and above half"):
            SecAggParams(bytes(16), 0, (1, 2, 3, 4), threshold, 5)
    with pytest.raises(ParameterError, match="threshold: must be at least 2 and above half of the 7 clients"):
        SecAggParams(bytes(16), 0, tuple(range(20)), 3, 5, degree=6)


def test_out_of_order_and_repeated_stages_are_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.UNMASK)
    client: Client = session.clients[3]
    for message in (session.rosters[3], session.inboxes[3], session.survivor_list):
        refused(client, message, UnexpectedMessageError, "not taken in state SIGNED", None)


def test_a_client_that_gave_up_answers_nothing(session: Any, refused: Refused) -> None:
    client = session.run_to(Stage.UNMASK).clients[3]
    client.abort()
    refused(client, session.requests[3], UnexpectedMessageError, "not taken in state ABORTED", None)


def test_what_the_server_may_not_learn_is_not_in_a_clients_messages(session: Any) -> None:
    # A complete round: no byte string on the wire is a seed or a private key of a client that survived.
    secrets = {i: (client._seed, client._mask_pair.private_bytes()) for i, client in session.clients.items()}
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    kinds = (session.advertised, session.shared, session.masked, session.signed, session.reveals)
    seen = b"".join(wire.encode(message) for kind in kinds for message in kind.values())
    assert not any(part in seen for i in (3, 7, 20) for part in secrets[i])
    assert (session.finish() == session.expected()).all()
    assert np.array_equal(session.server.total, session.expected())
