"""The transition table, exhaustively: what is not in it raises, names itself and changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from privfed.secagg import (
    Client,
    ClientState,
    Directory,
    Identity,
    SecAggParams,
    Server,
    ServerState,
    Stage,
    Step,
    arrives,
    majority,
)
from privfed.secagg.errors import (
    DuplicateMessageError,
    IllegalEventError,
    InputError,
    ParameterError,
    RoundAborted,
    UnexpectedMessageError,
    UnexpectedSenderError,
)
from privfed.secagg.messages import (
    AdvertiseKeys,
    ConsistencySignature,
    Inbox,
    MaskedInput,
    Message,
    Roster,
    ShareKeys,
    SurvivorList,
    UnmaskRequest,
    UnmaskShares,
)
from privfed.secagg.ring import RingVector
from privfed.secagg.states import TRANSITIONS

TO_CLIENT: list[Message] = [Roster(3, b"", b"", (), ()), Inbox(3, {}), SurvivorList(()), UnmaskRequest(3, {}, {})]
TO_SERVER: list[Message] = [
    AdvertiseKeys(3, b"", b"", b""),
    ShareKeys(3, b"", {}),
    MaskedInput(3, RingVector(32, np.zeros(1, np.uint32)), {}),
    ConsistencySignature(3),
    UnmaskShares(3, {}, {}),
]
VECTOR = np.zeros(5, np.uint32)


def illegal(states: Iterable[Any], events: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Every pair of state and event that the table leaves out."""
    pairs = itertools.product(states, events)
    return [(s, e) for s, e in pairs if (s, e if isinstance(e, Step) else type(e)) not in TRANSITIONS]


def named(value: Any) -> str:
    return value.name if isinstance(value, ClientState | ServerState | Step) else type(value).__name__


Picture = Callable[[Client | Server], dict[str, Any]]


def client_in(state: ClientState, session: Any) -> Client:
    """Client 3 after honest steps up to ``state``."""
    client: Client = session.clients[3]
    if state in (ClientState.IDLE, ClientState.ABORTED):
        if state is ClientState.ABORTED:
            client.abort()
        return client
    session.run_to(
        {
            ClientState.ADVERTISED: Stage.ADVERTISE_KEYS,
            ClientState.SHARED: Stage.SHARE_KEYS,
            ClientState.READY: Stage.MASKED_INPUT,
            ClientState.MASKED: Stage.CONSISTENCY,
        }.get(state, Stage.UNMASK)
    )
    if state is ClientState.DONE:
        session.reveal()
    return session.clients[3]


def server_in(state: ServerState, session: Any) -> Server:
    """Server after honest steps up to ``state``."""
    if state is ServerState.ABORTED:
        with pytest.raises(RoundAborted):
            session.server.close_stage()
        return session.server
    stages = list(ServerState)[:5]
    session.run_to(Stage(stages.index(state)) if state in stages else Stage.UNMASK)
    if state is ServerState.DONE:
        session.reveal().finish()
    return session.server


@pytest.mark.parametrize(("state", "message"), illegal(ClientState, TO_CLIENT + TO_SERVER), ids=named)
def test_client_refuses_messages_out_of_order(
    state: ClientState, message: Any, session: Any, picture: Picture
) -> None:
    client = client_in(state, session)
    assert client.state is state
    before = picture(client)
    with pytest.raises(
        UnexpectedMessageError, match=f"server: {type(message).__name__} is not taken in state"
    ) as e:
        client.receive(message)
    assert e.value.offender is None
    assert picture(client) == before


@pytest.mark.parametrize(
    ("state", "step"), illegal(ClientState, [Step.START, Step.CONTRIBUTE, Step.ABORT]), ids=named
)
def test_client_refuses_steps_out_of_order(state: ClientState, step: Step, session: Any, picture: Picture) -> None:
    client = client_in(state, session)
    before = picture(client)
    with pytest.raises(IllegalEventError, match=f"cannot {step.value} in state {state.name}"):
        {Step.START: client.start, Step.CONTRIBUTE: lambda: client.contribute(VECTOR), Step.ABORT: client.abort}[
            step
        ]()
    assert picture(client) == before


@pytest.mark.parametrize(("state", "message"), illegal(ServerState, TO_SERVER), ids=named)
def test_server_refuses_messages_out_of_order(
    state: ServerState, message: Any, session: Any, picture: Picture
) -> None:
    server = server_in(state, session)
    assert server.state is state
    before = picture(server)
    with pytest.raises(UnexpectedMessageError, match=r"client 3: .* is not taken in state") as e:
        server.receive(message)
    assert e.value.offender == 3
    assert picture(server) == before


@pytest.mark.parametrize("state", [ServerState.DONE, ServerState.ABORTED])
def test_a_finished_server_closes_no_stage(state: ServerState, session: Any, picture: Picture) -> None:
    server = server_in(state, session)
    before = picture(server)
    with pytest.raises(IllegalEventError, match="every round needs a new one"):
        server.close_stage()
    assert server.waiting_for == ()
    assert picture(server) == before


@pytest.mark.parametrize("state", [s for s in ServerState if s is not ServerState.DONE])
def test_there_is_no_sum_before_the_end(state: ServerState, session: Any) -> None:
    server = server_in(state, session)
    with pytest.raises(IllegalEventError, match="no sum in state"):
        _ = server.total
    with pytest.raises(IllegalEventError, match="no sum in state"):
        _ = server.survivors


@pytest.mark.parametrize("stage", Stage)
def test_server_knows_whom_it_waits_for_and_takes_one_message_each(
    stage: Stage, session: Any, picture: Picture
) -> None:
    session.run_to(stage)
    first = {
        Stage.ADVERTISE_KEYS: lambda: session.advertised[3],
        Stage.SHARE_KEYS: lambda: session.shared[3],
        Stage.MASKED_INPUT: lambda: session.clients[3].contribute(VECTOR),
        Stage.CONSISTENCY: lambda: session.sign().signed[3],
        Stage.UNMASK: lambda: session.reveal().reveals[3],
    }[stage]()
    assert session.server.waiting_for == (3, 7, 20, 41)
    session.server.receive(first)
    assert session.server.waiting_for == (7, 20, 41)
    before = picture(session.server)
    with pytest.raises(DuplicateMessageError, match="client 3: sent a second"):
        session.server.receive(first)
    assert picture(session.server) == before


def test_strangers_and_the_vanished_are_refused(session: Any, picture: Picture) -> None:
    with pytest.raises(UnexpectedSenderError, match="client 4: has no part in stage ADVERTISE_KEYS"):
        session.server.receive(AdvertiseKeys(4, b"a" * 32, b"b" * 32, bytes(32)))
    session.run_to(Stage.UNMASK, gone=[20])
    before = picture(session.server)
    with pytest.raises(UnexpectedSenderError, match="client 20: has no part in stage UNMASK"):
        session.server.receive(UnmaskShares(20, {}, {}))
    assert picture(session.server) == before
    assert (session.reveal().finish() == session.expected()).all()


def test_a_refused_input_leaves_the_client_ready(session: Any, picture: Picture) -> None:
    client = client_in(ClientState.READY, session)
    before = picture(client)
    for wrong in (
        np.zeros(4, np.uint32),
        np.zeros(5, np.uint64),
        np.zeros(5),
        np.zeros((5, 1), np.uint32),
        [0] * 5,
    ):
        with pytest.raises(InputError, match="input vector: must be uint32 of shape"):
            client.contribute(wrong)
    assert picture(client) == before
    client.contribute(VECTOR)


def test_contributing_does_not_touch_the_input_and_forgets_the_secrets(session: Any) -> None:
    client = client_in(ClientState.READY, session)
    vector = np.arange(5, dtype=np.uint32)
    masked = client.contribute(vector)
    assert (vector == np.arange(5)).all()
    assert not masked.vector.values.flags.writeable
    assert not {"_seed", "_mask_pair", "_channel_pair"} & vars(client).keys()


def test_after_its_last_message_a_client_holds_no_secret(session: Any) -> None:
    session.run_to(Stage.UNMASK, gone=[41]).reveal()
    for client in (session.clients[i] for i in (3, 7, 20)):
        assert client.state is ClientState.DONE
        assert not {"_seed", "_mask_pair", "_channel_pair"} & vars(client).keys()
        assert not client._tag_key
        for name in ("_held", "_inbound_keys", "_peer_tokens"):
            assert vars(client)[name] == {}
    session.finish()
    assert session.server._secrets == session.server._tag_keys == {}
    assert not any(answer.seed_shares or answer.key_shares for answer in session.server._reveals.values())


def test_a_server_that_gives_up_has_no_sum_and_takes_nothing(session: Any) -> None:
    session.run_to(Stage.UNMASK).reveal()
    session.server.receive(session.reveals[3])
    session.server.abort()
    assert session.server.state is ServerState.ABORTED
    assert session.server._reveals == session.server._secrets == session.server._tag_keys == {}
    with pytest.raises(IllegalEventError, match="no sum in state ABORTED"):
        _ = session.server.total
    with pytest.raises(UnexpectedMessageError, match="not taken in state ABORTED"):
        session.server.receive(session.reveals[7])
    with pytest.raises(IllegalEventError, match="the session is over"):
        session.server.abort()


def test_messages_cannot_be_altered(session: Any) -> None:
    session.run_to(Stage.UNMASK)
    with pytest.raises(AttributeError):
        session.rosters[3].entries = ()
    with pytest.raises(TypeError):
        session.shared[3].sealed[7] = b""
    with pytest.raises(ValueError, match="read-only"):
        session.masked[3].vector.values[0] = 0


def test_secrets_do_not_show(session: Any) -> None:
    client = session.clients[3]
    seed, private = client._seed, client._mask_pair.private_bytes()
    shown = repr(client) + repr(client._mask_pair) + repr(vars(client)["_mask_pair"])
    assert "redacted" in repr(client)
    assert "redacted" in repr(client._mask_pair)
    assert private.hex() not in shown
    assert seed.hex() not in shown
    session.run_to(Stage.UNMASK, gone=[20]).reveal()
    answer = session.reveals[3]
    numbers = [*answer.seed_shares.values(), *answer.key_shares.values()]
    assert numbers
    assert not any(str(number) in repr(answer) + repr(session.server) for number in numbers)


def test_who_is_in_the_sum() -> None:
    assert [arrives(stage) for stage in (None, *Stage)] == [False, False, False, True, True, True]
    assert [majority(n) for n in (1, 2, 3, 4, 5)] == [2, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session": b"short"}, "session: must be 16 to 64 bytes"),
        ({"session": "x" * 16}, "session: must be 16 to 64 bytes"),
        ({"round_number": -1}, "round_number"),
        ({"client_ids": (1, 1, 2)}, "strictly ascending"),
        ({"client_ids": (2, 1, 3)}, "strictly ascending"),
        ({"client_ids": (-1, 1, 2)}, "client_ids: must be in"),
        ({"client_ids": (1, 2, 2**64)}, "client_ids: must be in"),
        ({"client_ids": ()}, "threshold: 2 is more than the 0 clients"),
        ({"threshold": 1}, "threshold: must be at least 2 and above half"),
        ({"threshold": 4}, "threshold: 4 is more than the 3 clients"),
        ({"degree": 3}, "degree: must be even"),
        ({"degree": 0}, "degree: must be even"),
        ({"client_ids": tuple(range(9)), "degree": 4}, "above half of the 5 clients.*Use 3 or more"),
        ({"client_ids": tuple(range(9)), "degree": 4, "threshold": 6}, "6 is more than the 5 clients"),
        ({"client_ids": (1, 2, 3, 4), "threshold": 2}, "above half of the 4 clients.*Use 3 or more"),
        ({"dimension": 0}, "dimension"),
        ({"ring_bits": 7}, "ring_bits: must be from 8 to 64"),
        ({"ring_bits": 65}, "ring_bits: must be from 8 to 64"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "session": bytes(16),
        "round_number": 0,
        "client_ids": (1, 2, 3),
        "threshold": 2,
        "dimension": 4,
    }
    SecAggParams(**good)
    with pytest.raises(ParameterError, match=message):
        SecAggParams(**{**good, **change})


def test_a_client_outside_of_the_session_is_refused(session: Any) -> None:
    session.identities[4] = Identity.generate()
    with pytest.raises(ParameterError, match="client_id: 4 is not among"):
        session.client(4)


def test_identities_and_directories_that_do_not_fit_are_refused(session: Any) -> None:
    with pytest.raises(ParameterError, match="another key of client 3"):
        session.client(3, identity=Identity.generate())
    with pytest.raises(ParameterError, match="no key of client 41"):
        Server(session.params, Directory({i: session.directory[i] for i in (3, 7, 20)}))
    with pytest.raises(ParameterError, match="clients 3 and 7 have one key"):
        Directory({3: session.directory[3], 7: session.directory[3]})
    with pytest.raises(ParameterError, match="client 3's key must be 32 bytes"):
        Directory({3: b"short"})
    assert len(session.directory) == 4
    assert sorted(session.directory) == [3, 7, 20, 41]
    assert "4 clients" in repr(session.directory)
    assert not session.directory.verify(99, bytes(64), b"")


@pytest.mark.parametrize("state", [s for s in ClientState if s not in (ClientState.DONE, ClientState.ABORTED)])
def test_a_client_that_aborts_has_forgotten_everything(state: ClientState, session: Any) -> None:
    client = client_in(state, session)
    client.abort()
    assert client.state is ClientState.ABORTED
    assert not {"_seed", "_mask_pair", "_channel_pair"} & vars(client).keys()
    assert not client._held
    assert not client._inbound_keys
