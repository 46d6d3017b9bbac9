"""The network under load: many clients on loopback, some of which stall or reconnect, beside a bare gRPC echo.

    python benchmarks/network.py --clients 500 --rounds 20 --mode off
    python benchmarks/network.py --mode protocol --cohort 40

Clients are the real ones, each with a connection and an identity of its own, in threads of a few processes; they
train nothing and send a vector that is drawn once. ``off`` sends it in the clear: what is measured is the
network. ``protocol`` masks it, in cohorts: masks among n clients cost n² key exchanges, whoever carries them.

The echo is a bare ``grpc.aio`` server with the same TLS, pieces and client calls, on as many connections, in the
same run: it takes a vector and answers with as many bytes as a model has, so that each direction carries what a
round does. Compared is the processor time of the server by what its clients sent and got, and the time on the
clock.

The echo goes by rounds, as ours do: it answers when all have sent or the deadline has passed; its clients stall
and reconnect as often; who comes late is answered at once with the round under way, and sends for that one. With
``--trouble 0`` there is a second echo that runs free: each client sends again as soon as it is answered, and waits
for nobody, so that nothing is ever idle.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import privfed.network  # before gRPC: it leaves TLS 1.2 out  # isort: skip

import numpy as np
from network_echo import measure_echo
from network_load import BOUND, Load, start
from numpy.typing import NDArray

from privfed.errors import PrivFedError
from privfed.network import frames, pki
from privfed.network.certificates import Authority
from privfed.network.errors import DeclinedError
from privfed.network.exchange import Exchange
from privfed.network.frames import Nothing, Offer
from privfed.network.half import Expected
from privfed.network.identity_file import read_identity, read_revocations
from privfed.network.limits import Limits
from privfed.network.link import Link
from privfed.network.memory import ClientMemory
from privfed.network.participant import Participant
from privfed.network.remote import Deadlines, NetworkClients
from privfed.network.service import Bounds, Service
from privfed.network.tally import Tally
from privfed.network.tls import Gate, Listed, Revocations, client_credentials, server_credentials
from privfed.secagg import Identity, RoundAborted

RUN = "0" * 32
assert privfed.network


class FixedHalf:
    """Sends one vector again and again."""

    def __init__(self, load: Load, client: int) -> None:
        self.client, self.rounds, self.clients, self._load = client, load.rounds, load.clients, load
        self.initial: NDArray[np.float32] = np.zeros(load.dimension, np.float32)
        vector = np.random.default_rng(client).normal(size=load.dimension)
        self._vector = 0.5 * BOUND * vector / np.linalg.norm(vector)

    def expected(self, cohort: int) -> Expected:
        aggregation = self._load.aggregation
        if self._load.mode == "off":
            return Expected(self._load.dimension, 0, 0)
        inputs = self._load.inputs(1, range(cohort), self.initial)
        encoding = aggregation.encoding(inputs)
        return Expected(len(encoding.zeros()), aggregation.threshold_of(inputs), encoding.codec.ring_bits)

    def check_clip(self, number: int, clip_norm: float | None) -> None:
        """There is nothing to judge."""

    def __call__(
        self, number: int, weights: NDArray[np.float32], cohort: int, clip_norm: float | None = None
    ) -> NDArray[Any]:
        if self._load.mode == "off":
            return self._vector
        encoding = self._load.aggregation.encoding(self._load.inputs(number, range(cohort), weights))
        encoded = encoding.zeros()
        encoding.add(encoded, self.client, self._vector)
        return encoded


def client_process(load: Load, address: str, folder: str, mine: list[int], offer: str, ready: Any) -> None:
    """Clients ``mine``, a thread each; ends when the server says that the run is over."""
    counts = {"sent": 0, "stalled": 0, "reconnected": 0, "declined": 0, "bytes": 0}
    lock = threading.Lock()

    def one(client: int) -> None:
        identity = read_identity(Path(folder) / "ca" / f"client-{client}.pem")
        authority = Authority(identity.authority)
        memory = ClientMemory(Path(folder) / f"memory-{client}")
        memory.accept(RUN, offer, 1.0, load.rounds)
        assert identity.signing_key is not None
        revocations = read_revocations(Path(folder) / "ca" / "revoked.pem", authority)
        limits = Limits(allow_unmasked=load.mode == "off")
        signing = Identity.from_private_bytes(identity.signing_key)
        participant = Participant(FixedHalf(load, client), signing, authority, limits, memory, RUN, revocations)
        credentials, draw = client_credentials(identity), random.Random(client)  # noqa: S311 - of a load

        def connect() -> Link:
            return Link(address, credentials, most_bytes=1 << 28, patience=20)

        link = connect()
        link.check_in(offer)
        while True:
            data = link.poll(participant.position)
            with lock:
                counts["bytes"] += len(data)
            frame, _ = frames.decode(data, frames.Frame)
            if isinstance(frame, Nothing):
                if frame.state == "check in":
                    participant.start_over()
                    link.check_in(offer)
                    continue
                if frame.state == "wait":
                    continue
                break
            try:
                answer = participant.receive(data)
            except DeclinedError as error:
                with lock:
                    counts["declined"] += 1
                link.refuse(participant.position[0], error)
                continue
            if answer is None:
                continue
            trouble = load.trouble_of(draw)
            if trouble is not None:
                with lock:
                    counts[trouble] += 1
            if trouble == "stalled":
                time.sleep(load.stage_seconds * 1.2)
            if trouble == "reconnected":
                link.close()
                link = connect()
            link.send(answer)
            with lock:
                counts["sent"] += 1
                counts["bytes"] += len(answer)
        link.close()
        memory.close()

    def safely(client: int) -> None:
        try:
            one(client)
        except PrivFedError as error:
            print(f"client {client}: {error}", file=sys.stderr)

    with ThreadPoolExecutor(len(mine)) as pool:
        list(pool.map(safely, mine))
    ready.put(counts)


def measure_rounds(load: Load, folder: Path) -> dict[str, Any]:
    """The same of rounds, what became of them, and the memory of the server."""
    identity = read_identity(folder / "ca" / "server-127.0.0.1.pem")
    authority = Authority(identity.authority)
    revocations = Revocations(folder / "ca" / "revoked.pem", authority)
    offer = Offer(run=RUN, settings={}, clients=load.clients, input_shape=[1], classes=2, initial_sha256="0" * 64)
    tally = Tally(folder / "events.jsonl")
    exchange = Exchange(offer, lambda: revocations().der, tally)
    bounds = Bounds(message_bytes=8 * load.dimension + (1 << 20), connections=4 * load.clients)
    gate = Gate(authority, revocations, load.clients)
    listed = Listed(folder / "ca" / "clients.pem", authority, revocations)
    service = Service("127.0.0.1:0", server_credentials(identity, listed), gate, exchange, tally, bounds)
    service.start()
    deadlines = Deadlines(load.stage_seconds, load.stage_seconds)
    clients = NetworkClients(service, exchange, load.aggregation, deadlines, tally)
    processes, ready = start(client_process, load, f"127.0.0.1:{service.port}", str(folder), frames.digest(offer))
    there = service.call(exchange.arrivals(load.clients, 300))
    print(f"{there} of {load.clients} clients are there", file=sys.stderr)
    weights, draw = np.zeros(load.dimension, np.float32), random.Random(0)  # noqa: S311 - of a load
    seconds: list[float] = []
    survivors: list[int] = []
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(1, load.rounds + 1):
        cohort = sorted(draw.sample(range(load.clients), load.cohort))
        started = time.perf_counter()
        try:
            survivors.append(len(clients.sum(weights, load.inputs(number, cohort, weights)).survivors))
        except RoundAborted as error:
            survivors.append(0)
            print(f"round {number}: {error}", file=sys.stderr)
        seconds.append(time.perf_counter() - started)
    found = {
        "cpu": time.process_time() - cpu,
        "clock": time.perf_counter() - began,
        "round_seconds": [round(s, 2) for s in seconds],
        "survivors": survivors,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "late": tally.late,
        "refused": dict(tally.refused),
    }
    service.stop("finished", 30)
    counts = [ready.get() for _ in processes]
    for process in processes:
        process.join(60)
    found["clients"] = {name: sum(count[name] for count in counts) for name in counts[0]}
    found["bytes"] = float(found["clients"]["bytes"])
    tally.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dimension", type=int, default=50_000)
    parser.add_argument("--mode", choices=["off", "protocol"], default="off")
    parser.add_argument("--cohort", type=int, help="clients drawn for each round; all unless given")
    parser.add_argument(
        "--trouble", type=float, default=0.2, help="share of answers before which a client stalls or reconnects"
    )
    parser.add_argument("--stage-seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=2)
    given = vars(parser.parse_args())
    load = Load(**{**given, "cohort": given["cohort"] or given["clients"]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pki.create(folder / "ca")
        pki.issue(folder / "ca", server="127.0.0.1")
        for client in range(load.clients):
            pki.issue(folder / "ca", client=client)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rounds = measure_rounds(load, folder)
        measured = {"rounds": rounds, "echo": measure_echo(load, folder, by_rounds=True)}
        if not load.trouble:
            measured["free_echo"] = measure_echo(load, folder, by_rounds=False)
    result: dict[str, Any] = {"load": given, "start_mib": round(before), **measured}
    for name in ("cpu", "clock"):
        per_gb = {side: found[name] / found["bytes"] * 1e9 for side, found in measured.items()}
        result[f"{name}_seconds_per_gb"] = {side: round(value, 2) for side, value in per_gb.items()}
        result[f"{name}_overhead"] = {
            side: round(per_gb["rounds"] / value, 2) for side, value in per_gb.items() if side != "rounds"
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
