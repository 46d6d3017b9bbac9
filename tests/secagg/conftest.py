"""A session that a test walks through stage by stage, and looks into."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from privfed.secagg import Client, SecAggParams, Server, Stage, majority
from privfed.secagg.messages import Inbox, MaskedInput, Roster, ShareKeys, UnmaskRequest, UnmaskShares


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
        self, ids: Iterable[int] = (3, 7, 20, 41), threshold: int | None = None, dimension: int = 5
    ) -> None:
        ids = tuple(ids)
        self.params = SecAggParams(secrets.token_bytes(16), 9, ids, threshold or majority(len(ids)), dimension)
        self.server = Server(self.params)
        self.clients = {i: Client(self.params, i) for i in ids}
        rng = np.random.default_rng(5)
        self.inputs = {i: rng.integers(0, 2**32, dimension, dtype=np.uint32) for i in ids}
        self.roster = Roster(())
        self.shared: dict[int, ShareKeys] = {}
        self.inboxes: dict[int, Inbox] = {}
        self.masked: dict[int, MaskedInput] = {}
        self.request = UnmaskRequest((), ())
        self.reveals: dict[int, UnmaskShares] = {}

    def run_to(self, stage: Stage, gone: Iterable[int] = ()) -> Session:
        """Play everything before ``stage``'s answers reach the server; ``gone`` share keys and then vanish."""
        gone = set(gone)
        for client in self.clients.values():
            message = client.start()
            if stage > Stage.ADVERTISE_KEYS:
                self.server.receive(message)
        if stage is Stage.ADVERTISE_KEYS:
            return self
        rosters = self.server.close_stage()
        self.roster = next(iter(rosters.values()))
        self.shared = {i: self.clients[i].receive(message)[0] for i, message in rosters.items()}
        if stage is Stage.SHARE_KEYS:
            return self
        for message in self.shared.values():
            self.server.receive(message)
        self.inboxes = self.server.close_stage()
        if stage is Stage.MASKED_INPUT:
            return self
        for i in self.clients.keys() - gone:
            self.clients[i].receive(self.inboxes[i])
            self.masked[i] = self.clients[i].contribute(self.inputs[i])
            self.server.receive(self.masked[i])
        requests = self.server.close_stage()
        self.request = next(iter(requests.values()))
        return self

    def reveal(self) -> Session:
        """Have every survivor answer the unmasking request; the server has not seen the answers."""
        for i in self.request.survivors:
            self.reveals[i] = self.clients[i].receive(self.request)[0]
        return self

    def finish(self) -> np.ndarray:
        """Hand over the answers and return the total."""
        for message in self.reveals.values():
            self.server.receive(message)
        self.server.close_stage()
        return self.server.total

    def expected(self) -> np.ndarray:
        """Sum of the survivors' inputs, added up by this test."""
        return sum((self.inputs[i] for i in self.request.survivors), np.zeros(self.params.dimension, np.uint32))


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def make_session() -> Callable[..., Session]:
    return Session


@pytest.fixture
def picture() -> Callable[[Client | Server], dict[str, Any]]:
    return snapshot
