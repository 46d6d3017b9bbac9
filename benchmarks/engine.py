"""PrivFed and its peers on the same workloads, side by side in one run, each in an environment of its own.

    python benchmarks/engine.py --workload W1 --engines privfed,pfl,fedjax,tff
    python benchmarks/engine.py --workload W2 --engines privfed,pfl --rounds 5 --json

Engines run one after another, each as a process of its own that ends with its children. What they share is in
``workloads.py``; what is fair about it, and what is not, in ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import environments
import numpy as np
import processes
import table
import workloads

HERE = Path(__file__).resolve().parent
USUAL_DATA = "/usr/share/datasets/fashion-mnist"
LIMIT_SECONDS = 3600

PEERS = {"pfl": "peer_pfl.py", "fedjax": "peer_fedjax.py"}
OWN = {"privfed": "peer_privfed.py", "tff": "peer_tff.py"}
"""Run by the Python that runs this: the project's environment holds both."""
VARIANTS = {"privfed": ("ring", "protocol"), "pfl": ("threads", "processes"), "fedjax": ("pmap",), "tff": ()}

REFERENCE = {"W1": {20: {"test_accuracy": 0.7975, "train_accuracy": 0.8070}}}
"""What every exact engine reaches, by workload and rounds."""
TOLERANCE = 0.003


class EngineError(Exception):
    """An engine's figures cannot be right."""


def main(argv: list[str] | None = None) -> int:
    """Run the engines asked for; the exit code is 1 when one of them failed."""
    args = _arguments(argv)
    folder = Path(args.data)
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        print(f"--data {folder}: no train-images-idx3-ubyte.gz there; name a folder of MNIST-like IDX files")
        return 2
    rows, failed = [], False
    rounds = args.rounds or workloads.WORKLOADS[args.workload].rounds
    for engine in args.engines:
        try:
            peak = sgemm_gflops()  # each time, since other work on the machine lowers both
            row = measured(engine, args.workload, rounds, folder)
            check(row)
        except (EngineError, environments.InstallError, processes.ProcessError) as error:
            print(f"{engine}: {error}", file=sys.stderr)
            failed = True
            continue
        rows.append(compared(row, rows, peak))
        if args.json:
            print(json.dumps(rows[-1]), flush=True)
        else:
            print(f"{engine}: {rows[-1]['seconds_per_round']:.3f} s a round", file=sys.stderr)
    if not args.json:
        print(table.engines(rows))
    if args.markdown:
        table.replace_section(args.markdown, args.workload, table.engines(rows))
    return int(failed)


def measured(engine: str, workload: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Figures of one engine, from a process of its own."""
    name, _, variant = engine.partition("-")
    script = HERE / {**OWN, **PEERS}[name]
    python = environments.interpreter(script) if name in PEERS else sys.executable
    command = [python, str(script), "--workload", workload, "--rounds", str(rounds), "--variant", variant]
    figures = processes.figures([*command, "--data", str(folder)], LIMIT_SECONDS)
    return {"engine": engine, "workload": workload, **figures}


def check(row: dict[str, Any]) -> None:
    """Refuse figures of an engine that did not train the same model.

    Raises:
        EngineError: An accuracy is not the known one.
    """
    for key, known in REFERENCE.get(row["workload"], {}).get(row["rounds"], {}).items():
        if not abs(row[key] - known) <= TOLERANCE:
            raise EngineError(f"{key} is {row[key]:.4f} and every exact engine reaches {known:.4f}")


def compared(row: dict[str, Any], earlier: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    """``row`` with its ratios to PrivFed, and its share of the machine's peak.

    A variant of PrivFed brings along what it is compared with, from rounds between its own.
    """
    own = row.get("beside") or next((r for r in [*earlier, row] if r["engine"] == "privfed"), None)
    speed = workloads.WORKLOADS[row["workload"]].gflop / row["seconds_per_round"]
    return {
        **row,
        "ratio": row["seconds_per_round"] / own["seconds_per_round"] if own else None,
        "cpu_ratio": row["cpu_per_round"] / own["cpu_per_round"] if own else None,
        "gflops": speed,
        "sgemm_gflops": peak,
        "share_of_peak": speed / peak,
    }


def sgemm_gflops(size: int = 2048, repeats: int = 5) -> float:
    """What the machine can do at best: float32 products of square matrices, one for each core at a time."""
    cores = len(os.sched_getaffinity(0))
    pairs = [np.random.default_rng(i).random((2, size, size), dtype=np.float32) for i in range(cores)]
    out = [np.empty((size, size), np.float32) for _ in range(cores)]
    fastest = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repeats + 1):
            started = time.perf_counter()
            list(pool.map(lambda pair, into: np.matmul(pair[0], pair[1], out=into), pairs, out))
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 * cores / fastest / 1e9


def _engine_names() -> Iterator[str]:
    for name in {**OWN, **PEERS}:
        yield name
        yield from (f"{name}-{variant}" for variant in VARIANTS[name])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    names = list(_engine_names())

    def chosen(text: str) -> list[str]:
        wanted = text.split(",")
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(names)}")
        # PrivFed first, whatever the order: the others are compared with it.
        return sorted(dict.fromkeys(wanted), key=lambda name: name != "privfed")

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=list(workloads.WORKLOADS), required=True)
    parser.add_argument("--engines", type=chosen, default="privfed,pfl,fedjax,tff", help=", ".join(names))
    parser.add_argument("--rounds", type=int, help="rounds to train, warm-up included")
    parser.add_argument("--data", default=os.environ.get("FASHION_MNIST", USUAL_DATA), help="folder of IDX files")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--markdown", type=Path, help="also put the table into this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
