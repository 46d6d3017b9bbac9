"""Trials without TensorFlow: a runner that leaves real settings and real ledgers, and makes the accuracies up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from privfed.config import Settings
from privfed.console import Console
from privfed.privacy.accounting import MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.ledger import Header, Ledger
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import RunFolder
from privfed.schemes import sampling_scheme
from privfed.sweep.grid import Trial
from privfed.sweep.pool import Event

EXPERIMENT = """
name = "fake"
[data]
clients = 50
[training]
rounds = 3
seed = 7
[cohort]
sampling = "poisson"
rate = 0.2
[privacy]
mechanism = "gaussian"
clip_norm = 1
noise_multiplier = 1.5
delta = 1e-5
"""
QUIET = Console(quiet=True)


def noise_of(settings: Settings) -> float:
    """Stands for the calibration: any function of ε that rises as ε falls."""
    return settings.privacy.noise_multiplier or 4 / (settings.privacy.epsilon or 1)


def spend(folder: Path, settings: Settings, rounds: int) -> str:
    """Leave what a training leaves that went so far; returns the model's hash."""
    RunFolder(folder, settings).claim()
    privacy = settings.privacy
    digest = hashlib.sha256(settings.fingerprint().encode()).hexdigest()
    header = Header(settings.fingerprint(), privacy.mechanism, privacy.unit, privacy.delta, False)
    with Ledger(folder / "ledger.jsonl", header) as ledger:
        for number in range(1, rounds + 1):
            if privacy.mechanism != "none":
                release = Release(
                    sampling_scheme(settings.cohort, settings.data.known_clients or 1, settings.training.rounds),
                    noise_of(settings),
                )
                ledger.reserve(number, [ObservedRelease(MODELS_ONLY, release)])
                ledger.commit(number, digest)
        if rounds == settings.training.rounds:
            ledger.finish(digest)
    return digest


@dataclass
class FakeRunner:
    """``accuracy`` of a trial may raise: ``RuntimeError`` fails it, ``KeyboardInterrupt`` stops all."""

    accuracy: Callable[[Trial], float]
    ran: list[str] = field(default_factory=list)

    def run(self, trials: Sequence[tuple[Trial, Path]], observe: Callable[[Event], None]) -> None:
        for trial, folder in trials:
            self.ran.append(trial.id)
            rounds = trial.settings.training.rounds
            try:
                accuracy = self.accuracy(trial)
            except RuntimeError as error:
                spend(folder, trial.settings, 1)
                observe(Event(trial, "failed", words=str(error)))
                continue
            observe(Event(trial, "round", rounds=rounds, words="going"))
            digest = spend(folder, trial.settings, rounds)
            guarantees = verify_ledger(folder / "ledger.jsonl").guarantees
            figures = {
                "rounds": rounds,
                "train_accuracy": accuracy,
                "test_accuracy": accuracy,
                "guarantees": {observer: g.as_json() for observer, g in guarantees.items()},
                "weights_sha256": digest,
                "seconds": 0.5,
            }
            observe(Event(trial, "done", figures=figures))
