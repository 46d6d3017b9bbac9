"""Round time of `executor = "ray"` against workers and cohort, and what Ray costs over `local`.

    python benchmarks/scale.py
    python benchmarks/scale.py --workers 1,2 --cohorts 50,100 --json

The rounds are W3's local work (one step of an MLP 784-200-10, clip) over random images, added up in as many parts
as there are cores. One cluster on this machine serves all points. Each sum is compared with ``local``'s: where one
bit differs, the program says so and ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# First the checkout, so that the package `attacks` is not taken for the benchmark of that name beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import workloads

WARM_UP = 2
MIB = 1 << 20


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=_numbers, default=(1, 2, 4))
    parser.add_argument("--cohorts", type=_numbers, default=(100, 400, 1600))
    parser.add_argument("--examples", type=int, default=20, help="of each client")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="an object a line in place of the table")
    args = parser.parse_args(argv)
    rows = measured(args)
    for row in rows:
        print(json.dumps(row) if args.json else _line(row), flush=True)
    if all(row["same_bits"] for row in rows):
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
    w, clients = workloads.WORKLOADS["W3"], max(args.cohorts)
    model = build_model(w.model, (workloads.SIDE, workloads.SIDE, 1), workloads.CLASSES)
    rng, count = np.random.default_rng(0), clients * args.examples
    data = (
        rng.integers(0, 256, (count, workloads.SIDE, workloads.SIDE, 1), np.uint8),
        rng.integers(0, workloads.CLASSES, count, np.int32),
        np.arange(clients + 1) * args.examples,
    )
    training, parts = LocalTraining(w.learning_rate, 1, w.batch), available_cores()
    weights = model.initial_vector(1)

    def row(workers: int, cohort: int, work: Any, plain: float | None, wanted: Any) -> tuple[dict[str, Any], Any]:
        seconds, total = _timed(lambda: work.clipped_sum(weights, range(cohort), (1, 3), w.clip), args.rounds)
        figures = {"workers": workers, "cohort": cohort, "seconds_per_round": seconds}
        figures["over_local_seconds"] = None if plain is None else seconds - plain
        return {**figures, "same_bits": wanted is None or bool((total == wanted).all())}, total

    rows, plain, totals = [], dict[int, float](), dict[int, Any]()
    local = LocalClientWork(model, *data, training)
    for cohort in args.cohorts:
        figures, totals[cohort] = row(0, cohort, local, None, None)
        plain[cohort] = figures["seconds_per_round"]
        rows.append(figures)
    store = LEAST_STORE_MIB + 2 * data[0].nbytes // MIB + 200
    cluster = Cluster(None, max(args.workers), store)
    try:
        for workers in args.workers:
            with RayClientWork(model, *data, training, parts=parts, workers=workers) as work:
                rows += [row(workers, c, work, plain[c], totals[c])[0] for c in args.cohorts]
    finally:
        cluster.close()
    return rows


def _timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Median seconds after the warm-up, and the sum."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        done = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[min(WARM_UP, rounds - 1) :]), done.total


def _line(row: dict[str, Any]) -> str:
    who = f"ray, {row['workers']} workers" if row["workers"] else "local"
    over = "" if row["over_local_seconds"] is None else f"  {1000 * row['over_local_seconds']:+8.1f} ms over local"
    bits = "same bits" if row["same_bits"] else "OTHER BITS"
    return f"{who:<16} cohort {row['cohort']:>6}  {1000 * row['seconds_per_round']:8.1f} ms a round{over}  {bits}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
