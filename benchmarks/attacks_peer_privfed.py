"""PrivFed's attacks, and DLG and iDLG as published, on exported models; see ``attacks_peers.py``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from attacks import Auto, GradientMatching, RecursiveAnalytic, attempt
from attacks.published_matching import DLG, IDLG
from privfed.models.zoo import ZOO
from privfed.transcript import Kind, Observation, Observer, Plan, View

ATTACKS: dict[str, Callable[[int], Any]] = {
    "auto": lambda batch: Auto(),
    "gradient_matching": lambda batch: GradientMatching(iterations=1000, batch=batch, starts=6),
    "recursive_analytic": lambda batch: RecursiveAnalytic(),
    "dlg": lambda batch: DLG(iterations=300, batch=batch),
    "idlg": lambda batch: IDLG(iterations=300, batch=batch),
}


def leave(out: Path, outcomes: list[dict[str, Any]], versions: dict[str, str]) -> None:
    """Put the outcomes so far into ``out``: whoever ends this process in between finds them whole."""
    unfinished = out.with_suffix(".new")
    unfinished.write_text(json.dumps({"outcomes": outcomes, "versions": versions}))
    unfinished.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--attack", choices=list(ATTACKS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data, model = np.load(arguments.exported), ZOO["lenet"]((28, 28, 1), 10)
    batch, outcomes = data["images"].shape[1], []
    versions = {package: version(package) for package in ("privfed", "tensorflow", "numpy")}
    plan = Plan(1.0, 1, batch, 1.0, None, 0.0, None, "off")
    for target in range(-1, len(data["gradients"])):
        # The one before the first is for tracing alone, which the peers do not do.
        i = max(target, 0)
        seen = Observation(
            1, Kind.CLIENT_UPDATE, data["weights"][data["draws"][i]], -data["gradients"][i], 1.0, ()
        )
        cpu = time.process_time()
        view = View(Observer.SERVER, plan, model, (seen,))
        found = attempt(ATTACKS[arguments.attack](batch), view, 0, np.random.default_rng(i))
        cpu = time.process_time() - cpu
        if target >= 0:
            outcomes.append(
                {
                    "cpu_seconds": cpu,
                    "seconds": found.seconds,
                    "cpu_to_threshold": None,
                    "evaluations": found.evaluations,
                    "images": found.images.tolist(),
                }
            )
            leave(arguments.out, outcomes, versions)


if __name__ == "__main__":
    main()
