"""One round of PrivFed's secure aggregation, every message made, sent as bytes, read and verified; and its clock.

Clients are played by this process, or by one process for each core, which stand for their devices; the server is
always this process. A client's work is: encode its float32 update into the ring, every message it makes, and every
message it reads. The server's is the same on its side, and to decode the sum. CPU-seconds are counted where the
work is done; what only the benchmark needs (updates, and checking the sum) is not counted.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import measure
import numpy as np
import secagg_floor

from privfed.secagg import (
    Adversary,
    Client,
    Directory,
    FixedPointCodec,
    Identity,
    SecAggParams,
    Server,
    SessionsInMemory,
    Stage,
    decode,
    encode,
)
from privfed.secagg.packing import packed_bytes

CLIP = 1.0
SLOTS = 2
"""Vectors that a process of clients may have ready before the server has taken the first of them."""

Messages = Iterator[tuple[int, bytes | memoryview]]


@dataclass(frozen=True)
class Setup:
    """What all parties have before the round, and the clients' updates."""

    params: SecAggParams
    codec: FixedPointCodec
    identities: Mapping[int, Identity]
    directory: Directory
    updates: np.ndarray  # one long row; client i's update is a window that starts at i
    gone: frozenset[int]  # share their keys, and send no vector

    def update(self, client: int) -> np.ndarray:
        return self.updates[client : client + self.codec.dimension]


@dataclass
class Clients:
    """Some of the clients, one after another, and the CPU-seconds they took by stage."""

    setup: Setup
    ids: Sequence[int]
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sessions = SessionsInMemory()
        self._clients = {
            i: Client(
                self.setup.params,
                i,
                identity=self.setup.identities[i],
                directory=self.setup.directory,
                sessions=sessions,
                model=b"model",
            )
            for i in self.ids
        }

    def answers(self, stage: Stage, incoming: Mapping[int, bytes]) -> Messages:
        """Each client's message of ``stage``, after what the server sent it."""
        for i in self.ids:
            if stage is Stage.ADVERTISE_KEYS or i in incoming:
                started = time.thread_time()
                data = self._answer(stage, i, incoming)
                self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + time.thread_time() - started
                if data is not None:
                    yield i, data

    def _answer(self, stage: Stage, i: int, incoming: Mapping[int, bytes]) -> bytes | None:
        client, setup = self._clients[i], self.setup
        if stage is Stage.ADVERTISE_KEYS:
            return encode(client.start())
        made = client.receive(decode(incoming[i], peer=None))
        if stage is not Stage.MASKED_INPUT:
            return encode(made[0])
        if i in setup.gone:
            return None
        vector = np.zeros(setup.codec.length, setup.params.dtype)
        setup.codec.add_encoded(vector, setup.update(i), os.urandom(32))
        return encode(client.contribute(vector))


class Shelf:
    """Memory that a process of clients shares with the server's, for masked vectors: a pipe would copy them often.

    Slots are filled and emptied in turn. Whoever fills waits for ``free``.
    """

    def __init__(self, context: BaseContext, slot_bytes: int) -> None:
        self._memory, self.slot_bytes = memoryview(mmap.mmap(-1, SLOTS * slot_bytes)), slot_bytes
        self.free = context.Semaphore(SLOTS)
        self._turn = 0

    def put(self, data: bytes) -> None:
        self.free.acquire()
        self.take(len(data))[:] = data

    def take(self, size: int) -> memoryview:
        """The next slot, good until it is set free."""
        start, self._turn = self._turn * self.slot_bytes, (self._turn + 1) % SLOTS
        return self._memory[start : start + size]


class Processes:
    """The clients, spread over processes; the same as ``Clients`` from outside."""

    def __init__(self, setup: Setup, ids: Sequence[int], count: int) -> None:
        # Forked before there are threads: identities and updates need not be sent.
        context = multiprocessing.get_context("fork")
        params = setup.params
        # Besides the vector there are a header and the tokens.
        slot = packed_bytes(params.dimension, params.ring_bits) + 64 * len(params.client_ids) + 1024
        self._ends: dict[Connection, tuple[Connection, Shelf, set[int]]] = {}
        self._processes = []
        # Vectors are most of the work: as many of them to each.
        ids = sorted(ids, key=lambda i: i in setup.gone)
        for share in range(count):
            asked, ask = context.Pipe(duplex=False)
            answers, answer = context.Pipe(duplex=False)
            members, shelf = ids[share::count], Shelf(context, slot)
            process = context.Process(target=_serve, args=(asked, answer, shelf, setup, members), daemon=True)
            process.start()
            asked.close()
            answer.close()
            self._ends[answers] = ask, shelf, set(members)
            self._processes.append(process)
        self.seconds: dict[str, float] = {}
        self.peak_rss_mb = 0.0

    def answers(self, stage: Stage, incoming: Mapping[int, bytes]) -> Messages:
        for ask, _, members in self._ends.values():
            ask.send((stage, {i: data for i, data in incoming.items() if i in members}))
        busy = list(self._ends)
        while busy:
            for end in wait(busy):
                client, message = end.recv()
                if client is None:
                    busy.remove(end)
                elif isinstance(message, bytes):
                    yield client, message
                else:
                    shelf = self._ends[end][1]
                    yield client, shelf.take(message)
                    shelf.free.release()

    def close(self) -> None:
        """Learn what the processes used, and end them."""
        for answers, (ask, _, _) in self._ends.items():
            ask.send(None)
            seconds, peak = answers.recv()
            self.peak_rss_mb += peak
            for name, value in seconds.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + value
        for process in self._processes:
            process.join()


def _serve(asked: Connection, answer: Connection, shelf: Shelf, setup: Setup, ids: Sequence[int]) -> None:
    clients = Clients(setup, ids)
    while (question := asked.recv()) is not None:
        for client, data in clients.answers(*question):
            if question[0] is Stage.MASKED_INPUT:
                shelf.put(data)
                answer.send((client, len(data)))
            else:
                answer.send((client, data))
        answer.send((None, None))
    answer.send((clients.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def play(setup: Setup, clients: Clients | Processes, cores: int) -> dict[str, Any]:
    """The round from the first message to the decoded sum; raises when the sum is wrong."""
    wall, server_seconds = time.perf_counter(), 0.0
    sent = dict.fromkeys(setup.params.client_ids, 0)
    got = dict.fromkeys(setup.params.client_ids, 0)
    started = time.process_time()
    server = Server(setup.params, setup.directory, model=b"model", workers=cores)
    server_seconds += time.process_time() - started
    incoming: dict[int, bytes] = {}
    for stage in Stage:
        for client, data in clients.answers(stage, incoming):
            started = time.thread_time()
            server.receive(decode(data, peer=client))
            server_seconds += time.thread_time() - started
            sent[client] += len(data)
        started = time.process_time()  # and not the thread's: it unmasks with threads of its own
        outgoing = server.close_stage()
        incoming, encoded = {}, {}
        for client, message in outgoing.items():
            # The survivor list is one message to all.
            if id(message) not in encoded:
                encoded[id(message)] = encode(message)
            incoming[client] = encoded[id(message)]
        server_seconds += time.process_time() - started
        for client, data in incoming.items():
            got[client] += len(data)
    started = time.process_time()
    total = setup.codec.decode(server.total)
    server_seconds += time.process_time() - started
    wall = time.perf_counter() - wall
    _check(setup, server, total)
    survivors = server.survivors
    return {
        "wall": wall,
        "server_seconds": server_seconds,
        "survivors": len(survivors),
        "upload_bytes": float(np.mean([sent[i] for i in survivors])),
        "download_bytes": float(np.mean([got[i] for i in survivors])),
    }


def _check(setup: Setup, server: Server, total: np.ndarray) -> None:
    """Each coordinate within one step of the grid for each survivor; a mask left on is off by half the ring."""
    if set(server.survivors) != set(setup.params.client_ids) - setup.gone:
        raise RuntimeError("the wrong clients survived")
    expected = np.zeros(setup.codec.dimension)
    for client in server.survivors:
        expected += setup.update(client)
    error = np.abs(total - expected).max() * setup.codec.scale
    if not error <= len(server.survivors):
        raise RuntimeError(f"the sum is wrong by {error} steps of the grid")


def make_setup(args: argparse.Namespace) -> Setup:
    if args.ring_bits == "auto":
        codec = FixedPointCodec.narrowest(args.clients, CLIP, args.dim)
    else:
        codec = FixedPointCodec.for_cohort(args.clients, CLIP, args.dim, int(args.ring_bits))
    params = SecAggParams.for_cohort(
        args.clients,
        codec.length,
        corrupt=args.corrupt,
        dropped=max(args.dropout, 0.1),
        adversary=Adversary(args.adversary),
        ring_bits=codec.ring_bits,
    )
    identities = {i: Identity.generate() for i in params.client_ids}
    rng = np.random.default_rng(1)
    # Windows of one row have nearly one norm; 0.9 leaves room for what differs, and for rounding.
    updates = rng.standard_normal(args.dim + args.clients, dtype=np.float32)
    updates *= np.float32(0.9 * CLIP / np.linalg.norm(updates.astype(np.float64)))
    gone = rng.choice(args.clients, round(args.dropout * args.clients), replace=False)
    directory = Directory({i: identity.public for i, identity in identities.items()})
    return Setup(params, codec, identities, directory, updates, frozenset(int(i) for i in gone))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--corrupt", type=float, default=0.1)
    parser.add_argument("--adversary", required=True)
    parser.add_argument("--ring-bits", required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    setup = make_setup(args)
    params = setup.params
    several = args.cores > 1
    clients = Processes(setup, params.client_ids, args.cores) if several else Clients(setup, params.client_ids)
    floors = [secagg_floor.seconds_per_byte(params.dtype)]
    figures = play(setup, clients, args.cores)
    floors.append(secagg_floor.seconds_per_byte(params.dtype))
    peak = measure.peak_rss_mb()
    if isinstance(clients, Processes):
        clients.close()
        peak = measure.peak_rss_mb() + clients.peak_rss_mb
    gone, vector_bytes = len(setup.gone), params.dimension * params.dtype.itemsize
    masks = figures["survivors"] * (params.neighbours + 1)  # a client's own and its neighbours'
    # The server takes off each survivor's own, and what is left of each vanished client's.
    unmasked = figures["survivors"] + gone * params.neighbours * (args.clients - gone) / (args.clients - 1)
    client_seconds = sum(clients.seconds.values())
    per_byte = {name: float(np.mean([floor[name] for floor in floors])) for name in floors[0]}
    masking = secagg_floor.masking(params.dtype, params.dimension, params.neighbours + 1)
    measure.write(
        args.out,
        {
            **figures,
            "clients": args.clients,
            "dim": args.dim,
            "dropout": args.dropout,
            "cores": args.cores,
            "ring_bits": params.ring_bits,
            "lanes": setup.codec.lanes.count if setup.codec.lanes else 1,
            "neighbours": params.neighbours,
            "threshold": params.threshold,
            "adversary": args.adversary,
            "client_seconds": client_seconds / args.clients,
            "client_seconds_per_stage": {name: s / args.clients for name, s in clients.seconds.items()},
            "total_seconds": client_seconds + figures["server_seconds"],
            "floor_seconds": (masks + unmasked) * vector_bytes * per_byte["counter mode"],
            "own_keystream_seconds": (masks + unmasked) * vector_bytes * per_byte["as used"],
            "server_own_keystream_seconds": unmasked * vector_bytes * per_byte["as used"],
            **masking,
            "peak_rss_mb": peak,
        },
        ("privfed", "cryptography", "numpy"),
    )


if __name__ == "__main__":
    main()
