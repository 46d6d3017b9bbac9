"""A session that a test walks through stage by stage, and looks into."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterable, Mapping
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
    SessionsInMemory,
    Stage,
    majority,
)
from privfed.secagg.errors import IllegalEventError, UnexpectedMessageError
from privfed.secagg.messages import (
    AdvertiseKeys,
    ConsistencySignature,
    Inbox,
    MaskedInput,
    Roster,
    ShareKeys,
    SurvivorList,
    UnmaskRequest,
    UnmaskShares,
)


def snapshot(machine: Client | Server) -> dict[str, Any]:
    """What a client or server holds, so that nothing that it does later changes the picture."""

    def still(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        return type(value)(value) if isinstance(value, dict | set) else value

    return {name: still(value) for name, value in vars(machine).items()}


class Session:
    """One server and its clients; ``run_to`` plays honest stages, and keeps every message."""

    def __init__(
        self,
        ids: Iterable[int] = (3, 7, 20, 41),
        threshold: int | None = None,
        dimension: int = 5,
        degree: int | None = None,
        models: Mapping[int, bytes] | None = None,
    ) -> None:
        ids = tuple(ids)
        self.params = SecAggParams(
            secrets.token_bytes(16), 9, ids, threshold or majority(len(ids)), dimension, degree=degree
        )
        self.identities = {i: Identity.generate() for i in ids}
        self.directory = Directory({i: identity.public for i, identity in self.identities.items()})
        self.sessions = SessionsInMemory()
        self.models = dict(models or {})
        self.server = Server(self.params, self.directory, model=b"model")
        self.clients = {i: self.client(i) for i in ids}
        rng = np.random.default_rng(5)
        self.inputs = {i: rng.integers(0, 2**32, dimension, dtype=np.uint32) for i in ids}
        self.advertised: dict[int, AdvertiseKeys] = {}
        self.rosters: dict[int, Roster] = {}
        self.shared: dict[int, ShareKeys] = {}
        self.inboxes: dict[int, Inbox] = {}
        self.masked: dict[int, MaskedInput] = {}
        self.survivor_list = SurvivorList(())
        self.signed: dict[int, ConsistencySignature] = {}
        self.requests: dict[int, UnmaskRequest] = {}
        self.reveals: dict[int, UnmaskShares] = {}

    def client(self, client_id: int, params: SecAggParams | None = None, **changes: Any) -> Client:
        """Another client process of the same owner; ``run_to`` plays those of ``self.clients``."""
        given: dict[str, Any] = {
            "identity": self.identities[client_id],
            "directory": self.directory,
            "sessions": self.sessions,
            "model": self.models.get(client_id, b"model"),
        }
        return Client(params or self.params, client_id, **{**given, **changes})

    def run_to(self, stage: Stage, gone: Iterable[int] = ()) -> Session:
        """Play everything before ``stage``'s answers reach the server; ``gone`` share keys and then vanish."""
        gone = set(gone)
        self.advertised = {i: client.start() for i, client in self.clients.items()}
        if stage is Stage.ADVERTISE_KEYS:
            return self
        self.rosters = self.step(self.advertised)
        self.shared = {i: self.clients[i].receive(message)[0] for i, message in self.rosters.items()}
        if stage is Stage.SHARE_KEYS:
            return self
        self.inboxes = self.step(self.shared)
        for i in self.clients.keys() - gone:
            self.clients[i].receive(self.inboxes[i])
        if stage is Stage.MASKED_INPUT:
            return self
        self.masked = {i: self.clients[i].contribute(self.inputs[i]) for i in self.clients.keys() - gone}
        lists = self.step(self.masked)
        self.survivor_list = next(iter(lists.values()))
        if stage is Stage.CONSISTENCY:
            return self
        self.sign()
        self.requests = self.step(self.signed)
        return self

    def step(self, messages: Mapping[int, Any]) -> dict[int, Any]:
        """Hand ``messages`` to the server and close the stage."""
        for message in messages.values():
            self.server.receive(message)
        return self.server.close_stage()

    def sign(self) -> Session:
        """Have every survivor sign the list; the server has not seen the signatures."""
        survivors = self.survivor_list.survivors
        self.signed = {i: self.clients[i].receive(self.survivor_list)[0] for i in survivors}
        return self

    def reveal(self) -> Session:
        """Have every survivor answer the unmasking request; the server has not seen the answers."""
        self.reveals = {i: self.clients[i].receive(request)[0] for i, request in self.requests.items()}
        return self

    def finish(self) -> np.ndarray:
        """Hand over the answers and return the total."""
        self.step(self.reveals)
        return self.server.total

    def expected(self) -> np.ndarray:
        """Sum of the survivors' inputs, added up by this test."""
        kept = (self.inputs[i] for i in self.survivor_list.survivors)
        return sum(kept, np.zeros(self.params.dimension, np.uint32))


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def make_session() -> Callable[..., Session]:
    return Session


@pytest.fixture
def picture() -> Callable[[Client | Server], dict[str, Any]]:
    return snapshot


def _refused(
    machine: Any, message: Any, error: type[Exception], match: str, offender: int | None, deliver: Any = None
) -> None:
    before = snapshot(machine)
    with pytest.raises(error, match=match) as caught:
        (deliver or machine.receive)(message)
    assert caught.value.offender == offender
    assert snapshot(machine) == before
    gives_up(copy.copy(machine))
    assert snapshot(machine) == before


def gives_up(machine: Client | Server) -> None:
    """An abort after the refusal: it is over, nothing more is answered, and no secret is left to be revealed."""
    if machine.state is not ClientState.ABORTED:
        machine.abort()
    if isinstance(machine, Client):
        assert machine.state is ClientState.ABORTED
        assert not {"_seed", "_mask_pair", "_channel_pair"} & vars(machine).keys()
        assert not machine._held
        assert not machine._tag_key
        assert not machine._inbound_keys
        with pytest.raises(UnexpectedMessageError):
            machine.receive(SurvivorList(()))
    else:
        assert machine.state is ServerState.ABORTED
        assert not machine._reveals
        assert not machine._total.any()
        with pytest.raises(IllegalEventError):
            _ = machine.total


@pytest.fixture
def refused() -> Callable[..., None]:
    """``refused(machine, message, error, match, offender)``: by name, nothing has changed, an abort ends it."""
    return _refused
