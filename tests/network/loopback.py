"""A federation on loopback whose clients train nothing: small vectors, real TLS, real masking."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.errors import PrivFedError
from privfed.federated.aggregation import Aggregate, Inputs, RingAggregation
from privfed.network import frames
from privfed.network.certificates import Authority, from_pem
from privfed.network.errors import DeclinedError
from privfed.network.exchange import Exchange
from privfed.network.frames import Nothing, Offer
from privfed.network.half import Expected
from privfed.network.identity_file import IdentityFile, read_identity
from privfed.network.limits import Limits
from privfed.network.link import Link
from privfed.network.memory import ClientMemory
from privfed.network.participant import Participant
from privfed.network.remote import Deadlines, NetworkClients
from privfed.network.service import Bounds, Service
from privfed.network.tally import Tally
from privfed.network.tls import Gate, Listed, Revocations, client_credentials, server_credentials
from privfed.privacy.randomness import SeededSource
from privfed.secagg import Identity, ProtocolSum

DIMENSION, CLIENTS, ROUNDS, BOUND = 64, 8, 50, 1.0
WEIGHTS = np.linspace(-1, 1, DIMENSION).astype(np.float32)
AGGREGATION = RingAggregation(
    lambda number, threshold, model, bits: ProtocolSum(number, threshold, model=model, ring_bits=bits),
    ring_bits=32,
    threshold=None,
    masked=True,
)


def inputs_of(number: int, cohort: Sequence[int]) -> Inputs:
    return Inputs(
        number, tuple(cohort), DIMENSION, BOUND, False, lambda c: SeededSource(number, c), model_of(WEIGHTS)
    )


def model_of(weights: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(weights.tobytes()).digest()


def update_of(client: int, number: int) -> NDArray[np.float64]:
    vector = np.random.default_rng([client, number]).normal(size=DIMENSION)
    return 0.5 * BOUND * vector / np.linalg.norm(vector)


@dataclass
class FakeHalf:
    """Sends ``update_of``, encoded as the plan says."""

    client: int
    initial: NDArray[np.float32] = field(default_factory=lambda: WEIGHTS)
    rounds: int = ROUNDS
    clients: int = CLIENTS
    before: Callable[[int], None] = lambda number: None

    def expected(self, cohort: int) -> Expected:
        inputs = inputs_of(1, range(cohort))
        encoding = AGGREGATION.encoding(inputs)
        return Expected(len(encoding.zeros()), AGGREGATION.threshold_of(inputs), encoding.codec.ring_bits)

    def check_clip(self, number: int, clip_norm: float | None) -> None:
        if clip_norm is not None:  # as ``ClientHalf`` does where the plan has one that stays
            raise DeclinedError("clip norm", "the round names a clip norm")

    def __call__(
        self, number: int, weights: NDArray[np.float32], cohort: int, clip_norm: float | None = None
    ) -> NDArray[Any]:
        self.before(number)
        encoding = AGGREGATION.encoding(inputs_of(number, range(cohort)))
        encoded = encoding.zeros()
        encoding.add(encoded, self.client, update_of(self.client, number))
        return encoded


@dataclass
class PlainHalf(FakeHalf):
    """Sends ``update_of`` in the clear."""

    factor: float = 1.0

    def expected(self, cohort: int) -> Expected:
        return Expected(DIMENSION, 0, 0)

    def __call__(self, number: int, weights: Any, cohort: int, clip_norm: float | None = None) -> Any:
        self.before(number)
        return self.factor * update_of(self.client, number)


class Party(threading.Thread):
    """A client in a thread; ``answer`` may change, drop (``None``) or repeat what it sends."""

    def __init__(
        self,
        federation: Federation,
        client: int,
        folder: Path,
        *,
        limits: Limits | None = None,
        half: FakeHalf | None = None,
        answer: Callable[[Link, int, bytes], bytes | None] | None = None,
    ) -> None:
        super().__init__(daemon=True, name=f"client {client}")
        self.identity = read_identity(federation.folder / f"client-{client}.pem")
        authority = Authority(self.identity.authority)
        assert self.identity.signing_key is not None
        self.memory = ClientMemory(folder / f"memory-{client}")
        offer = frames.digest(federation.offer)
        self.memory.accept(federation.offer.run, offer, 1.0, ROUNDS)
        self.link = Link(federation.address, client_credentials(self.identity), most_bytes=1 << 24, patience=20)
        self.participant = Participant(
            half or FakeHalf(client),
            Identity.from_private_bytes(self.identity.signing_key),
            authority,
            limits or Limits(),
            self.memory,
            federation.offer.run,
            federation.revocations(),
        )
        self._offer, self._answer = offer, answer
        self.declined: list[str] = []
        self.verdicts: list[str] = []
        self.failure: str | None = None
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except PrivFedError as error:
            self.failure = str(error)
        except ValueError:
            pass  # the channel was closed by ``stop``

    def _run(self) -> None:
        self.link.check_in(self._offer)
        while not self.stopped.is_set():
            data = self.link.poll(self.participant.position)
            frame, _ = frames.decode(data, frames.Frame)
            if isinstance(frame, Nothing):
                if frame.state != "wait":
                    return
                continue
            try:
                answer = self.participant.receive(data)
            except DeclinedError as error:
                self.declined.append(str(error))
                self.link.refuse(self.participant.position[0], error)
                continue
            if answer is not None and self._answer is not None:
                answer = self._answer(self.link, self.participant.position[1], answer)
            if answer is not None:
                self.verdicts.append(self.link.send(answer))

    def stop(self) -> None:
        self.stopped.set()
        self.link.close()
        self.memory.close()


@dataclass
class Federation:
    """A server, its authority and what it counts."""

    folder: Path
    offer: Offer
    revocations: Revocations
    tally: Tally
    exchange: Exchange
    service: Service
    clients: NetworkClients
    parties: list[Party] = field(default_factory=list)
    through: str | None = None
    """Where clients connect to, if not to the server itself."""

    @property
    def address(self) -> str:
        return self.through or f"127.0.0.1:{self.service.port}"

    def join(self, client: int, folder: Path, *, start: bool = True, **options: Any) -> Party:
        party = Party(self, client, folder, **options)
        self.parties.append(party)
        if start:
            party.start()
        return party

    def wait_for(self, count: int, seconds: float = 20) -> None:
        assert self.service.call(self.exchange.arrivals(count, seconds)) >= count

    def round(self, number: int, cohort: Sequence[int] = range(CLIENTS)) -> Aggregate:
        return self.clients.sum(WEIGHTS, inputs_of(number, cohort))

    def identity(self, client: int) -> IdentityFile:
        return read_identity(self.folder / f"client-{client}.pem")

    def certificate(self, client: int) -> Any:
        identity = self.identity(client)
        return Authority(identity.authority).client(from_pem(identity.certificate))


def serve(folder: Path, out: Path, deadlines: Deadlines | None = None) -> Iterator[Federation]:
    identity = read_identity(folder / "server-127.0.0.1.pem")
    authority = Authority(identity.authority)
    revocations = Revocations(folder / "revoked.pem", authority)
    offer = Offer(run="0" * 32, settings={}, clients=CLIENTS, input_shape=[1], classes=2, initial_sha256="0" * 64)
    tally = Tally(out / "events.jsonl")
    exchange = Exchange(offer, lambda: revocations().der, tally)
    gate = Gate(authority, revocations, CLIENTS)
    bounds = Bounds(message_bytes=1 << 20, piece_seconds=1.0, calls_per_second=200, burst=400)
    listed = Listed(folder / "clients.pem", authority, revocations)
    service = Service("127.0.0.1:0", server_credentials(identity, listed), gate, exchange, tally, bounds)
    clients = NetworkClients(service, exchange, AGGREGATION, deadlines or Deadlines(stage=5, training=10), tally)
    federation = Federation(folder, offer, revocations, tally, exchange, service, clients)
    service.start()
    try:
        yield federation
    finally:
        service.stop("finished", 0.1)
        for party in federation.parties:
            party.stop()
        for party in federation.parties:
            if party.ident is not None:
                party.join(10)
        tally.close()


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
