"""The client's half of the protocol, without input or output: messages in, messages out.

Trust: nobody but the directory of identities. The server may lie, replay, reorder and collude with clients, within
the numbers that ``SecAggParams`` were made for; what that leaves it is in ``docs/secure-aggregation.md``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from privfed.secagg import merkle, ring, shamir, wire
from privfed.secagg.errors import (
    InconsistentModelError,
    InconsistentSurvivorsError,
    KeyRefusedError,
    MalformedMessageError,
    ParameterError,
    SessionUsedError,
    SignatureRefusedError,
    UnmaskRefusedError,
)
from privfed.secagg.graph import Graph
from privfed.secagg.identities import Directory, Identity
from privfed.secagg.keys import (
    KeyPair,
    Scope,
    channel_key,
    commit_to_model,
    commit_to_seed,
    inclusion_token,
    matches,
    message_to_sign,
    pair_mask_key,
    seal,
    self_mask_key,
    survivors_to_sign,
    tag_key,
    tag_of,
    unseal,
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
from privfed.secagg.ring import RingVector
from privfed.secagg.sessions import UsedSessions
from privfed.secagg.states import ClientState, State, Step, after_message, after_step

_Tagged = TypeVar("_Tagged", ShareKeys, MaskedInput, UnmaskShares)


class Client:
    """One client in one session (Bonawitz et al. 2017, figure 4, malicious setting); never to be used again.

    ``start`` → ``receive(Roster)`` → ``receive(Inbox)`` → ``contribute(vector)`` → ``receive(SurvivorList)`` →
    ``receive(UnmaskRequest)``. An event that the state does not allow, or a message that fails a check, raises and
    changes nothing: the caller may wait for a better message, or ``abort``.

    Args:
        params: The session.
        client_id: One of ``params.client_ids``.
        identity: The client's signing key, the one that ``directory`` has of it.
        directory: Who is who; from anybody but the server.
        sessions: Which sessions this client has begun; must outlive the process where the client does.
        model: The model that this client was given for the round, as bytes: all must have been given the same.
        workers: Most threads to mask with.

    Raises:
        ParameterError: ``client_id`` has no part in the session, or the directory has another key of it.
    """

    def __init__(
        self,
        params: SecAggParams,
        client_id: int,
        *,
        identity: Identity,
        directory: Directory,
        sessions: UsedSessions,
        model: bytes = b"",
        workers: int = 1,
    ) -> None:
        if client_id not in params.points:
            raise ParameterError(
                f"client_id: {client_id} is not among the session's {len(params.client_ids)} clients"
            )
        if directory.get(client_id) != identity.public:
            raise ParameterError(f"identity: the directory has another key of client {client_id}, or none")
        self.params, self.client_id, self.workers = params, client_id, workers
        self._identity, self._directory, self._sessions = identity, directory, sessions
        self._state: State = ClientState.IDLE
        self._scope = Scope(params)
        self._model_digest = commit_to_model(self._scope, model)
        self._mask_pair, self._channel_pair = KeyPair.generate(), KeyPair.generate()
        self._seed = os.urandom(shamir.SECRET_BYTES)
        self._tag_key = b""
        self._advertisement: AdvertiseKeys | None = None
        self._peer_mask_keys: dict[int, bytes] = {}
        self._inbound_keys: dict[int, bytes] = {}
        self._own_tokens: dict[int, bytes] = {}  # by neighbour: that its mask is in this client's vector
        self._peer_tokens: dict[int, bytes] = {}  # by neighbour: that this client's mask is in its vector
        self._held: dict[int, tuple[int, int]] = {}  # by owner: share of its seed, share of its mask key
        self._survivors: frozenset[int] = frozenset()  # of those in _held
        self._statement = b""  # what this client signed about the survivors

    @property
    def state(self) -> State:
        """Where the client stands."""
        return self._state

    def __repr__(self) -> str:
        return f"Client(id={self.client_id}, state={self._state.name}, secrets=<redacted>)"

    def start(self) -> AdvertiseKeys:
        """Begin the session: the keys to advertise.

        Raises:
            IllegalEventError: The session has begun already.
            SessionUsedError: This client has begun the same session before, perhaps in another process.
        """
        following = after_step(self._state, Step.START)
        if not self._sessions.claim(self.client_id, self.params.session):
            raise SessionUsedError(
                f"session: client {self.client_id} has begun {self.params.session.hex()} before and will not mask "
                f"a second vector in it. Sit this session out"
            )
        keys = self._mask_pair.public, self._channel_pair.public
        self._advertisement = self._sign(AdvertiseKeys(self.client_id, *keys, self._model_digest))
        self._state = following
        return self._advertisement

    def receive(self, message: ToClient) -> list[ToServer]:
        """Take a message of the server; what to answer.

        Raises:
            RemoteError: The message is out of order or fails a check; see its subclasses.
        """
        following = after_message(self._state, message, offender=None)
        wire.check_form(message, peer=None)
        answer: list[ToServer] = []
        if isinstance(message, Roster):
            answer.append(self._share_keys(message))
        elif isinstance(message, Inbox):
            self._open(message)
        elif isinstance(message, SurvivorList):
            answer.append(self._sign_survivors(message))
        else:
            answer.append(self._reveal(message))
        self._state = following
        return answer

    def contribute(self, vector: NDArray[Any]) -> MaskedInput:
        """Mask the input, ``[dimension]`` in the ring's type and taken modulo it; possible once in a session.

        A second masked vector under the same masks would show the server the difference of the two inputs.

        Raises:
            IllegalEventError: Too early, or there was one already.
            InputError: Wrong type or shape.
            KeyRefusedError: A peer's mask key is unusable.
        """
        following = after_step(self._state, Step.CONTRIBUTE)
        self.params.check_vector(vector)
        added = [self_mask_key(self._scope, self._seed, self.client_id)]
        subtracted: list[bytes] = []
        for peer in self._held:
            if peer != self.client_id:
                public = self._peer_mask_keys[peer]
                key = pair_mask_key(self._scope, self._mask_pair, self.client_id, peer, public)
                (added if self.client_id < peer else subtracted).append(key)
        masked = vector.copy()
        apply_masks(masked, added, subtracted, self.workers)
        ring.reduce(masked, self.params.ring_bits)
        included = {peer: token for peer, token in self._own_tokens.items() if peer in self._held}
        message = self._tagged(MaskedInput(self.client_id, RingVector(self.params.ring_bits, masked), included))
        self._state = following
        # Whoever takes over the process from now on cannot strip the masks. Best effort: Python keeps copies.
        self._forget_keys()
        return message

    def abort(self) -> None:
        """Give up, whatever the reason, and forget everything: no share is revealed after this.

        Raises:
            IllegalEventError: The session is over.
        """
        self._state = after_step(self._state, Step.ABORT)
        self._forget_keys()
        self._peer_mask_keys, self._inbound_keys, self._own_tokens, self._peer_tokens = {}, {}, {}, {}
        self._held, self._tag_key = {}, b""

    def _forget_keys(self) -> None:
        for name in ("_mask_pair", "_channel_pair", "_seed"):
            vars(self).pop(name, None)

    def _tagged(self, message: _Tagged) -> _Tagged:
        tag = tag_of(self._tag_key, wire.kind_of(message), wire.authenticated(message))
        return replace(message, tag=tag)

    def _sign(self, message: AdvertiseKeys) -> AdvertiseKeys:
        content = message_to_sign(self._scope, wire.digest_to_sign(message), self.client_id)
        return replace(message, signature=self._identity.sign(content))

    def _share_keys(self, roster: Roster) -> ShareKeys:
        self._check_roster(roster)
        params, own, points = self.params, self.client_id, self.params.points
        scope = Scope(params, roster.top)
        at = [points[own], *(points[entry.sender] for entry in roster.entries)]
        seed_shares = shamir.split(self._seed, params.threshold, at)
        key_shares = shamir.split(self._mask_pair.private_bytes(), params.threshold, at)
        sealed, inbound, own_tokens, peer_tokens = {}, {}, {}, {}
        for entry, seed_share, key_share in zip(roster.entries, seed_shares[1:], key_shares[1:], strict=True):
            peer = entry.sender
            shared = self._channel_pair.exchange(entry.channel_key, owner=peer)
            inbound[peer] = channel_key(scope, shared, peer, own)
            own_tokens[peer] = inclusion_token(scope, shared, own, peer)
            peer_tokens[peer] = inclusion_token(scope, shared, peer, own)
            outbound = channel_key(scope, shared, own, peer)
            sealed[peer] = seal(scope, outbound, own, peer, seed_share, key_share)
        commitment = commit_to_seed(scope, self._seed, own)
        with_server = self._channel_pair.exchange(roster.server_key, owner=None)
        self._tag_key = tag_key(scope, with_server, own)
        self._scope = scope
        self._peer_mask_keys = {entry.sender: entry.mask_key for entry in roster.entries}
        self._inbound_keys, self._own_tokens, self._peer_tokens = inbound, own_tokens, peer_tokens
        self._held = {own: (seed_shares[0], key_shares[0])}
        return self._tagged(ShareKeys(own, commitment, sealed))

    def _check_roster(self, roster: Roster) -> None:
        params, own = self.params, self.client_id
        if roster.recipient != own:
            raise MalformedMessageError(f"roster of client {roster.recipient} came to client {own}", offender=None)
        advertisement = self._advertisement
        assert advertisement is not None
        place, size = params.points[own] - 1, len(params.client_ids)
        root = merkle.root_above(merkle.leaf(wire.encode(advertisement)), roster.path, place, size)
        if root is None or merkle.top(root, roster.server_key) != roster.top:
            raise KeyRefusedError(
                f"the top does not hold client {own}'s own keys as advertised, and the server's", offender=None
            )
        members = [entry.sender for entry in roster.entries]
        neighbours = Graph(params, root).neighbours(own)
        if members != sorted(set(members)) or not set(members) <= set(neighbours):
            raise MalformedMessageError(
                f"roster is not an ascending list of client {own}'s neighbours", offender=None
            )
        if len(members) + 1 < params.threshold:
            raise MalformedMessageError(
                f"roster has {len(members) + 1} clients, below the threshold {params.threshold}", offender=None
            )
        seen = {advertisement.mask_key, advertisement.channel_key}
        for entry in roster.entries:
            self._check_entry(entry)
            for key in (entry.mask_key, entry.channel_key):
                if key in seen:
                    raise KeyRefusedError("a public key stands twice in the roster", offender=entry.sender)
                seen.add(key)

    def _check_entry(self, entry: AdvertiseKeys) -> None:
        content = message_to_sign(self._scope, wire.digest_to_sign(entry), entry.sender)
        if not self._directory.verify(entry.sender, entry.signature, content):
            raise SignatureRefusedError(
                f"passes on keys that client {entry.sender} did not sign for this session", offender=None
            )
        # An honest server refuses who does not hold its model, so that this one told its clients different things.
        if not matches(self._model_digest, entry.model_digest):
            raise InconsistentModelError(
                f"clients {self.client_id} and {entry.sender} were given different models", offender=None
            )

    def _open(self, inbox: Inbox) -> None:
        own = self.client_id
        if inbox.recipient != own:
            raise MalformedMessageError(f"inbox of client {inbox.recipient} came to client {own}", offender=None)
        if not inbox.sealed.keys() <= self._inbound_keys.keys():
            raise MalformedMessageError("inbox has a sender that is not in the roster", offender=None)
        if len(inbox.sealed) + 1 < self.params.threshold:
            raise MalformedMessageError(
                f"{len(inbox.sealed) + 1} clients shared, below the threshold {self.params.threshold}",
                offender=None,
            )
        opened = {
            sender: unseal(self._scope, self._inbound_keys[sender], sender, own, sealed)
            for sender, sealed in inbox.sealed.items()
        }
        self._held |= opened
        self._inbound_keys = {}

    def _sign_survivors(self, message: SurvivorList) -> ConsistencySignature:
        survivors = set(message.survivors)
        if not survivors <= self.params.points.keys():
            raise MalformedMessageError("survivor list has a client that is not in the session", offender=None)
        if self.client_id not in survivors:
            raise UnmaskRefusedError(
                f"calls client {self.client_id} dropped, whose masked input was sent", offender=None
            )
        held = self._held.keys()
        if silent := sorted(survivors & (self._peer_mask_keys.keys() - held)):
            raise UnmaskRefusedError(
                f"calls client {silent[0]} a survivor, which did not share its keys with client {self.client_id}",
                offender=None,
            )
        if len(survivors & held) < self.params.threshold:
            raise UnmaskRefusedError(
                f"{len(survivors & held)} survivors among the holders of client {self.client_id}'s shares are "
                f"below the threshold {self.params.threshold}",
                offender=None,
            )
        self._survivors = frozenset(survivors & held)
        self._statement = survivors_to_sign(self._scope, self._model_digest, message.survivors)
        return ConsistencySignature(self.client_id, self._identity.sign(self._statement))

    def _reveal(self, request: UnmaskRequest) -> UnmaskShares:
        own = self.client_id
        if request.recipient != own:
            raise MalformedMessageError(
                f"request to client {request.recipient} came to client {own}", offender=None
            )
        if not request.signatures.keys() <= self._survivors - {own}:
            raise MalformedMessageError(
                f"request has a signature of one that is no surviving neighbour of client {own}",
                offender=None,
            )
        if len(request.signatures) + 1 < self.params.threshold:
            raise UnmaskRefusedError(
                f"{len(request.signatures) + 1} signed the survivor list, below the threshold "
                f"{self.params.threshold}",
                offender=None,
            )
        for client, signature in request.signatures.items():
            if not self._directory.verify(client, signature, self._statement):
                raise InconsistentSurvivorsError(
                    f"client {client} did not sign the roster, model and survivor list of client {own}",
                    offender=None,
                )
        self._check_inclusion(request)
        answer = self._tagged(
            UnmaskShares(
                own,
                {owner: shares[0] for owner, shares in self._held.items() if owner in self._survivors},
                {owner: shares[1] for owner, shares in self._held.items() if owner not in self._survivors},
            )
        )
        self._held, self._peer_tokens, self._tag_key = {}, {}, b""
        return answer

    def _check_inclusion(self, request: UnmaskRequest) -> None:
        survivors = self._survivors - {self.client_id}
        if request.included.keys() != survivors:
            raise MalformedMessageError(
                "request lacks a surviving neighbour's token, or has too many", offender=None
            )
        for peer in survivors:
            if not matches(self._peer_tokens[peer], request.included[peer]):
                raise UnmaskRefusedError(
                    f"does not show that its vector has the mask it shares with client {self.client_id}",
                    offender=peer,
                )
