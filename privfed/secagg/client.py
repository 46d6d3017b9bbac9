"""The client's half of the protocol, without input or output: messages in, messages out.

Trust: the server is honest but curious. Keys are not signed, so an *active* server can substitute its own keys for
the clients' and read their inputs. The checks below (disjoint survivor and dropout lists, a majority threshold,
one masked vector) stop a server from asking for both shares of a client, and no more than that.
"""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from privfed.secagg import shamir
from privfed.secagg.errors import KeyRefusedError, MalformedMessageError, ParameterError, UnmaskRefusedError
from privfed.secagg.keys import (
    KeyPair,
    channel_key,
    commit_to_seed,
    pair_mask_key,
    seal,
    self_mask_key,
    unseal,
)
from privfed.secagg.messages import (
    AdvertiseKeys,
    Inbox,
    MaskedInput,
    Roster,
    ShareKeys,
    ToClient,
    ToServer,
    UnmaskRequest,
    UnmaskShares,
)
from privfed.secagg.params import SecAggParams
from privfed.secagg.prg import apply_masks
from privfed.secagg.states import ClientState, State, Step, after_message, after_step


class Client:
    """One client in one session (Bonawitz et al. 2017, figure 4, semi-honest setting); never to be used again.

    ``start`` → ``receive(Roster)`` → ``receive(Inbox)`` → ``contribute(vector)`` → ``receive(UnmaskRequest)``.
    An event that the state does not allow, or a message that fails a check, raises and changes nothing.

    Args:
        params: The session.
        client_id: One of ``params.client_ids``.

    Raises:
        ParameterError: ``client_id`` has no part in the session.
    """

    def __init__(self, params: SecAggParams, client_id: int) -> None:
        if client_id not in params.points:
            raise ParameterError(
                f"client_id: {client_id} is not among the session's {len(params.client_ids)} clients"
            )
        self.params, self.client_id = params, client_id
        self._state: State = ClientState.IDLE
        self._mask_pair, self._channel_pair = KeyPair.generate(), KeyPair.generate()
        self._seed = os.urandom(shamir.SECRET_BYTES)
        self._peer_mask_keys: dict[int, bytes] = {}
        self._inbound_keys: dict[int, bytes] = {}
        self._held: dict[int, tuple[int, int]] = {}  # by owner: share of its seed, share of its mask key

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
        """
        self._state = after_step(self._state, Step.START)
        return self._advertisement()

    def receive(self, message: ToClient) -> list[ToServer]:
        """Take a message of the server; what to answer.

        Raises:
            RemoteError: The message is out of order or fails a check; see its subclasses.
        """
        following = after_message(self._state, message, offender=None)
        answer: list[ToServer] = []
        if isinstance(message, Roster):
            answer.append(self._share_keys(message))
        elif isinstance(message, Inbox):
            self._open(message)
        else:
            answer.append(self._reveal(message))
        self._state = following
        return answer

    def contribute(self, vector: NDArray[Any]) -> MaskedInput:
        """Mask the input, ``[dimension]`` in the ring's type; possible once in a session.

        A second masked vector under the same masks would show the server the difference of the two inputs.

        Raises:
            IllegalEventError: Too early, or there was one already.
            InputError: Wrong type or shape.
            KeyRefusedError: A peer's mask key is unusable.
        """
        following = after_step(self._state, Step.CONTRIBUTE)
        self.params.check_vector(vector)
        added = [self_mask_key(self.params, self._seed, self.client_id)]
        subtracted: list[bytes] = []
        for peer in self._held:
            if peer != self.client_id:
                public = self._peer_mask_keys[peer]
                key = pair_mask_key(self.params, self._mask_pair, self.client_id, peer, public)
                (added if self.client_id < peer else subtracted).append(key)
        masked = vector.copy()
        apply_masks(masked, added, subtracted)
        self._state = following
        # Whoever takes over the process from now on cannot strip the masks. Best effort: Python keeps copies.
        del self._mask_pair, self._channel_pair, self._seed
        return MaskedInput(self.client_id, masked)

    def _advertisement(self) -> AdvertiseKeys:
        return AdvertiseKeys(self.client_id, self._mask_pair.public, self._channel_pair.public)

    def _share_keys(self, roster: Roster) -> ShareKeys:
        self._check_roster(roster)
        params, own, points = self.params, self.client_id, self.params.points
        members = [entry.sender for entry in roster.entries]
        at = [points[member] for member in members]
        seed_shares = shamir.split(self._seed, params.threshold, at)
        key_shares = shamir.split(self._mask_pair.private_bytes(), params.threshold, at)
        held, sealed, inbound = {}, {}, {}
        for entry, seed_share, key_share in zip(roster.entries, seed_shares, key_shares, strict=True):
            peer = entry.sender
            if peer == own:
                held[own] = seed_share, key_share
                continue
            shared = self._channel_pair.exchange(entry.channel_key, owner=peer)
            inbound[peer] = channel_key(params, shared, peer, own)
            outbound = channel_key(params, shared, own, peer)
            sealed[peer] = seal(params, outbound, own, peer, seed_share, key_share)
        commitment = commit_to_seed(params, self._seed, own)
        self._peer_mask_keys = {entry.sender: entry.mask_key for entry in roster.entries}
        self._inbound_keys, self._held = inbound, held
        return ShareKeys(own, commitment, sealed)

    def _check_roster(self, roster: Roster) -> None:
        members = [entry.sender for entry in roster.entries]
        if members != sorted(set(members)) or not set(members) <= self.params.points.keys():
            raise MalformedMessageError("roster is not an ascending list of this session's clients", offender=None)
        if len(members) < self.params.threshold:
            raise MalformedMessageError(
                f"roster has {len(members)} clients, below the threshold {self.params.threshold}", offender=None
            )
        if self._advertisement() not in roster.entries:
            raise KeyRefusedError(
                f"roster does not hold client {self.client_id}'s own keys as advertised", offender=None
            )
        seen: set[bytes] = set()
        for entry in roster.entries:
            for key in (entry.mask_key, entry.channel_key):
                if key in seen:
                    raise KeyRefusedError("a public key stands twice in the roster", offender=entry.sender)
                seen.add(key)

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
            sender: unseal(self.params, self._inbound_keys[sender], sender, own, sealed)
            for sender, sealed in inbox.sealed.items()
        }
        self._held |= opened
        self._inbound_keys = {}

    def _reveal(self, request: UnmaskRequest) -> UnmaskShares:
        survivors, dropped = set(request.survivors), set(request.dropped)
        if len(survivors) + len(dropped) < len(request.survivors) + len(request.dropped):
            raise MalformedMessageError("unmasking request names a client twice in one list", offender=None)
        if both := survivors & dropped:
            raise UnmaskRefusedError(
                f"asks for both shares of client {min(both)}: survivor and dropped", offender=None
            )
        if survivors | dropped != self._held.keys():
            raise UnmaskRefusedError(
                "survivors and dropped together are not the clients that shared", offender=None
            )
        if self.client_id not in survivors:
            raise UnmaskRefusedError(
                f"calls client {self.client_id} dropped, whose masked input was sent", offender=None
            )
        if len(survivors) < self.params.threshold:
            raise UnmaskRefusedError(
                f"{len(survivors)} survivors are below the threshold {self.params.threshold}", offender=None
            )
        answer = UnmaskShares(
            self.client_id,
            {owner: self._held[owner][0] for owner in request.survivors},
            {owner: self._held[owner][1] for owner in request.dropped},
        )
        self._held = {}
        return answer
