"""The server's half of the protocol, without input or output: messages in, messages out.

Trust: this server is honest but curious, and that is all the clients may assume of it. Keys are not signed in this
protocol, so an *active* server can substitute keys of its own for the clients' and read their inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import shamir
from privfed.secagg.errors import (
    CorruptShareError,
    DuplicateMessageError,
    IllegalEventError,
    InputError,
    KeyRefusedError,
    MalformedMessageError,
    RoundAborted,
    UnexpectedSenderError,
)
from privfed.secagg.keys import SEALED_BYTES, KeyPair, commit_to_seed, matches, pair_mask_key, self_mask_key
from privfed.secagg.messages import (
    KEY_BYTES,
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
from privfed.secagg.states import ServerState, Stage, State, Step, after_message, after_step

_STAGES: Mapping[State, Stage] = {
    ServerState.COLLECTING_KEYS: Stage.ADVERTISE_KEYS,
    ServerState.COLLECTING_SHARES: Stage.SHARE_KEYS,
    ServerState.COLLECTING_INPUTS: Stage.MASKED_INPUT,
    ServerState.COLLECTING_REVEALS: Stage.UNMASK,
}


class Server:
    """The server in one session (Bonawitz et al. 2017, figure 4, semi-honest setting).

    In each stage: ``receive`` what comes, then ``close_stage`` when everybody answered or time is up. Whoever did
    not answer is out. A message that the state does not allow, or that fails a check, raises and changes nothing.
    """

    def __init__(self, params: SecAggParams) -> None:
        self.params = params
        self._state: State = ServerState.COLLECTING_KEYS
        self._keys: dict[int, AdvertiseKeys] = {}
        self._shares: dict[int, ShareKeys] = {}
        self._used_keys: set[bytes] = set()
        self._contributors: set[int] = set()
        self._reveals: dict[int, UnmaskShares] = {}
        self._total: NDArray[Any] = np.zeros(params.dimension, dtype=params.dtype)
        self._probe = KeyPair.generate()  # finds keys of low order before they reach the clients

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

    def receive(self, message: ToServer) -> None:
        """Take a client's message.

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
        if isinstance(message, AdvertiseKeys):
            self._take_keys(message)
        elif isinstance(message, ShareKeys):
            self._take_shares(message)
        elif isinstance(message, MaskedInput):
            self._take_input(message)
        else:
            self._take_reveal(message)
        self._state = following

    def close_stage(self) -> dict[int, ToClient]:
        """End the stage with whoever answered; returns the next message of each client still in, if there is one.

        Raises:
            IllegalEventError: The session is over.
            RoundAborted: Fewer answers than the threshold; the session is over and no secret was put together.
            CorruptShareError: Revealed shares are wrong; the session is over and no mask was taken off.
        """
        following = after_step(self._state, Step.CLOSE_STAGE)
        stage, (_, arrived) = _STAGES[self._state], self._expected_and_arrived()
        if len(arrived) < self.params.threshold:
            self._abort()
            raise RoundAborted(stage, len(arrived), self.params.threshold)
        outgoing: dict[int, ToClient] = {}
        if stage is Stage.ADVERTISE_KEYS:
            roster = Roster(tuple(self._keys[client] for client in sorted(self._keys)))
            outgoing = dict.fromkeys(self._keys, roster)
        elif stage is Stage.SHARE_KEYS:
            outgoing = {client: self._inbox(client) for client in self._shares}
        elif stage is Stage.MASKED_INPUT:
            request = UnmaskRequest(tuple(sorted(self._contributors)), tuple(sorted(self._dropped())))
            outgoing = dict.fromkeys(self._contributors, request)
        else:
            try:
                self._unmask()
            except CorruptShareError:
                self._abort()
                raise
        self._state = following
        return outgoing

    def _expected_and_arrived(self) -> tuple[Set[int], Set[int]]:
        if self._state not in _STAGES:
            return set(), set()
        # Each stage takes messages from those who answered in the one before.
        chain: tuple[Set[int], ...] = (
            self.params.points.keys(),
            self._keys.keys(),
            self._shares.keys(),
            self._contributors,
            self._reveals.keys(),
        )
        stage = _STAGES[self._state]
        return chain[stage], chain[stage + 1]

    def _dropped(self) -> Set[int]:
        return self._shares.keys() - self._contributors

    def _take_keys(self, message: AdvertiseKeys) -> None:
        advertised = (message.mask_key, message.channel_key)
        if any(len(key) != KEY_BYTES for key in advertised):
            raise MalformedMessageError(f"public keys must be {KEY_BYTES} bytes each", offender=message.sender)
        if message.mask_key == message.channel_key or not self._used_keys.isdisjoint(advertised):
            raise KeyRefusedError("advertises a key that is in use already", offender=message.sender)
        for key in advertised:
            self._probe.exchange(key, owner=message.sender)
        self._used_keys.update(advertised)
        self._keys[message.sender] = message

    def _take_shares(self, message: ShareKeys) -> None:
        if len(message.commitment) != KEY_BYTES:
            raise MalformedMessageError(f"commitment must be {KEY_BYTES} bytes", offender=message.sender)
        if message.sealed.keys() != self._keys.keys() - {message.sender}:
            raise MalformedMessageError(
                "shares must be for every other client of the roster", offender=message.sender
            )
        if any(len(sealed) != SEALED_BYTES for sealed in message.sealed.values()):
            raise MalformedMessageError(
                f"sealed shares must be {SEALED_BYTES} bytes each", offender=message.sender
            )
        self._shares[message.sender] = message

    def _take_input(self, message: MaskedInput) -> None:
        try:
            self.params.check_vector(message.vector)
        except InputError as error:
            raise MalformedMessageError(str(error), offender=message.sender) from None
        self._total += message.vector
        self._contributors.add(message.sender)

    def _take_reveal(self, message: UnmaskShares) -> None:
        if message.seed_shares.keys() != self._contributors or message.key_shares.keys() != self._dropped():
            raise MalformedMessageError(
                "revealed shares are not the ones that were asked for", offender=message.sender
            )
        revealed = [*message.seed_shares.values(), *message.key_shares.values()]
        if not all(0 <= share < shamir.PRIME for share in revealed):
            raise MalformedMessageError("a revealed share lies outside of the field", offender=message.sender)
        self._reveals[message.sender] = message

    def _inbox(self, recipient: int) -> Inbox:
        senders = (share for share in self._shares.values() if share.sender != recipient)
        return Inbox(recipient, {share.sender: share.sealed[recipient] for share in senders})

    def _unmask(self) -> None:
        # The same holders for every secret, so that the Lagrange coefficients are computed once.
        holders = sorted(self._reveals)[: self.params.threshold]
        weights = shamir.weights_at_zero([self.params.points[holder] for holder in holders])
        added: list[bytes] = []
        subtracted = [
            self_mask_key(self.params, self._recover_seed(owner, holders, weights), owner)
            for owner in self._contributors
        ]
        for gone in self._dropped():
            pair = self._recover_mask_pair(gone, holders, weights)
            for survivor in self._contributors:
                key = pair_mask_key(self.params, pair, gone, survivor, self._keys[survivor].mask_key)
                # What the survivor added is taken away, and the other way round.
                (subtracted if survivor < gone else added).append(key)
        apply_masks(self._total, added, subtracted)
        self._reveals = {client: UnmaskShares(client, {}, {}) for client in self._reveals}

    def _recover_seed(self, owner: int, holders: Sequence[int], weights: Sequence[int]) -> bytes:
        shares = [self._reveals[holder].seed_shares[owner] for holder in holders]
        seed = _as_secret(shamir.combine(weights, shares), owner)
        if not matches(self._shares[owner].commitment, commit_to_seed(self.params, seed, owner)):
            raise CorruptShareError("the self-mask seed does not match its commitment", offender=owner)
        return seed

    def _recover_mask_pair(self, owner: int, holders: Sequence[int], weights: Sequence[int]) -> KeyPair:
        shares = [self._reveals[holder].key_shares[owner] for holder in holders]
        pair = KeyPair.from_private_bytes(_as_secret(shamir.combine(weights, shares), owner))
        if not matches(self._keys[owner].mask_key, pair.public):
            raise CorruptShareError("the mask key does not match the one that was advertised", offender=owner)
        return pair

    def _abort(self) -> None:
        self._state = after_step(self._state, Step.ABORT)
        self._reveals = {}
        self._total = np.zeros_like(self._total)

    def _require_done(self) -> None:
        if self._state is not ServerState.DONE:
            raise IllegalEventError(f"no sum in state {self._state.name}: close every stage first")


def _as_secret(value: int, owner: int) -> bytes:
    if value >> (8 * shamir.SECRET_BYTES):
        raise CorruptShareError("revealed shares give no 32-byte secret", offender=owner)
    return value.to_bytes(shamir.SECRET_BYTES, "big")
