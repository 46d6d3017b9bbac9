"""The server's half of the protocol, without input or output: messages in, messages out.

It checks all that it passes on, since clients hold it to account for whatever comes from it unsigned or wrong.
Who sent a message is the transport's word until the signature or tag on it is verified, which is always at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import merkle, ring, wire
from privfed.secagg.errors import (
    CorruptShareError,
    DuplicateMessageError,
    IllegalEventError,
    InconsistentModelError,
    InconsistentSurvivorsError,
    KeyRefusedError,
    MalformedMessageError,
    ParameterError,
    RoundAborted,
    SignatureRefusedError,
    UnexpectedSenderError,
)
from privfed.secagg.graph import Graph
from privfed.secagg.identities import Directory
from privfed.secagg.keys import (
    KeyPair,
    Scope,
    commit_to_model,
    commit_to_seed,
    matches,
    message_to_sign,
    pair_mask_key,
    self_mask_key,
    survivors_to_sign,
    tag_key,
    tag_of,
)
from privfed.secagg.messages import (
    AdvertiseKeys,
    ConsistencySignature,
    Inbox,
    MaskedInput,
    Roster,
    ShareKeys,
    SurvivorList,
    ToClient,
    ToServer,
    UnmaskRequest,
    UnmaskShares,
)
from privfed.secagg.params import SecAggParams
from privfed.secagg.prg import apply_masks
from privfed.secagg.states import ServerState, Stage, State, Step, after_message, after_step
from privfed.secagg.unmasking import SecretRecovery

_STAGES: Mapping[State, Stage] = {
    ServerState.COLLECTING_KEYS: Stage.ADVERTISE_KEYS,
    ServerState.COLLECTING_SHARES: Stage.SHARE_KEYS,
    ServerState.COLLECTING_INPUTS: Stage.MASKED_INPUT,
    ServerState.COLLECTING_SIGNATURES: Stage.CONSISTENCY,
    ServerState.COLLECTING_REVEALS: Stage.UNMASK,
}


class Server:
    """The server in one session: Bonawitz et al. 2017, figure 4, malicious setting, on Bell et al. 2020's graph.

    In each stage: ``receive`` what comes, then ``close_stage`` when everybody answered or time is up. Whoever did
    not answer is out. A message that the state does not allow, or that fails a check, raises and changes nothing.

    Args:
        params: The session.
        directory: Who is who.
        model: The model that the clients were given for the round, as bytes.
        workers: Most threads to unmask with.

    Raises:
        ParameterError: A client of the session is not in the directory.
    """

    def __init__(
        self, params: SecAggParams, directory: Directory, *, model: bytes = b"", workers: int = 1
    ) -> None:
        if missing := [client for client in params.client_ids if client not in directory]:
            raise ParameterError(f"directory: has no key of client {missing[0]}, which is in the session")
        self.params, self.workers = params, workers
        self._directory = directory
        self._state: State = ServerState.COLLECTING_KEYS
        self._scope = Scope(params)
        self._model_digest = commit_to_model(self._scope, model)
        self._keys: dict[int, AdvertiseKeys] = {}
        self._neighbours: dict[int, frozenset[int]] = {}  # of those that advertised, among those that did
        self._shares: dict[int, ShareKeys] = {}
        self._used_keys: set[bytes] = set()
        self._contributors: set[int] = set()
        self._included: dict[int, Mapping[int, bytes]] = {}
        self._statement = b""  # what the survivors are to sign
        self._signatures: dict[int, bytes] = {}
        self._reveals: dict[int, UnmaskShares] = {}
        self._total: NDArray[Any] = np.zeros(params.dimension, dtype=params.dtype)
        self._pair = KeyPair.generate()
        self._secrets: dict[int, bytes] = {}  # by client: of its channel key and this pair
        self._tag_keys: dict[int, bytes] = {}

    @property
    def state(self) -> State:
        """Where the server stands."""
        return self._state

    @property
    def waiting_for(self) -> tuple[int, ...]:
        """Clients, ascending, whose message of the present stage has not come."""
        expected, arrived = self._expected_and_arrived()
        return tuple(sorted(expected - arrived))

    @property
    def survivors(self) -> tuple[int, ...]:
        """Clients in the sum, ascending.

        Raises:
            IllegalEventError: The session has not reached its end.
        """
        self._require_done()
        return tuple(sorted(self._contributors))

    @property
    def total(self) -> NDArray[Any]:
        """Sum of the survivors' inputs modulo the ring, ``[dimension]``.

        Raises:
            IllegalEventError: The session has not reached its end.
        """
        self._require_done()
        return self._total.copy()

    def __repr__(self) -> str:
        return f"Server(state={self._state.name}, clients={len(self.params.client_ids)})"

    def receive(self, message: ToServer) -> list[ToClient]:
        """Take a client's message; what to answer at once, which is nothing: answers are those of ``close_stage``.

        Who closes a stage, by a deadline or when ``waiting_for`` is empty, is not for a machine without a clock.

        Raises:
            RemoteError: The message is out of order or fails a check; see its subclasses.
        """
        following = after_message(self._state, message, offender=message.sender)
        expected, arrived = self._expected_and_arrived()
        if message.sender not in expected:
            raise UnexpectedSenderError(
                f"has no part in stage {_STAGES[self._state].name}", offender=message.sender
            )
        if message.sender in arrived:
            raise DuplicateMessageError(f"sent a second {type(message).__name__}", offender=message.sender)
        wire.check_form(message, peer=message.sender)
        if isinstance(message, AdvertiseKeys):
            self._take_keys(message)
        elif isinstance(message, ShareKeys):
            self._take_shares(message)
        elif isinstance(message, MaskedInput):
            self._take_input(message)
        elif isinstance(message, ConsistencySignature):
            self._take_signature(message)
        else:
            self._take_reveal(message)
        self._state = following
        return []

    def close_stage(self) -> dict[int, ToClient]:
        """End the stage with whoever answered; returns the next message of each client still in, if there is one.

        Raises:
            IllegalEventError: The session is over.
            RoundAborted: Some secret has fewer holders left than the threshold; the session is over and no secret
                was put together.
            CorruptShareError: Revealed shares are wrong; the session is over and no mask was taken off.
        """
        following = after_step(self._state, Step.CLOSE_STAGE)
        stage, (_, arrived) = _STAGES[self._state], self._expected_and_arrived()
        outgoing: dict[int, ToClient] = {}
        if stage is Stage.ADVERTISE_KEYS:
            outgoing = self._rosters()
        self._check_holders(stage, arrived)
        if stage is Stage.SHARE_KEYS:
            outgoing = {client: self._inbox(client) for client in self._shares}
        elif stage is Stage.MASKED_INPUT:
            survivors = tuple(sorted(self._contributors))
            self._statement = survivors_to_sign(self._scope, self._model_digest, survivors)
            outgoing = dict.fromkeys(survivors, SurvivorList(survivors))
        elif stage is Stage.CONSISTENCY:
            outgoing = {client: self._request(client) for client in self._signatures}
        elif stage is Stage.UNMASK:
            try:
                self._unmask()
            except CorruptShareError:
                self.abort()
                raise
        self._state = following
        return outgoing

    def abort(self) -> None:
        """Give up, whatever the reason: there is no sum, and what came for it is forgotten.

        Raises:
            IllegalEventError: The session is over.
        """
        self._state = after_step(self._state, Step.ABORT)
        self._secrets, self._tag_keys, self._reveals = {}, {}, {}
        self._total = np.zeros_like(self._total)

    def _rosters(self) -> dict[int, ToClient]:
        """Draw the graph, and tell every client that advertised what its neighbours did."""
        entries, ids = self._keys, self.params.client_ids
        leaves = [merkle.leaf(wire.encode(entries[i])) if i in entries else merkle.ABSENT for i in ids]
        tree = merkle.Tree(leaves)
        graph = Graph(self.params, tree.root)
        top = merkle.top(tree.root, self._pair.public)
        self._scope = Scope(self.params, top)
        self._tag_keys = {client: tag_key(self._scope, secret, client) for client, secret in self._secrets.items()}
        self._secrets = {}
        rosters: dict[int, ToClient] = {}
        for client in sorted(entries):
            around = [neighbour for neighbour in graph.neighbours(client) if neighbour in entries]
            self._neighbours[client] = frozenset(around)
            path = tree.path(self.params.points[client] - 1)
            known = tuple(entries[neighbour] for neighbour in around)
            rosters[client] = Roster(client, top, self._pair.public, path, known)
        return rosters

    def _check_holders(self, stage: Stage, arrived: Set[int]) -> None:
        """Abort unless every secret that will be needed has enough holders among ``arrived``."""
        owners: Iterable[int] = arrived
        if stage >= Stage.MASKED_INPUT:
            owners = self._shares
        left = len(arrived)
        if self.params.neighbours < len(self.params.client_ids) - 1:
            # In a complete graph every holder holds everything, and the fewest are all of them.
            left = min((len(self._holders(owner, arrived)) for owner in owners), default=left)
        if left < self.params.threshold:
            self.abort()
            raise RoundAborted(stage, left, self.params.threshold)

    def _holders(self, owner: int, among: Set[int]) -> Set[int]:
        """Those of ``among`` that hold shares of ``owner``'s secrets."""
        return (self._neighbours[owner] | {owner}) & among

    def _expected_and_arrived(self) -> tuple[Set[int], Set[int]]:
        if self._state not in _STAGES:
            return set(), set()
        # Each stage takes messages from those who answered in the one before.
        chain: tuple[Set[int], ...] = (
            self.params.points.keys(),
            self._keys.keys(),
            self._shares.keys(),
            self._contributors,
            self._signatures.keys(),
            self._reveals.keys(),
        )
        stage = _STAGES[self._state]
        return chain[stage], chain[stage + 1]

    def _dropped(self) -> Set[int]:
        return self._shares.keys() - self._contributors

    def _check_tag(self, message: ShareKeys | MaskedInput | UnmaskShares) -> None:
        key = self._tag_keys[message.sender]
        if not matches(message.tag, tag_of(key, wire.kind_of(message), wire.authenticated(message))):
            raise SignatureRefusedError(
                f"{type(message).__name__} does not carry its tag for this session", offender=message.sender
            )

    def _take_keys(self, message: AdvertiseKeys) -> None:
        content = message_to_sign(self._scope, wire.digest_to_sign(message), message.sender)
        if not self._directory.verify(message.sender, message.signature, content):
            raise SignatureRefusedError(
                "AdvertiseKeys does not carry its signature for this session", offender=message.sender
            )
        if not matches(self._model_digest, message.model_digest):
            raise InconsistentModelError("holds another model than this round's", offender=message.sender)
        advertised = (message.mask_key, message.channel_key)
        if message.mask_key == message.channel_key or not self._used_keys.isdisjoint(advertised):
            raise KeyRefusedError("advertises a key that is in use already", offender=message.sender)
        # Both exchanges find a key of low order before it reaches the clients.
        self._pair.exchange(message.mask_key, owner=message.sender)
        self._secrets[message.sender] = self._pair.exchange(message.channel_key, owner=message.sender)
        self._used_keys.update(advertised)
        self._keys[message.sender] = message

    def _take_shares(self, message: ShareKeys) -> None:
        if message.sealed.keys() != self._neighbours[message.sender]:
            raise MalformedMessageError(
                "shares must be for every other client of its roster", offender=message.sender
            )
        self._check_tag(message)
        self._shares[message.sender] = message

    def _take_input(self, message: MaskedInput) -> None:
        vector, params = message.vector, self.params
        if vector.bits != params.ring_bits or vector.length != params.dimension:
            raise MalformedMessageError(
                f"input vector must be of {params.dimension} elements of {params.ring_bits} bits "
                f"(got {vector.length} of {vector.bits})",
                offender=message.sender,
            )
        if message.included.keys() != self._neighbours[message.sender] & self._shares.keys():
            raise MalformedMessageError(
                "masked input must come with a token for every neighbour that shared", offender=message.sender
            )
        self._check_tag(message)
        self._included[message.sender] = message.included
        vector.add_to(self._total)
        self._contributors.add(message.sender)

    def _take_signature(self, message: ConsistencySignature) -> None:
        if not self._directory.verify(message.sender, message.signature, self._statement):
            raise InconsistentSurvivorsError(
                "did not sign the roster, model and survivor list that it was sent", offender=message.sender
            )
        self._signatures[message.sender] = message.signature

    def _take_reveal(self, message: UnmaskShares) -> None:
        held = self._holders(message.sender, self._shares.keys())  # to hold a secret's share is mutual
        if (
            message.seed_shares.keys() != held & self._contributors
            or message.key_shares.keys() != held - self._contributors
        ):
            raise MalformedMessageError(
                "revealed shares are not the ones that were asked for", offender=message.sender
            )
        self._check_tag(message)
        self._reveals[message.sender] = message

    def _inbox(self, recipient: int) -> Inbox:
        senders = (self._shares[i] for i in sorted(self._neighbours[recipient]) if i in self._shares)
        return Inbox(recipient, {share.sender: share.sealed[recipient] for share in senders})

    def _request(self, recipient: int) -> UnmaskRequest:
        around = sorted(self._neighbours[recipient] & self._contributors)
        return UnmaskRequest(
            recipient,
            {neighbour: self._signatures[neighbour] for neighbour in around if neighbour in self._signatures},
            {neighbour: self._included[neighbour][recipient] for neighbour in around},
        )

    def _unmask(self) -> None:
        recovery = SecretRecovery(self.params.points, self.params.threshold)
        added: list[bytes] = []
        subtracted = [
            self_mask_key(self._scope, self._recover_seed(owner, recovery), owner)
            for owner in sorted(self._contributors)
        ]
        for gone in sorted(self._dropped()):
            pair = self._recover_mask_pair(gone, recovery)
            for survivor in sorted(self._neighbours[gone] & self._contributors):
                key = pair_mask_key(self._scope, pair, gone, survivor, self._keys[survivor].mask_key)
                # What the survivor added is taken away, and the other way round.
                (subtracted if survivor < gone else added).append(key)
        apply_masks(self._total, added, subtracted, self.workers)
        ring.reduce(self._total, self.params.ring_bits)
        self._reveals = {client: UnmaskShares(client, {}, {}) for client in self._reveals}
        self._tag_keys = {}

    def _recover_seed(self, owner: int, recovery: SecretRecovery) -> bytes:
        holders = self._holders(owner, self._reveals.keys())
        commitment = self._shares[owner].commitment
        return recovery.recover(
            owner,
            {holder: self._reveals[holder].seed_shares[owner] for holder in holders},
            lambda seed: matches(commitment, commit_to_seed(self._scope, seed, owner)),
            "self-mask seed",
        )

    def _recover_mask_pair(self, owner: int, recovery: SecretRecovery) -> KeyPair:
        holders = self._holders(owner, self._reveals.keys())
        advertised = self._keys[owner].mask_key

        def is_right(secret: bytes) -> bool:
            pair = KeyPair.from_private_bytes(secret)
            # Of the private keys with this public one, only the clamped was shared.
            return matches(advertised, pair.public) and pair.private_bytes() == secret

        shares = {holder: self._reveals[holder].key_shares[owner] for holder in holders}
        private = recovery.recover(owner, shares, is_right, "mask key")
        return KeyPair.from_private_bytes(private)

    def _require_done(self) -> None:
        if self._state is not ServerState.DONE:
            raise IllegalEventError(f"no sum in state {self._state.name}: close every stage first")
