"""Attacks on single gradients side by side, each in a process of its own: PrivFed, published algorithms, peers.

``python benchmarks/attacks.py --peers breaching --json`` runs it. All get the same exported weights, gradients (of
single-precision clients, as updates over the learning rate) and one thread; what they give back is scored here,
by one code. Whatever an attack returns counts: nobody stops it, or picks a restart, by the truth.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments
import numpy as np
import processes
import table
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
LIMIT_SECONDS = 840
"""Wall time of all attacks together, unless told otherwise. Each may take an equal share of what is left, so that
the slowest, which comes last, has what the others did not need; what is not through by then counts with the
targets that it came to."""
SEARCH_SHARE = 0.85
"""Of its time that a peer may search; the rest is for its imports and for writing."""
THRESHOLD = 1e-3
"""Mean squared error below which an image is recovered, after Zhu et al. (2019)."""
OWN = ("auto", "gradient_matching", "recursive_analytic", "dlg", "idlg")
SINGLE = ("auto", "recursive_analytic")
"""Of these, those that are not run on batches: there ``auto`` comes to gradient matching."""
PEERS = {"breaching": ("deepleakage", "deepleakage-idlg", "invertinggradients")}
"""Of each peer, the attacks in its script."""


def compare(
    peers: list[str],
    weights: NDArray[np.float32],
    gradients: NDArray[np.float64],
    images: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    limit_seconds: float = LIMIT_SECONDS,
    finished: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """All attacks on all targets.

    Args:
        peers: Keys of ``PEERS``.
        weights: ``[draws, d]`` of the zoo's LeNet; targets go through them in turn.
        gradients: ``[targets, d]``.
        images: ``[targets, batch, 28, 28, 1]`` in [0, 1].
        labels: ``[targets, batch]``.
        limit_seconds: Of all attacks together.
        finished: Called with the result so far after each attack.

    Returns:
        ``rows``, one for each attack, and what else is to be told.
    """
    batch = images.shape[1]
    result: dict[str, Any] = {
        "threshold": THRESHOLD,
        "batch": batch,
        "targets": len(images),
        "draws": len(weights),
        "limit_seconds": limit_seconds,
        "rows": [],
    }
    # For the children: their libraries read these when they start.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch) / "exported.npz"
        draws = np.arange(len(images)) % len(weights)
        np.savez(exported, weights=weights, draws=draws, gradients=gradients, images=images)
        own = HERE / "attacks_peer_privfed.py"
        engines = [("privfed", sys.executable, own, a) for a in OWN if batch == 1 or a not in SINGLE]
        for peer in peers:
            script = HERE / f"attacks_peer_{peer}.py"
            engines += [(peer, environments.interpreter(script), script, attack) for attack in PEERS[peer]]
        until = time.monotonic() + limit_seconds
        for i, (engine, python, script, attack) in enumerate(engines):
            seconds = max(1.0, (until - time.monotonic()) / (len(engines) - i))
            command = [python, str(script), "--exported", str(exported), "--attack", attack]
            if engine != "privfed":
                command += ["--seconds", f"{SEARCH_SHARE * seconds:.1f}"]
            row: dict[str, Any] = {"engine": engine, "attack": attack}
            try:
                row |= summary(processes.figures(command, seconds), images, labels)
            except processes.TimeLimitError as error:
                row["failure"] = str(error)
                row |= summary(error.left, images, labels) if error.left else {}
            except processes.ProcessError as error:
                row["failure"] = str(error)
            result["rows"].append(row)
            compare_cpu(result["rows"])
            print(f"{engine} {attack}: {_words(row, len(images))}", file=sys.stderr, flush=True)
            finished(result)
    return result


def compare_cpu(rows: list[dict[str, Any]]) -> None:
    """Put into the last row how many times the CPU time of PrivFed's attacks it took to the threshold.

    ``cpu_ratio`` is over the first attack's, ``cpu_ratio_matching`` over gradient matching's. Of a peer its
    successes alone count, until they come to the threshold; of PrivFed every target to its end.
    """
    last = rows[-1].get("cpu_seconds_to_threshold_median")
    matching = next((row for row in rows if row["attack"] == "gradient_matching"), {})
    for name, row in (("cpu_ratio", rows[0]), ("cpu_ratio_matching", matching)):
        own = row.get("cpu_seconds_median")
        rows[-1][name] = last / own if own and last else None


def _words(row: dict[str, Any], targets: int) -> str:
    """How far an attack came."""
    if "success_rate" not in row:
        return str(row["failure"])
    unfinished = f" of the first {row['targets']} of {targets}: {row['failure']}" if "failure" in row else ""
    cut = f" ({row['cut']} of {row['targets']} searches cut short)" if row["cut"] else ""
    return f"{row['success_rate']:.0%}{cut}{unfinished}"


def summary(figures: dict[str, Any], images: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Of one attack over the targets that it came to; the share of images counts."""
    from attacks.scoring import score

    errors, outcomes = [], figures["outcomes"]
    for outcome, truth, classes in zip(outcomes, images[: len(outcomes)], labels[: len(outcomes)], strict=True):
        found = np.asarray(outcome["images"], np.float64).reshape(-1, *truth.shape[1:])
        if len(found):
            scores = score(np.nan_to_num(np.clip(found, 0, 1)), None, truth, classes)
        errors += [s.mse for s in scores] if len(found) else [1.0] * len(truth)
    reached = [o["cpu_to_threshold"] for o in outcomes if o["cpu_to_threshold"] is not None]
    return {
        "targets": len(outcomes),
        "cut": sum(o.get("cut", False) for o in outcomes),
        "success_rate": statistics.fmean(error < THRESHOLD for error in errors),
        "mse_median": statistics.median(errors),
        "cpu_seconds_median": statistics.median(o["cpu_seconds"] for o in outcomes),
        "cpu_seconds_to_threshold_median": statistics.median(reached) if reached else None,
        "evaluations_median": statistics.median(o["evaluations"] for o in outcomes),
        "other_load": figures["other_load"],
        "versions": figures["versions"],
    }


def markdown(result: dict[str, Any]) -> str:
    """The table of ``compare``."""
    lines = [
        "| | success | MSE, median | CPU-s, median | CPU-s to the threshold | … over the first row's CPU-s | "
        "… over gradient matching's | evaluations, median |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        words = _words(row, result["targets"])
        if "success_rate" not in row:
            lines.append(f"| {row['engine']} {row['attack']} | {words} | | | | | | |")
            continue
        reached = row["cpu_seconds_to_threshold_median"]
        ratios = ["" if row[key] is None else f"{row[key]:.1f}" for key in ("cpu_ratio", "cpu_ratio_matching")]
        lines.append(
            f"| {row['engine']} {row['attack']} | {words} | {row['mse_median']:.1e} | "
            f"{row['cpu_seconds_median']:.2f} | {'' if reached is None else f'{reached:.2f}'} | "
            f"{' | '.join(ratios)} | "
            f"{row['evaluations_median']:,.0f} |"
        )
    measured = [row for row in result["rows"] if "success_rate" in row]
    versions = {name: number for row in measured for name, number in row["versions"].items()}
    load = max((row["other_load"] for row in measured), default=0.0)
    return "\n".join(
        [
            *lines,
            "",
            f"LeNet on Fashion-MNIST's test images, {result['targets']} targets of {result['batch']} over "
            f"{result['draws']} weight draws; success is MSE < {result['threshold']:g}; one thread.",
            f"Others used up to {load:.1f} cores meanwhile; {table.machine()}. "
            f"{', '.join(f'{name} {number}' for name, number in sorted(versions.items()))}.",
        ]
    )
