"""Round time of `executor = "ray"` against workers and cohort, and what Ray costs over `local`.

    python benchmarks/scale.py
    python benchmarks/scale.py --workers 1,2 --cohorts 50,100 --json

The rounds are W3's local work (one step of an MLP 784-200-10, clip) over random images, of another cohort each
time, added up in as many parts as there are cores. One cluster on this machine serves all points. A first round
trains everybody, so that all examples are where they stay. Each last sum is compared with that of ``local``: where
one bit differs, the program says so and ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# First the checkout, so that the package `attacks` is not taken for the benchmark of that name beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import table
import workloads

WARM_UP = 2
MIB = 1 << 20


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=_numbers, default=(1, 2, 4))
    parser.add_argument("--cohorts", type=_numbers, default=(100, 400, 1600))
    parser.add_argument("--clients", type=int, default=3200)
    parser.add_argument("--examples", type=int, default=20, help="of each client")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="an object a line in place of the table")
    parser.add_argument("--markdown", type=Path, help="also put the table into this file")
    args = parser.parse_args(argv)
    if args.clients < max(args.cohorts):
        parser.error(f"--cohorts {max(args.cohorts)}: there are {args.clients} clients")
    rows = measured(args)
    text = table.on_ray(rows, args.clients, args.examples, os.getloadavg()[0])
    print("\n".join(json.dumps(row) for row in rows) if args.json else text)
    if args.markdown:
        table.replace_section(args.markdown, "Rounds on Ray", text)
    if all(row.get("same_bits", True) for row in rows):
        return 0
    print("a sum differs from local's", file=sys.stderr)
    return 1


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of workers and each cohort; 0 workers is ``local``."""
    from privfed.executors.local import LocalClientWork, available_cores, configure_threads
    from privfed.executors.ray import RayClientWork
    from privfed.executors.ray_cluster import LEAST_STORE_MIB, Cluster
    from privfed.federated.client_work import LocalTraining
    from privfed.models.build import build_model

    configure_threads()
    w, clients = workloads.WORKLOADS["W3"], args.clients
    model = build_model(w.model, (workloads.SIDE, workloads.SIDE, 1), workloads.CLASSES)
    rng, count = np.random.default_rng(0), clients * args.examples
    data = (
        rng.integers(0, 256, (count, workloads.SIDE, workloads.SIDE, 1), np.uint8),
        rng.integers(0, workloads.CLASSES, count, np.int32),
        np.arange(clients + 1) * args.examples,
    )
    training, parts = LocalTraining(w.learning_rate, 1, w.batch), available_cores()
    weights = model.initial_vector(1)

    cohorts = {
        size: [np.sort(rng.choice(clients, size, replace=False)).tolist() for _ in range(args.rounds)]
        for size in args.cohorts
    }

    def trained(work: Any, cohort: list[int]) -> Any:
        return work.clipped_sum(weights, cohort, (1, 3), w.clip).total

    def row(workers: int, size: int, work: Any, plain: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
        sent = getattr(work, "sent_bytes", 0)
        seconds, total = _timed(partial(trained, work), cohorts[size])
        figures = {"workers": workers, "cohort": size, "seconds_per_round": seconds}
        if plain is not None:
            figures["over_local_seconds"] = seconds - plain["seconds_per_round"]
            figures["sent_mb_per_round"] = (work.sent_bytes - sent) / 1e6 / args.rounds
        return figures, total

    rows, plain, totals = [], dict[int, Any](), dict[int, Any]()
    local = LocalClientWork(model, *data, training)
    for size in args.cohorts:
        plain[size], totals[size] = row(0, size, local, None)
        rows.append(plain[size])
    store = LEAST_STORE_MIB + data[0].nbytes // MIB + 200
    cluster = Cluster(None, max(args.workers), store)
    try:
        for workers in args.workers:
            with RayClientWork(model, *data, training, parts=parts, workers=workers) as work:
                began = time.perf_counter()
                trained(work, list(range(clients)))
                first = time.perf_counter() - began
                for size in args.cohorts:
                    figures, total = row(workers, size, work, plain[size])
                    same = bool((total == totals[size]).all())
                    rows.append({**figures, "first_seconds": first, "same_bits": same})
    finally:
        cluster.close()
    return rows


def _timed(work: Callable[[list[int]], Any], cohorts: list[list[int]]) -> tuple[float, Any]:
    """Median seconds after the warm-up, and the last result."""
    seconds = []
    for cohort in cohorts:
        began = time.perf_counter()
        done = work(cohort)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[min(WARM_UP, len(seconds) - 1) :]), done


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
