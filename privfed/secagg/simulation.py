"""Sums of a cohort's ring vectors: by the real protocol among clients of this process, or in the clear.

Both, and the sum under encryption in ``homomorphic.py``, give bit-identical totals and agree on who survives
and when a round aborts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import packing, ring, wire
from privfed.secagg.client import Client
from privfed.secagg.errors import ParameterError, RoundAborted
from privfed.secagg.identities import Directory, Identity
from privfed.secagg.messages import MaskedInput, Message, ToClient, ToServer
from privfed.secagg.params import MIN_SESSION_BYTES, SecAggParams, check_threshold, majority
from privfed.secagg.server import Server
from privfed.secagg.sessions import SessionsInMemory
from privfed.secagg.states import Stage, arrives

_Carried = TypeVar("_Carried", bound=Message)

Dropouts = Mapping[int, Stage | None]
Inputs = Mapping[int, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class SumResult:
    """What the server has at the end of a round.

    Attributes:
        total: Sum of the survivors' inputs modulo the ring, ``[dimension]``.
        survivors: Clients in the sum, ascending.
        uploads: What the server received from each survivor, ``[dimension]``: masked, or plain from ``RingSum``;
            none from ``HomomorphicSum``, whose ciphertexts are no vectors of the ring.
        bytes_per_stage: Bytes from clients to server by stage, in lower case.
        seconds_per_stage: Wall time by the same stages, all parties together.
    """

    total: NDArray[Any]
    survivors: tuple[int, ...]
    uploads: Mapping[int, NDArray[Any]] = field(repr=False)
    bytes_per_stage: Mapping[str, int]
    seconds_per_stage: Mapping[str, float]


class SecureSum(Protocol):
    """Sums a cohort's ring vectors without the clients that vanish."""

    def sum(self, inputs: Inputs, dropouts: Dropouts) -> SumResult:
        """Sum ``inputs``, all of the ring's type and one shape ``[dimension]``.

        Args:
            inputs: By client.
            dropouts: By vanishing client, the last stage whose message it sends, ``None`` for none at all. A
                client that sends its masked input is in the sum, whether or not it vanishes then.

        Raises:
            RoundAborted: In some stage fewer clients than the threshold were left.
            ParameterError: Inputs differ in type or shape, or are not of the ring, a vanishing client has no
                input, or the threshold is too low for the cohort.
        """
        ...


@dataclass(frozen=True)
class ProtocolSum:
    """The real protocol, among clients of this process; keys and seeds are always the operating system's.

    Every client gets an identity for the occasion, signs with it, and verifies its neighbours' signatures.

    Attributes:
        round_number: Bound into every key.
        threshold: Clients needed of those that hold a secret's shares, a majority of them unless given. In a
            complete graph that is every client, so that the threshold is the cohort's, at every stage.
        session: Identifier, 16 to 64 bytes and never used before; a random one for each sum unless given.
        degree: Neighbours of each client, even; ``None`` joins everybody to everybody, as ``RingSum`` does. With
            fewer, a round may abort because a single neighbourhood lost too many.
        model: What all clients were given for the round.
        workers: Most threads that one party masks or unmasks with.
        over_wire: Whether every message is encoded, and decoded by its recipient.
        ring_bits: Sums are modulo ``2**ring_bits``; as many as the inputs' type has unless given.
    """

    round_number: int = 0
    threshold: int | None = None
    session: bytes | None = None
    degree: int | None = None
    model: bytes = b""
    workers: int = 1
    over_wire: bool = False
    ring_bits: int | None = None

    def sum(self, inputs: Inputs, dropouts: Dropouts) -> SumResult:
        """As ``SecureSum.sum``; the server never holds an input without its masks."""
        client_ids, threshold, bits = admit(inputs, dropouts, self.ring_bits, self.threshold, self.degree)
        first = inputs[client_ids[0]]
        params = SecAggParams(
            session=secrets.token_bytes(MIN_SESSION_BYTES) if self.session is None else self.session,
            round_number=self.round_number,
            client_ids=client_ids,
            threshold=threshold,
            dimension=len(first),
            ring_bits=bits,
            degree=self.degree,
        )
        identities = {client_id: Identity.generate() for client_id in client_ids}
        directory = Directory({client_id: identity.public for client_id, identity in identities.items()})
        server = Server(params, directory, model=self.model, workers=self.workers)
        sessions = SessionsInMemory()
        clients = {
            client_id: Client(
                params,
                client_id,
                identity=identity,
                directory=directory,
                sessions=sessions,
                model=self.model,
                workers=self.workers,
            )
            for client_id, identity in identities.items()
        }
        uploads: dict[int, NDArray[Any]] = {}
        sent: dict[str, int] = {}
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def send(stage: Stage, messages: Iterable[ToServer]) -> Mapping[int, ToClient]:
            nonlocal started
            name = stage.name.lower()
            sent[name] = 0
            for made in messages:
                message = self._carried(made, made.sender)
                sent[name] += wire.size(message)
                server.receive(message)
                if isinstance(message, MaskedInput):
                    uploads[message.sender] = message.vector.values
            outgoing = server.close_stage()
            seconds[name], started = time.perf_counter() - started, time.perf_counter()
            return outgoing

        def alive(stage: Stage) -> list[int]:
            return senders(client_ids, dropouts, stage)

        def answers(stage: Stage, incoming: Mapping[int, ToClient]) -> Iterable[ToServer]:
            for client_id in alive(stage):
                yield from clients[client_id].receive(self._carried(incoming[client_id], None))

        rosters = send(Stage.ADVERTISE_KEYS, (clients[i].start() for i in alive(Stage.ADVERTISE_KEYS)))
        inboxes = send(Stage.SHARE_KEYS, answers(Stage.SHARE_KEYS, rosters))
        for _ in answers(Stage.MASKED_INPUT, inboxes):
            pass  # an inbox is answered by the masked input, when there is one
        inputs_of = (clients[i].contribute(inputs[i]) for i in alive(Stage.MASKED_INPUT))
        survivors = send(Stage.MASKED_INPUT, inputs_of)
        requests = send(Stage.CONSISTENCY, answers(Stage.CONSISTENCY, survivors))
        send(Stage.UNMASK, answers(Stage.UNMASK, requests))
        return SumResult(server.total, server.survivors, uploads, sent, seconds)

    def _carried(self, message: _Carried, peer: int | None) -> _Carried:
        """``message`` as it comes out at the other end."""
        if not self.over_wire:
            return message
        return cast(_Carried, wire.decode(wire.encode(message), peer=peer))


@dataclass(frozen=True)
class RingSum:
    """The same integers summed in the clear: what the protocol computes, without its protection.

    Attributes:
        threshold: Clients needed at every stage; a majority of the cohort unless given.
        ring_bits: As in ``ProtocolSum``.
    """

    threshold: int | None = None
    ring_bits: int | None = None

    def sum(self, inputs: Inputs, dropouts: Dropouts) -> SumResult:
        """As ``SecureSum.sum``: the server sees every survivor's input."""
        started = time.perf_counter()
        client_ids, threshold, bits = admit(inputs, dropouts, self.ring_bits, self.threshold)
        uploads = {i: inputs[i].copy() for i in arrivals(client_ids, dropouts, threshold)}
        total = np.zeros_like(inputs[client_ids[0]])
        for vector in uploads.values():
            ring.reduce(vector, bits)
            total += vector
        ring.reduce(total, bits)
        sent = {"input": packing.packed_bytes(len(total), bits) * len(uploads)}
        return SumResult(total, tuple(uploads), uploads, sent, {"input": time.perf_counter() - started})


def senders(client_ids: tuple[int, ...], dropouts: Dropouts, stage: Stage) -> list[int]:
    """Clients that send the message of ``stage``."""
    last_sent = {client_id: dropouts.get(client_id, Stage.UNMASK) for client_id in client_ids}
    return [client_id for client_id, last in last_sent.items() if last is not None and last >= stage]


def arrivals(client_ids: tuple[int, ...], dropouts: Dropouts, threshold: int) -> tuple[int, ...]:
    """Clients whose inputs arrive, ascending, in a round that ends as the protocol's would.

    Raises:
        RoundAborted: In some stage fewer than ``threshold`` clients are left.
    """
    for stage in Stage:
        left = len(senders(client_ids, dropouts, stage))
        if left < threshold:
            raise RoundAborted(stage, left, threshold)
    return tuple(i for i in client_ids if arrives(dropouts.get(i, Stage.UNMASK)))


def admit(
    inputs: Inputs, dropouts: Dropouts, ring_bits: int | None, threshold: int | None, degree: int | None = None
) -> tuple[tuple[int, ...], int, int]:
    """The clients, the threshold and the width of the ring, all of which may go together."""
    client_ids = tuple(sorted(inputs))
    holders = len(client_ids) if degree is None else min(degree + 1, len(client_ids))
    needed = majority(holders) if threshold is None else threshold
    check_threshold(needed, holders)
    if unknown := sorted(dropouts.keys() - inputs.keys()):
        raise ParameterError(
            f"dropouts: client {unknown[0]} vanishes but has no input. Leave it out of the cohort"
        )
    kinds = {(vector.dtype, vector.shape) for vector in inputs.values()}
    if len(kinds) > 1:
        raise ParameterError(f"inputs: all must have one type and shape (got {sorted(map(str, kinds))})")
    bits = 0
    for dtype, shape in kinds:
        bits = 8 * dtype.itemsize if ring_bits is None else ring_bits
        ring.check_bits(bits)
        if dtype != ring.dtype_of(bits) or len(shape) != 1 or not shape[0]:
            raise ParameterError(
                f"inputs: must be vectors of {ring.dtype_of(bits)} for a ring of {bits} bits (got {dtype} {shape})"
            )
    if holders < needed:
        # A random cohort may come out too small: that ends the round, not the training.
        raise RoundAborted(Stage.ADVERTISE_KEYS, len(senders(client_ids, dropouts, Stage.ADVERTISE_KEYS)), needed)
    return client_ids, needed, bits
