"""PrivFed: the whole round of an experiment, in mode ``off`` or, as variants, ``ring`` and ``protocol``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# First the checkout, so that the package `attacks` is not taken for the benchmark of that name beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import workloads

from privfed.composition import compose
from privfed.config import Settings
from privfed.data import Population
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


class Training:
    """One experiment, a round at a time."""

    def __init__(self, data: workloads.Data, rounds: int, mode: str, stack: ExitStack) -> None:
        self.experiment = compose(settings(data, rounds, mode), population(data))
        self.weights = np.concatenate([value.ravel() for value in data.initial_weights()])
        self._round = self.experiment.round(stack.enter_context(self.experiment.client_work()))
        self._state = self._round.initialize(len(self.weights))
        self.rounds = measure.Rounds()
        self.train_accuracy: float | None = None

    def step(self, number: int, clients: list[int]) -> None:
        """One round, measured."""
        with self.rounds:
            # Nothing is attacked, so the transcript keeps nothing: as `privfed train` runs such rounds.
            cohort = Cohort(tuple(clients), {})
            outcome = self._round(number, self.weights, self._state, cohort, lambda *released: None, record=False)
        self.weights, self._state = outcome.weights, outcome.state
        self.train_accuracy = outcome.metrics.train_accuracy


def main() -> None:
    args = measure.arguments()
    data = workloads.load(args.workload, args.data)
    with ExitStack() as stack:
        # A variant is compared with mode `off` round by round: machines change their speed within minutes.
        modes = ["off", args.variant] if args.variant else ["off"]
        trainings = {mode: Training(data, args.rounds, mode, stack) for mode in modes}
        for number, clients in enumerate(data.cohorts(args.rounds), 1):
            for training in trainings.values():
                training.step(number, clients)
        figures = {mode: training.rounds.figures() for mode, training in trainings.items()}
    trained = trainings[modes[-1]]
    held_out = Evaluator(trained.experiment.model, data.test_features.reshape(-1, 28, 28, 1), data.test_labels)
    measure.write(
        args.out,
        {**figures[modes[-1]], **({"beside": figures["off"]} if args.variant else {})},
        ("privfed", "tensorflow", "numpy"),
        train_accuracy=trained.train_accuracy,
        test_accuracy=held_out(trained.weights).accuracy,
    )


if __name__ == "__main__":
    main()
