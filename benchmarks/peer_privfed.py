"""PrivFed: the whole round of an experiment, in mode ``off`` or, as variants, ``ring`` and ``protocol``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# First the checkout, so that the package `attacks` is not taken for the benchmark of that name beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import workloads

from privfed.config import Settings
from privfed.data import Population
from privfed.experiment import compose
from privfed.federated.cohorts import Cohort
from privfed.federated.evaluation import Evaluator
from privfed.settings_file import resolve_settings

LOOSE = 10.0
"""A bound that no update of W1 reaches, since a ring needs one."""


def settings(data: workloads.Data, rounds: int, mode: str) -> Settings:
    """The workload in PrivFed's words."""
    w = data.workload
    privacy: dict[str, Any] = {"clip_norm": LOOSE} if mode != "off" else {}
    if w.clip is not None:
        privacy = {"mechanism": "gaussian", "clip_norm": w.clip, "noise_multiplier": w.noise_multiplier}
    cohort: dict[str, Any] = {"sampling": "fixed", "size": w.cohort} if w.cohort < w.clients else {}
    return resolve_settings(
        {
            "data": {"source": "given", "clients": w.clients},
            "model": {"name": w.model},
            "training": {
                "rounds": rounds,
                "batch_size": w.batch,
                "learning_rate": w.learning_rate,
                "shuffle": False,
            },
            "cohort": cohort,
            "privacy": privacy,
            "secure_aggregation": {"mode": mode},
            "attacks": {"enabled": False},
        }
    )


def population(data: workloads.Data) -> Population:
    """The packed arrays as they are."""
    w, side = data.workload, workloads.SIDE
    return Population(
        features=data.pixels.reshape(-1, side, side, 1),
        labels=data.labels.reshape(-1),
        offsets=np.arange(w.clients + 1, dtype=np.int64) * w.examples,
        test_features=data.test_pixels.reshape(-1, side, side, 1),
        test_labels=data.test_labels,
        name="benchmark",
        classes=workloads.CLASSES,
    )


def main() -> None:
    args = measure.arguments()
    data = workloads.load(args.workload, args.data)
    experiment = compose(settings(data, args.rounds, args.variant or "off"), population(data))
    weights = np.concatenate([value.ravel() for value in data.initial_weights()])
    rounds = measure.Rounds()
    with experiment.client_work() as work:
        one_round = experiment.round(work)
        state = one_round.initialize(len(weights))
        for number, clients in enumerate(data.cohorts(args.rounds), 1):
            with rounds:
                # Nothing is attacked, so the transcript keeps nothing: as `privfed train` runs such rounds.
                cohort = Cohort(tuple(clients), {})
                outcome = one_round(number, weights, state, cohort, lambda *released: None, record=False)
            weights, state = outcome.weights, outcome.state
        figures = rounds.figures()
    held_out = Evaluator(experiment.model, data.test_features.reshape(-1, 28, 28, 1), data.test_labels)
    measure.write(
        args.out,
        figures,
        ("privfed", "tensorflow", "numpy"),
        train_accuracy=outcome.metrics.train_accuracy,
        test_accuracy=held_out(weights).accuracy,
    )


if __name__ == "__main__":
    main()
