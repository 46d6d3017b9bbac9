"""Any schedule of messages, repeats, losses and damage: the survivors' exact sum, or an abort; nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from privfed.secagg import (
    Client,
    ClientState,
    Directory,
    Identity,
    RemoteError,
    RoundAborted,
    SecAggParams,
    Server,
    ServerState,
    SessionsInMemory,
    decode,
    encode,
)
from privfed.secagg.errors import LocalError
from privfed.secagg.keys import KeyPair
from privfed.secagg.messages import MaskedInput, UnmaskShares

OVER = (ServerState.DONE, ServerState.ABORTED)
IDENTITIES = {i: Identity.from_private_bytes(bytes([i]) * 32) for i in range(8)}
DIRECTORY = Directory({i: identity.public for i, identity in IDENTITIES.items()})


def picture(machine: Any) -> dict[str, Any]:
    def still(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        return type(value)(value) if isinstance(value, dict | set) else value

    return {name: still(value) for name, value in vars(machine).items()}


class Rounds(RuleBasedStateMachine):
    """A post office that is late, forgetful, repetitive and clumsy, between an honest server and its clients."""

    @initialize(n=st.integers(2, 7), degree=st.sampled_from([None, None, 2, 4]), data=st.data())
    def begin(self, n: int, degree: int | None, data: st.DataObject) -> None:
        holders = n if degree is None else min(n, degree + 1)
        threshold = data.draw(st.integers(max(2, holders // 2 + 1), max(2, holders)))
        self.params = SecAggParams(bytes(16), 0, tuple(range(n)), threshold, 3, degree=degree)
        self.server = Server(self.params, DIRECTORY)
        sessions = SessionsInMemory()
        self.clients = {
            i: Client(self.params, i, identity=IDENTITIES[i], directory=DIRECTORY, sessions=sessions)
            for i in range(n)
        }
        for i, client in self.clients.items():
            # The graph is drawn from the advertised keys: the same again when an example is played again.
            client._mask_pair, client._channel_pair = (
                KeyPair.from_private_bytes(bytes([kind, i]) * 16) for kind in (1, 2)
            )
        self.inputs = {i: np.array([2**32 - 1 - i, i, 7 * i], np.uint32) for i in range(n)}
        self.sent: list[tuple[int, bytes]] = []  # all that clients ever sent, by whom
        self.waiting: list[tuple[int, bytes]] = []  # of these, what has not been delivered
        self.mail: list[tuple[int, bytes]] = []  # all that the server ever sent, to whom
        self.taken: set[int] = set()  # whose masked input the server took
        self.made: list[Any] = []
        self.gone: set[int] = set()

    def post(self, messages: Any) -> None:
        for message in messages:
            self.made.append(message)
            letter = (message.sender, encode(message))
            self.sent.append(letter)
            self.waiting.append(letter)

    def to_server(self, sender: int, data: bytes) -> None:
        before = picture(self.server)
        try:
            message = decode(data, peer=sender)
            self.server.receive(message)  # type: ignore[arg-type]
        except RemoteError as refusal:
            culprit = refusal.offender
            assert picture(self.server) == before
            assert culprit == sender
        else:
            if isinstance(message, MaskedInput):
                self.taken.add(sender)

    def to_client(self, recipient: int, data: bytes) -> None:
        client = self.clients[recipient]
        if recipient in self.gone:
            return
        before = picture(client)
        try:
            self.post(client.receive(decode(data, peer=None)))  # type: ignore[arg-type]
        except RemoteError:
            assert picture(client) == before
        else:
            if client.state is ClientState.READY:
                self.post([client.contribute(self.inputs[recipient])])

    # What may happen -------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def a_client_begins(self, data: st.DataObject) -> None:
        i = data.draw(st.sampled_from(sorted(self.clients)))
        if i in self.gone:
            return
        try:
            self.post([self.clients[i].start()])
        except LocalError:
            assert self.clients[i].state is not ClientState.IDLE

    @rule(data=st.data())
    def a_message_arrives_or_is_lost(self, data: st.DataObject) -> None:
        if not self.waiting:
            return
        letter = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if data.draw(st.integers(0, 9)):
            self.to_server(*letter)

    @rule(data=st.data(), as_whom=st.integers(0, 6))
    def an_old_message_arrives_again(self, data: st.DataObject, as_whom: int) -> None:
        if not self.sent:
            return
        sender, content = data.draw(st.sampled_from(self.sent))
        self.to_server(sender if as_whom % 2 else as_whom, content)

    @rule(data=st.data(), flip=st.integers(1, 255))
    def a_damaged_message_arrives(self, data: st.DataObject, flip: int) -> None:
        if not self.sent:
            return
        sender, content = data.draw(st.sampled_from(self.sent))
        at = data.draw(st.integers(0, len(content) - 1))
        self.to_server(sender, content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])

    @rule(data=st.data())
    def a_client_gets_any_mail(self, data: st.DataObject) -> None:
        if not self.mail:
            return
        recipient, content = data.draw(st.sampled_from(self.mail))
        if data.draw(st.booleans()):
            recipient = data.draw(st.sampled_from(sorted(self.clients)))
        self.to_client(recipient, content)

    @rule(data=st.data())
    def a_client_vanishes(self, data: st.DataObject) -> None:
        if len(self.gone) < len(self.clients) // 2:
            self.gone.add(data.draw(st.sampled_from(sorted(self.clients))))

    @rule(early=st.integers(0, 9))
    def a_stage_ends(self, early: int) -> None:
        present = set(self.params.client_ids) - set(self.server.waiting_for)
        if self.server.state not in OVER and len(present) < self.params.threshold and early:
            return  # most schedules would end here
        self.end_stage()

    def end_stage(self) -> None:
        if self.server.state in OVER:
            with pytest.raises(LocalError):
                self.server.close_stage()
            return
        try:
            answers = self.server.close_stage()
        except RoundAborted:
            assert self.server.state is ServerState.ABORTED
            return
        self.mail += [(recipient, encode(message)) for recipient, message in answers.items()]

    @rule()
    def a_stage_goes_well(self) -> None:
        """Everybody who is there begins or answers, all of it arrives, the stage ends, and so does its mail."""
        if self.server.state in OVER:
            return
        for i, client in self.clients.items():
            if client.state is ClientState.IDLE and i not in self.gone:
                self.post([client.start()])
        waiting, self.waiting = self.waiting, []
        for letter in waiting:
            self.to_server(*letter)
        known = len(self.mail)
        self.end_stage()
        for letter in self.mail[known:]:
            self.to_client(*letter)

    # What must hold --------------------------------------------------------------------------------------------

    @invariant()
    def the_sum_is_exact_or_there_is_none(self) -> None:
        if not hasattr(self, "server"):
            return
        if self.server.state is not ServerState.DONE:
            with pytest.raises(LocalError):
                self.server.total
            return
        assert self.server.survivors == tuple(sorted(self.taken))
        assert (self.server.total == sum((self.inputs[i] for i in self.taken), np.zeros(3, np.uint32))).all()

    @invariant()
    def nobody_masks_twice_and_no_owners_two_secrets_come_out(self) -> None:
        if not hasattr(self, "made"):
            return
        masked = Counter(message.sender for message in self.made if isinstance(message, MaskedInput))
        assert max(masked.values(), default=0) <= 1
        seeds: Counter[int] = Counter()
        keys: Counter[int] = Counter()
        for message in self.made:
            if isinstance(message, UnmaskShares):
                assert not message.seed_shares.keys() & message.key_shares.keys()
                seeds.update(message.seed_shares)
                keys.update(message.key_shares)
        for owner in seeds & keys:
            assert min(seeds[owner], keys[owner]) < self.params.threshold

    def teardown(self) -> None:
        if hasattr(self, "server"):
            event(f"ended {self.server.state.name}")


class TestRounds(Rounds.TestCase):
    settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


@pytest.mark.slow
class TestManyRounds(Rounds.TestCase):
    settings = settings(deadline=None, max_examples=1500, stateful_step_count=50)
