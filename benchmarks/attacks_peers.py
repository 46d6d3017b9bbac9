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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments
import numpy as np
import processes
import table
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
LIMIT_SECONDS = 120
"""Wall time of one attack over all targets, unless told otherwise: seven of them end within a quarter of an hour.
What is not through by then counts with the targets that it came to."""
THRESHOLD = 1e-3
"""Mean squared error below which an image is recovered, after Zhu et al. (2019)."""
OWN = ("gradient_matching", "recursive_analytic", "dlg", "idlg")
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
        limit_seconds: Of each attack, over all targets.
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
        engines = [("privfed", sys.executable, own, a) for a in OWN if batch == 1 or a != "recursive_analytic"]
        for peer in peers:
            script = HERE / f"attacks_peer_{peer}.py"
            engines += [(peer, environments.interpreter(script), script, attack) for attack in PEERS[peer]]
        for engine, python, script, attack in engines:
            command = [python, str(script), "--exported", str(exported), "--attack", attack]
            row: dict[str, Any] = {"engine": engine, "attack": attack}
            try:
                row |= summary(processes.figures(command, limit_seconds), images, labels)
            except processes.TimeLimitError as error:
                row["failure"] = str(error)
                row |= summary(error.left, images, labels) if error.left else {}
            except processes.ProcessError as error:
                row["failure"] = str(error)
            result["rows"].append(row)
            print(f"{engine} {attack}: {_words(row, len(images))}", file=sys.stderr, flush=True)
            finished(result)
    return result


def _words(row: dict[str, Any], targets: int) -> str:
    """How far an attack came."""
    if "success_rate" not in row:
        return str(row["failure"])
    unfinished = f" of the first {row['targets']} of {targets}: {row['failure']}" if "failure" in row else ""
    return f"{row['success_rate']:.0%}{unfinished}"


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
        "| | success | MSE, median | CPU-s, median | CPU-s to the threshold | evaluations, median |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        words = _words(row, result["targets"])
        if "success_rate" not in row:
            lines.append(f"| {row['engine']} {row['attack']} | {words} | | | | |")
            continue
        reached = row["cpu_seconds_to_threshold_median"]
        lines.append(
            f"| {row['engine']} {row['attack']} | {words} | {row['mse_median']:.1e} | "
            f"{row['cpu_seconds_median']:.2f} | {'' if reached is None else f'{reached:.2f}'} | "
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
