"""Secure aggregation: CPU-seconds, bytes and memory of one round, over its floor and against Flower's SecAgg+.

    python benchmarks/secagg.py --clients 50 --dim 1000000 --dropout 0.1 --peers flower
    python benchmarks/secagg.py --clients 1000 --dim 1000000 --dropout 0.05 --cores 2
    python benchmarks/secagg.py --clients 10000 --dim 10000 --json

Each party's work is measured in CPU-seconds of a process of its own; what is counted is in ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import environments
import processes
import table

HERE = Path(__file__).resolve().parent
LIMIT_SECONDS = 3600
PEERS = ("flower",)
CLEAR_BYTES = 2
"""Of a coordinate that is sent in the clear, at 16-bit precision."""


def main(argv: list[str] | None = None) -> int:
    """Measure the round, and the peers asked for; the exit code is 1 when one of them failed."""
    args = _arguments(argv)
    try:
        row = measured(args)
    except (environments.InstallError, processes.ProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(row))
    else:
        print(table.secure_sums([row]))
    if args.markdown:
        title = f"Secure aggregation, {args.clients:,} clients"
        table.replace_section(args.markdown, title, table.secure_sums([row]))
    return 0


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """One round on one core, the same on several if asked for, and each peer's."""
    common = ["--clients", str(args.clients), "--dim", str(args.dim), "--dropout", str(args.dropout)]
    command = [sys.executable, str(HERE / "secagg_privfed.py"), *common, "--adversary", args.adversary]
    command += ["--ring-bits", args.ring_bits]
    row = processes.figures([*command, "--cores", "1"], LIMIT_SECONDS)
    row["total_over_floor"] = row["total_seconds"] / row["floor_seconds"]
    row["total_over_own_keystream"] = row["total_seconds"] / row["own_keystream_seconds"]
    row["upload_over_clear"] = row["upload_bytes"] / (CLEAR_BYTES * args.dim)
    if args.cores > 1:
        several = processes.figures([*command, "--cores", str(args.cores)], LIMIT_SECONDS)
        row |= {"cores": args.cores, "wall_on_cores": several["wall"], "speedup": row["wall"] / several["wall"]}
        row["other_load"] = max(row["other_load"], several["other_load"])
        row["cores_peak_rss_mb"] = several["peak_rss_mb"]
    if "flower" in args.peers:
        script = HERE / "peer_flower.py"
        shape = ["--neighbours", str(row["neighbours"]), "--threshold", str(row["threshold"])]
        peer = processes.figures([environments.interpreter(script), str(script), *common, *shape], LIMIT_SECONDS)
        row["flower"] = peer
        row["client_vs_flower"] = peer["client_seconds"] / row["client_seconds"]
        row["server_vs_flower"] = peer["server_seconds"] / row["server_seconds"]
        row["versions"] |= {name: number for name, number in peer["versions"].items() if name != "numpy"}
        row["other_load"] = max(row["other_load"], peer["other_load"])
    return row


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    def chosen(text: str) -> list[str]:
        wanted = [name for name in text.split(",") if name]
        unknown = [name for name in wanted if name not in PEERS]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(PEERS)}")
        return wanted

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True, help="coordinates of an update")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="share of the clients that share keys and vanish"
    )
    parser.add_argument(
        "--adversary",
        choices=["semi-honest", "active"],
        default="semi-honest",
        help="whom neighbours and threshold are chosen against",
    )
    parser.add_argument("--cores", type=int, default=1, help="also play the round on as many cores at once")
    parser.add_argument(
        "--ring-bits", default="auto", help="8 to 64, or auto: as many as the sum of 16-bit values takes"
    )
    parser.add_argument("--peers", type=chosen, default="", help=", ".join(PEERS))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--markdown", type=Path, help="also put the table into this file")
    args = parser.parse_args(argv)
    if not 1 <= args.cores <= len(os.sched_getaffinity(0)):
        parser.error(f"--cores: must be 1 to {len(os.sched_getaffinity(0))} here (got {args.cores})")
    return args


if __name__ == "__main__":
    sys.exit(main())
