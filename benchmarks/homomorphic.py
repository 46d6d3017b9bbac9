"""One sum in the clear, under masking, in BFV and in CKKS: CPU-seconds by party, bytes, and the largest error.

    python benchmarks/homomorphic.py --clients 20 --dim 100000 --markdown benchmarks/RESULTS.md
    python benchmarks/homomorphic.py --clients 20 --dim 100000 --json

All rows sum the same updates in one process, and each party's CPU-seconds are taken around its own work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import table
from numpy.typing import NDArray

from privfed.secagg import (
    Client,
    Directory,
    FixedPointCodec,
    Identity,
    SecAggParams,
    Server,
    SessionsInMemory,
    wire,
)
from privfed.secagg.homomorphic import BfvParams, CiphertextSum, Encryptor, KeyHolder, tenseal
from privfed.secagg.packing import packed_bytes
from privfed.secagg.states import Stage

CLIP = 1.0
CKKS_DEGREE, CKKS_BITS, CKKS_SCALE = 8192, [60, 40, 60], 2.0**40
"""TenSEAL's usual parameters: 128 bits of security, and one multiplication that a sum does not use."""
Updates = list[NDArray[np.float64]]
T = TypeVar("T")


class Clock:
    """CPU-seconds of this process by party."""

    def __init__(self) -> None:
        self.spent = {"client": 0.0, "server": 0.0, "key holder": 0.0}

    def __call__(self, party: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        found = work()
        self.spent[party] += time.process_time() - started
        return found


def clear(updates: Updates, codec: FixedPointCodec) -> dict[str, Any]:
    """The ring's integers, packed but not hidden."""
    clock, total = Clock(), np.zeros(len(updates[0]), np.uint32)
    for i, update in enumerate(updates):
        vector = clock("client", lambda u=update, i=i: encoded(codec, u, i))
        clock("server", lambda v=vector: np.add(total, v, out=total))
    total &= np.uint32(2**codec.ring_bits - 1)
    sent = packed_bytes(len(total), codec.ring_bits)
    return row("clear ring sum", clock, len(updates), sent, codec.decode(total), updates)


def masking(updates: Updates, codec: FixedPointCodec) -> dict[str, Any]:
    """The protocol among all clients, with every message that it takes."""
    count, dimension, clock, sent = len(updates), len(updates[0]), Clock(), 0
    params = SecAggParams(
        session=b"benchmark session",
        round_number=1,
        client_ids=tuple(range(count)),
        threshold=count // 2 + 1,
        dimension=dimension,
        ring_bits=codec.ring_bits,
    )
    identities = {i: Identity.generate() for i in params.client_ids}
    directory = Directory({i: identity.public for i, identity in identities.items()})
    server = clock("server", lambda: Server(params, directory))
    clients = {
        i: clock(
            "client",
            lambda i=i: Client(
                params, i, identity=identities[i], directory=directory, sessions=SessionsInMemory()
            ),
        )
        for i in params.client_ids
    }
    messages = [clock("client", client.start) for client in clients.values()]
    for stage in Stage:
        for message in messages:
            sent += wire.size(message)
            clock("server", lambda m=message: server.receive(m))
        answers = clock("server", server.close_stage)
        if stage is Stage.UNMASK:
            break
        messages = []
        for i, client in clients.items():
            messages += clock("client", lambda c=client, a=answers[i]: list(c.receive(a)))
            if stage is Stage.SHARE_KEYS:
                vector = clock("client", lambda i=i: encoded(codec, updates[i], i))
                messages.append(clock("client", lambda c=client, v=vector: c.contribute(v)))
    return row("masking protocol", clock, count, sent / count, codec.decode(server.total), updates)


def bfv(updates: Updates, codec: FixedPointCodec) -> dict[str, Any]:
    """The same integers, encrypted: mode ``bfv``."""
    clock, sent = Clock(), 0
    params = BfvParams.for_sum(len(updates), codec.ring_bits)
    holder = clock("key holder", lambda: KeyHolder(params))
    server = clock("server", lambda: CiphertextSum(params, holder.public_key))
    for i, update in enumerate(updates):
        client = clock("client", lambda: Encryptor(params, holder.public_key))
        vector = clock("client", lambda u=update, i=i: encoded(codec, u, i))
        upload = clock("client", lambda c=client, v=vector: c.encrypt(v))
        sent += sum(map(len, upload))
        clock("server", lambda u=upload: server.add(u))
    encrypted = clock("server", lambda: server.total)
    total = clock("key holder", lambda: holder.decrypt(encrypted, len(updates[0])))
    return row("BFV (mode bfv)", clock, len(updates), sent / len(updates), codec.decode(total), updates)


def ckks(updates: Updates, codec: FixedPointCodec) -> dict[str, Any]:
    """Floating-point updates under CKKS, which is what most published federated learning under encryption uses."""
    library, clock, sent, slots = tenseal(), Clock(), 0, CKKS_DEGREE // 2

    def keys() -> Any:
        context = library.context(
            library.SCHEME_TYPE.CKKS, CKKS_DEGREE, coeff_mod_bit_sizes=CKKS_BITS, n_threads=1
        )
        context.global_scale = CKKS_SCALE
        return context

    def encrypt(update: NDArray[np.float64]) -> list[bytes]:
        public = library.context_from(public_key, n_threads=1)
        parts = (update[k : k + slots].tolist() for k in range(0, len(update), slots))
        return [library.ckks_vector(public, part).serialize() for part in parts]

    def add(upload: list[bytes]) -> None:
        parts = [library.ckks_vector_from(adder, part) for part in upload]
        for k, part in enumerate(parts):
            totals[k] = part if k not in totals else totals[k] + part

    holder = clock("key holder", keys)
    public_key = clock("key holder", lambda: holder.serialize(save_relin_keys=False, save_galois_keys=False))
    adder = clock("server", lambda: library.context_from(public_key, n_threads=1))
    totals: dict[int, Any] = {}
    for update in updates:
        upload = clock("client", lambda u=update: encrypt(u))
        sent += sum(map(len, upload))
        clock("server", lambda u=upload: add(u))
    encrypted = clock("server", lambda: [part.serialize() for part in totals.values()])
    parts = clock("key holder", lambda: [library.ckks_vector_from(holder, e).decrypt() for e in encrypted])
    return row("CKKS", clock, len(updates), sent / len(updates), np.concatenate(parts), updates)


def encoded(codec: FixedPointCodec, update: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """The same rounding in every row, by a seed: what is measured here is the sum."""
    words = np.random.default_rng(seed).integers(0, 2**64, len(update), dtype=np.uint64)
    return codec.encode(update, words)


def row(
    name: str, clock: Clock, clients: int, upload: float, total: NDArray[np.float64], updates: Updates
) -> dict[str, Any]:
    """One line: seconds of one client, of the server and of the key holder, and the error of the sum."""
    return {
        "sum": name,
        "client_seconds": clock.spent["client"] / clients,
        "server_seconds": clock.spent["server"],
        "key_holder_seconds": clock.spent["key holder"],
        "upload_bytes": upload,
        "largest_error": float(np.abs(total - np.sum(updates, 0)).max()),
        "sha256_of_sum": hashlib.sha256(np.ascontiguousarray(total).tobytes()).hexdigest(),
    }


def markdown(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The table, and under what it holds."""
    lines = [
        "| sum | a client, CPU-s | server, CPU-s | key holder, CPU-s | upload a client, bytes | largest error |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['sum']} | {r['client_seconds']:.4f} | {r['server_seconds']:.4f} | {r['key_holder_seconds']:.4f} | "
        f"{r['upload_bytes']:,.0f} | {r['largest_error']:.1e} |"
        for r in rows
    ]
    same = len({r["sha256_of_sum"] for r in rows[:3]}) == 1
    note = (
        f"{args.clients} clients of norm {CLIP:g}, {args.dim:,} coordinates, ring of {args.ring_bits} bits; "
        f"errors against the floating-point sum. "
        f"The first three sums are {'the same bits' if same else 'NOT the same'}: "
        f"their error is that of rounding to the grid. tenseal {version('tenseal')}; {table.machine()}."
    )
    return "\n".join([*lines, "", note])


def main(argv: list[str] | None = None) -> int:
    """Measure all four; the exit code is 1 when sums that must agree to the bit do not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--dim", type=int, default=100_000, help="coordinates of an update")
    parser.add_argument("--ring-bits", type=int, default=32, help="17 to 32")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--markdown", type=Path, help="also put the table into this file")
    args = parser.parse_args(argv)
    if not 17 <= args.ring_bits <= 32 or args.clients < 3 or args.dim < 1:
        parser.error("--ring-bits must be 17 to 32, --clients 3 or more, --dim 1 or more")
    rng = np.random.default_rng(0)
    directions = [rng.normal(size=args.dim) for _ in range(args.clients)]
    codec = FixedPointCodec.for_cohort(args.clients, CLIP, args.dim, ring_bits=args.ring_bits)
    # Rounding may lengthen a vector, which is clipped so much shorter before.
    longest = CLIP - codec.rounding_slack
    updates = [longest * v / np.linalg.norm(v) for v in directions]
    rows = [measure(updates, codec) for measure in (clear, masking, bfv, ckks)]
    text = markdown(rows, args)
    print(json.dumps(rows) if args.json else text)
    if args.markdown:
        table.replace_section(args.markdown, f"Homomorphic encryption, {args.clients} clients", text)
    return int(len({r["sha256_of_sum"] for r in rows[:3]}) != 1)


if __name__ == "__main__":
    sys.exit(main())
