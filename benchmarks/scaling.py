"""How a round's time and memory grow with the cohort and with the population.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --cohorts 100,400 --populations 1000,100000 --json

The model and the local work are W3's (one step of an MLP 784-200-10, clip, noise); pixels are random, since only
their number matters here. The population lies in a folder of ``.npy`` files and stays there: the source is
``npy:FOLDER``. Each point is a process of its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# First the checkout, so that the package `attacks` is not taken for the benchmark of that name beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import processes
import table
import workloads

COHORTS = (100, 200, 400, 800, 1600, 3200)
POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS = 7
BLOCK = 4096
"""Clients written at a time."""
LIMIT_SECONDS = 300.0
"""Of one point."""


def main(argv: list[str] | None = None) -> int:
    """Measure both sweeps and print them."""
    args = _arguments(argv)
    if args.point:
        figures = point(Path(args.point[0]), int(args.point[1]), args.rounds)
        args.out.write_text(json.dumps(figures), encoding="utf-8")
        return 0
    rows = []
    sweeps = [("population", clients, args.cohort) for clients in args.populations]
    sweeps += [("cohort", args.clients, cohort) for cohort in args.cohorts]
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for clients in sorted({clients for _, clients, _ in sweeps}):
            folder = Path(scratch) / str(clients)
            write_population(folder, clients, args.examples)
            for sweep, size, cohort in sweeps:
                if size == clients:
                    rows.append({"sweep": sweep, **_in_a_process(folder, cohort, args.rounds)})
                    print(json.dumps(rows[-1]) if args.json else _progress(rows[-1]), flush=True)
            for file in folder.iterdir():
                file.unlink()
    text = table.scaling(rows, fits(rows), args.examples)
    if args.json:
        print(json.dumps({"fits": fits(rows)}))
    else:
        print(text)
    if args.markdown:
        table.replace_section(args.markdown, "Scaling", text)
    return 0


def point(folder: Path, cohort: int, rounds: int) -> dict[str, Any]:
    """Train a few rounds on the population of ``folder``; runs in a process of its own."""
    from privfed.composition import compose
    from privfed.federated.cohorts import sample_cohort
    from privfed.settings_file import resolve_settings

    w = workloads.WORKLOADS["W3"]
    experiment = compose(
        resolve_settings(
            {
                "data": {"source": f"npy:{folder}", "partition": "natural"},
                "model": {"name": w.model},
                "training": {"rounds": rounds, "batch_size": w.batch, "learning_rate": w.learning_rate},
                "cohort": {"sampling": "fixed", "size": cohort},
                "privacy": {
                    "mechanism": "gaussian",
                    "clip_norm": w.clip,
                    "noise_multiplier": w.noise_multiplier,
                },
                "attacks": {"enabled": False},
            }
        )
    )
    clients = experiment.population.clients
    loaded = measure.peak_rss_mb()
    timed, weights = measure.Rounds(), experiment.initial_weights
    with experiment.client_work() as work:
        one_round = experiment.round(work)
        state = one_round.initialize(len(weights))
        for number in range(1, rounds + 1):
            with timed:
                drawn = sample_cohort(number, clients, experiment.sampling, 0.0, experiment.streams)
                # As `privfed train` runs the rounds that are not attacked: the transcript keeps nothing.
                outcome = one_round(number, weights, state, drawn, lambda *released: None, record=False)
            weights, state = outcome.weights, outcome.state
        figures = timed.figures()
    return {"clients": clients, "cohort": cohort, **figures, "loaded_rss_mb": loaded}


def write_population(folder: Path, clients: int, examples: int) -> None:
    """Random images of ``clients`` clients in the format of ``privfed.data.stored``, never all in memory."""
    folder.mkdir()
    rng, shape = np.random.default_rng(0), (workloads.SIDE, workloads.SIDE, 1)
    block = rng.integers(0, 256, (BLOCK * examples, *shape), np.uint8)
    rows = clients * examples
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
    with (folder / "features.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, len(block)):
            file.write(block[: rows - start].data)
    np.save(folder / "labels.npy", rng.integers(0, workloads.CLASSES, rows, np.int32))
    np.save(folder / "offsets.npy", np.arange(clients + 1, dtype=np.int64) * examples)
    np.save(folder / "test_features.npy", block[:100])
    np.save(folder / "test_labels.npy", np.arange(100, dtype=np.int32) % workloads.CLASSES)
    described = {"format": "privfed.Population/1", "name": "random", "classes": workloads.CLASSES}
    (folder / "population.json").write_text(json.dumps(described))


def fits(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Straight lines by least squares.

    Returns:
        Against the cohort: ``ms_per_client`` and ``ms_per_round`` of time, with their ``r_squared``, and
        ``mb_per_client`` of the peak. Against the population: ``ms_per_million`` and ``mb_per_million`` clients.
    """
    found: dict[str, float] = {}
    by_cohort = [r for r in rows if r["sweep"] == "cohort"]
    if len(by_cohort) > 1:
        sizes = np.array([r["cohort"] for r in by_cohort])
        seconds = np.array([r["seconds_per_round"] for r in by_cohort])
        slope, start = np.polyfit(sizes, seconds, 1)
        found["ms_per_client"], found["ms_per_round"] = 1000 * slope, 1000 * start
        found["r_squared"] = float(np.corrcoef(sizes, seconds)[0, 1] ** 2)
        found["mb_per_client"] = float(np.polyfit(sizes, [r["peak_rss_mb"] for r in by_cohort], 1)[0])
    by_clients = [r for r in rows if r["sweep"] == "population"]
    if len(by_clients) > 1:
        millions = np.array([r["clients"] for r in by_clients]) / 1e6
        for name, key, unit in (("ms", "seconds_per_round", 1000.0), ("mb", "peak_rss_mb", 1.0)):
            found[f"{name}_per_million"] = unit * float(np.polyfit(millions, [r[key] for r in by_clients], 1)[0])
    return found


def _in_a_process(folder: Path, cohort: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--point", str(folder), str(cohort), "--rounds", str(rounds)]
    try:
        return processes.figures(command, LIMIT_SECONDS)
    except processes.ProcessError as error:
        sys.exit(f"cohort {cohort} of {folder.name} clients: {error}")


def _progress(row: dict[str, Any]) -> str:
    return f"{row['clients']:,} clients, cohort {row['cohort']}: {row['seconds_per_round']:.3f} s a round"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    def counts(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=counts, default=COHORTS, help="sizes of the cohort, comma-separated")
    parser.add_argument("--clients", type=int, default=10_000, help="population while the cohort grows")
    parser.add_argument("--populations", type=counts, default=POPULATIONS, help="sizes of the population")
    parser.add_argument("--cohort", type=int, default=100, help="cohort while the population grows")
    parser.add_argument("--examples", type=int, default=2, help="of each client; 784 bytes each on disk")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of a point, warm-up included")
    parser.add_argument("--scratch", help="folder for the populations; the system's for temporary files else")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--markdown", type=Path, help="also put the table into this file")
    parser.add_argument("--point", nargs=2, metavar=("FOLDER", "COHORT"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
