"""Attacks by clients on the sum, on each other and on the server: refused or found, with the offender's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privfed.secagg import ServerState, Stage, wire
from privfed.secagg.errors import (
    CorruptShareError,
    DuplicateMessageError,
    InconsistentModelError,
    InconsistentSurvivorsError,
    KeyRefusedError,
    MalformedMessageError,
    SignatureRefusedError,
    UnexpectedSenderError,
)
from privfed.secagg.keys import KeyPair, seal, tag_of
from privfed.secagg.messages import SEALED_BYTES, AdvertiseKeys, ConsistencySignature, Inbox, MaskedInput
from privfed.secagg.ring import RingVector, dtype_of
from privfed.secagg.shamir import PRIME

Refused = Callable[..., None]


def signed(session: Any, message: Any, **changes: Any) -> Any:
    """``message`` changed, and signed or tagged again as its sender can."""
    changed = replace(message, **changes)
    if isinstance(message, AdvertiseKeys):
        return session.clients[message.sender]._sign(replace(changed, signature=b""))
    return tagged(session.server._tag_keys[message.sender], changed)


def tagged(key: bytes, message: Any) -> Any:
    return replace(message, tag=tag_of(key, wire.kind_of(message), wire.authenticated(message)))


# Keys and shares -----------------------------------------------------------------------------------------------


def test_advertisements_with_bad_keys_are_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.ADVERTISE_KEYS)
    first, good = session.advertised[3], session.advertised[7]
    session.server.receive(first)
    for changes, match in [
        ({"mask_key": first.mask_key}, "in use already"),
        ({"mask_key": first.channel_key}, "in use already"),
        ({"channel_key": good.mask_key}, "in use already"),
        ({"mask_key": bytes(32)}, "full order"),
    ]:
        refused(session.server, signed(session, good, **changes), KeyRefusedError, match, 7)
    short = replace(good, mask_key=good.mask_key[:31])
    refused(session.server, short, MalformedMessageError, "a key must be 32 bytes", 7)
    session.server.receive(good)


def test_a_client_with_another_model_is_refused(session: Any, refused: Refused) -> None:
    session.clients[7] = session.client(7, model=b"another")
    session.run_to(Stage.ADVERTISE_KEYS)
    refused(session.server, session.advertised[7], InconsistentModelError, "another model", 7)


def test_sharings_of_the_wrong_form_are_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.SHARE_KEYS)
    good = session.shared[3]
    missing = {i: sealed for i, sealed in good.sealed.items() if i != 7}
    for message, match in [
        (replace(good, commitment=b""), "a digest must be 32 bytes"),
        (replace(good, sealed=missing), "every other client"),
        (replace(good, sealed={**good.sealed, 3: bytes(SEALED_BYTES)}), "every other client"),
        (replace(good, sealed={**good.sealed, 7: b"short"}), "must be 94 bytes"),
    ]:
        refused(session.server, message, MalformedMessageError, match, 3)
    session.server.receive(good)


def test_a_share_outside_of_the_field_is_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.SHARE_KEYS)
    inboxes = session.step(session.shared)
    client = session.clients[3]
    outside = seal(client._scope, client._inbound_keys[20], 20, 3, PRIME, 1)
    message = Inbox(3, {**inboxes[3].sealed, 20: outside})
    refused(client, message, MalformedMessageError, "outside of the field", 20)


# Inputs and reveals --------------------------------------------------------------------------------------------


def test_inputs_of_another_length_or_modulus_are_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.MASKED_INPUT)
    wrong = [RingVector(bits, np.zeros(n, dtype_of(bits))) for bits, n in ((32, 6), (32, 4), (64, 5), (31, 5))]
    for vector in (*wrong, np.zeros(5, np.uint32), b"12345"):
        refused(session.server, MaskedInput(3, vector, {}, bytes(16)), MalformedMessageError, "input vector", 3)


def test_a_second_masked_vector_is_refused_by_the_server(session: Any, refused: Refused) -> None:
    session.run_to(Stage.MASKED_INPUT)
    first = session.clients[3].contribute(session.inputs[3])
    session.server.receive(first)
    second = signed(session, first, vector=RingVector(32, np.zeros(5, np.uint32)))
    refused(session.server, second, DuplicateMessageError, "sent a second MaskedInput", 3)


def test_a_client_that_signs_another_list_is_named(session: Any, refused: Refused) -> None:
    session.run_to(Stage.CONSISTENCY)
    wrong = ConsistencySignature(7, session.identities[7].sign(b"another list"))
    refused(session.server, wrong, InconsistentSurvivorsError, "client 7: did not sign", 7)
    stolen = ConsistencySignature(7, session.clients[3].receive(session.survivor_list)[0].signature)
    refused(session.server, stolen, InconsistentSurvivorsError, "client 7: did not sign", 7)


def test_reveals_of_the_wrong_form_are_refused(session: Any, refused: Refused) -> None:
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    good = session.reveals[3]
    for message, match in [
        (replace(good, seed_shares={3: 1}), "not the ones that were asked for"),
        (replace(good, key_shares={}), "not the ones that were asked for"),
        (replace(good, seed_shares={**good.seed_shares, 41: 1}), "not the ones that were asked for"),
        (replace(good, key_shares={41: PRIME}), "outside of the field"),
        (replace(good, key_shares={41: -1}), "outside of the field"),
    ]:
        refused(session.server, message, MalformedMessageError, match, 3)
    assert (session.finish() == session.expected()).all()


@pytest.mark.parametrize(("kind", "owner"), [("seed_shares", 7), ("seed_shares", 3), ("key_shares", 41)])
@pytest.mark.parametrize("change", [1, PRIME // 2])
def test_a_corrupted_share_is_detected(kind: str, owner: int, change: int, session: Any) -> None:
    # Three shares of threshold three: wrong they are, but nobody can tell whose, and the owner is named.
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    corrupt(session, 20, kind, owner, change)
    with pytest.raises(CorruptShareError, match=f"client {owner}: .* its dealing or a holder's") as caught:
        session.finish()
    assert caught.value.offender == owner
    assert session.server.state is ServerState.ABORTED
    assert not session.server._total.any()


def corrupt(session: Any, holder: int, kind: str, owner: int, change: int) -> None:
    good = session.reveals[holder]
    shares = dict(getattr(good, kind))
    shares[owner] = (shares[owner] + change) % PRIME
    session.reveals[holder] = signed(session, good, **{kind: shares})


@pytest.mark.parametrize("colluders", [[0], [4], [6], [0, 4], [1, 2, 3]])
@pytest.mark.parametrize(("kind", "owner"), [("seed_shares", 5), ("key_shares", 9)])
def test_a_colluder_that_corrupts_a_share_is_named_when_there_are_shares_to_spare(
    kind: str, owner: int, colluders: list[int], make_session: Callable[..., Any]
) -> None:
    session = make_session(range(10), 6).run_to(Stage.UNMASK, gone=[9]).reveal()
    for colluder in colluders:
        corrupt(session, colluder, kind, owner, 12345 + colluder)
    if colluders == [6]:  # a share beyond the threshold, which is not used
        assert (session.finish() == session.expected()).all()
        return
    with pytest.raises(CorruptShareError, match=f"revealed a wrong share of client {owner}'s") as caught:
        session.finish()
    assert caught.value.offender in colluders
    assert not session.server._total.any()


def test_an_owner_that_dealt_nonsense_is_named(make_session: Callable[..., Any]) -> None:
    session = make_session(range(6), 4).run_to(Stage.UNMASK, gone=[5]).reveal()
    for holder in range(5):
        corrupt(session, holder, "seed_shares", 2, 1000 + holder**5)
    with pytest.raises(CorruptShareError, match="client 2: no 4 shares give the self-mask seed") as caught:
        session.finish()
    assert caught.value.offender == 2


def test_shares_that_combine_beyond_32_bytes_are_detected(session: Any) -> None:
    # All three answering holders conspire so that the secret comes out as 2**256.
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    for holder, good in session.reveals.items():
        session.reveals[holder] = signed(session, good, key_shares={41: 2**256})
    with pytest.raises(CorruptShareError, match="client 41: the mask key does not match"):
        session.finish()


def test_an_equivalent_private_key_is_not_taken_for_the_shared_one(session: Any) -> None:
    # X25519 ignores three bits: a holder that flips one leaves the public key as it was.
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    secret = session.clients[41]._mask_pair.private_bytes()
    same = bytes((secret[0] | 1,)) + secret[1:]
    assert KeyPair.from_private_bytes(same).public == session.advertised[41].mask_key
    for holder, good in session.reveals.items():
        session.reveals[holder] = signed(session, good, key_shares={41: int.from_bytes(same, "big")})
    with pytest.raises(CorruptShareError, match="client 41"):
        session.finish()


def test_a_wrong_commitment_is_detected(session: Any) -> None:
    session.run_to(Stage.SHARE_KEYS)
    session.shared[7] = signed(session, session.shared[7], commitment=bytes(32))
    for i, inbox in session.step(session.shared).items():
        session.clients[i].receive(inbox)
    session.masked = {i: client.contribute(session.inputs[i]) for i, client in session.clients.items()}
    session.survivor_list = next(iter(session.step(session.masked).values()))
    session.requests = session.step(session.sign().signed)
    with pytest.raises(CorruptShareError, match="client 7: no 3 shares give the self-mask seed"):
        session.reveal().finish()


def test_without_the_commitment_the_corruption_would_pass(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Why the commitment is there: a field element within range is no sign that the shares were right.
    session.run_to(Stage.UNMASK).reveal()
    corrupt(session, 3, "seed_shares", 7, 1)
    monkeypatch.setattr("privfed.secagg.server.matches", lambda expected, actual: True)
    assert (session.finish() != session.expected()).any()


# In another's name ---------------------------------------------------------------------------------------------


def test_messages_in_anothers_name_are_refused_at_every_stage(session: Any, refused: Refused) -> None:
    # Client 41 sends what client 3 would, signed and tagged as well as it can.
    def forged(message: Any) -> Any:
        if isinstance(message, AdvertiseKeys):
            return session.clients[41]._sign(replace(message, signature=b""))
        return tagged(key, message)

    session.run_to(Stage.ADVERTISE_KEYS)
    match = "does not carry its (signature|tag)"
    refused(session.server, forged(session.advertised[3]), SignatureRefusedError, match, 3)
    session.rosters = session.step(session.advertised)
    session.shared = {i: session.clients[i].receive(message)[0] for i, message in session.rosters.items()}
    key = session.clients[41]._tag_key
    refused(session.server, forged(session.shared[3]), SignatureRefusedError, match, 3)
    for i, inbox in session.step(session.shared).items():
        session.clients[i].receive(inbox)
    session.masked = {i: client.contribute(session.inputs[i]) for i, client in session.clients.items()}
    refused(session.server, forged(session.masked[3]), SignatureRefusedError, match, 3)
    session.survivor_list = next(iter(session.step(session.masked).values()))
    session.requests = session.step(session.sign().signed)
    session.reveal()
    refused(session.server, forged(session.reveals[3]), SignatureRefusedError, match, 3)
    assert (session.finish() == session.expected()).all()


def test_strangers_have_no_part(session: Any, refused: Refused) -> None:
    session.run_to(Stage.ADVERTISE_KEYS)
    stranger = replace(session.advertised[3], sender=99)
    refused(session.server, stranger, UnexpectedSenderError, "has no part in stage ADVERTISE_KEYS", 99)
