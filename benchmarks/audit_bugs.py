"""Which faults of a training its audit finds, by what, and what the audit costs.

    python benchmarks/audit_bugs.py --runs 20 --markdown docs/auditing.md
    python benchmarks/audit_bugs.py --faults half-noise,none --runs 3 --json
    python benchmarks/audit_bugs.py --cost examples/fashion-dp.toml

Every run is a training of its own seed on scikit-learn's digits: a softmax, 359 clients, Poisson cohorts at 0.15,
20 rounds, 100 canaries (random updates), a claim of ε = 3 at δ = 1e-4; with Skellam noise a fifth of the cohort
drops out. ``--cost`` trains the settings of a file with and without canaries, in turn, and compares CPU-seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import table
from audit_faults import FAULTS, Fault

from privfed.audit.checks import Check, checks
from privfed.audit.empirical import ObserverFinding, findings, seen_by_observers
from privfed.composition import compose
from privfed.data import Population
from privfed.executors.local import LocalClientWork
from privfed.experiment import Experiment
from privfed.federated.training import TrainingResult
from privfed.privacy.accounting import by_observer
from privfed.settings_file import load_settings, resolve_settings

TITLE = "Planted faults"
SHORT = {
    "noise of each layer": "noise",
    "noise of different": "independence",
    "every measured": "clip",
    "cohorts": "cohorts",
    "models follow": "server's steps",
    "the ledger": "ledger",
}
"""The checks, by how their names begin."""
INTRODUCTION = (
    "`benchmarks/audit_bugs.py` plants each fault behind the auditor's back, in trainings of their own seeds:",
    "digits, softmax, 359 clients, Poisson cohorts at 0.15 (banded: round-robin, 40), 20 rounds, 100 canaries,",
    "ε = 3 claimed at δ = 1e-4. Flagged: a check failed, or a claim lies below an interval or the bound.",
)
TRAINING: dict[str, Any] = {
    "rounds": 20,
    "local_epochs": 1,
    "batch_size": 2,
    "learning_rate": 0.5,
    "server_learning_rate": 0.5,
    "server_momentum": 0.9,
    "evaluate_every": 20,
}
MECHANISMS: dict[str, dict[str, Any]] = {
    "gaussian": {"cohort": {"sampling": "poisson", "rate": 0.15, "dropout": 0.05}},
    "banded": {"cohort": {"sampling": "round_robin", "size": 40}},
    "skellam": {
        "cohort": {"sampling": "poisson", "rate": 0.15, "dropout": 0.2},
        "secure_aggregation": {"mode": "ring"},
    },
}


@dataclass(frozen=True)
class Outcome:
    """What one run showed: names of failed checks, and how many of the claims each kind of evidence flagged."""

    failed: tuple[str, ...]
    by_composed: bool
    by_fit: bool
    by_bound: bool

    @property
    def by_canaries(self) -> bool:
        """Whether an observer's interval or bound lies above its claim."""
        return self.by_composed or self.by_fit or self.by_bound

    @property
    def caught(self) -> bool:
        """Whether the report would flag the claim."""
        return bool(self.failed) or self.by_canaries


def main() -> None:
    """Run and print."""
    options = _options()
    if options.cost is not None:
        print(json.dumps(cost(options.cost, options.runs), indent=1))
        return
    rows = []
    for key in options.faults:
        fault, started = FAULTS[key], time.process_time()
        outcomes = []
        for seed in range(options.runs):
            outcomes.append(outcome(fault, seed))
            print(f"{key} {seed + 1} of {options.runs}: {outcomes[-1]}", file=sys.stderr, flush=True)
        rows.append(row(fault, outcomes, (time.process_time() - started) / max(1, options.runs)))
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    text = markdown(rows)
    print(text)
    if options.markdown:
        table.replace_section(options.markdown, TITLE, text)


def outcome(fault: Fault, seed: int) -> Outcome:
    """Train with the fault, and judge."""
    noise, clients, work = _calibrated(fault.kind)
    settings = _settings(fault.kind, seed, {"noise_multiplier": noise})
    experiment = fault.plant(compose(settings, clients), work)
    result = experiment.run(None, lambda report: None)
    found, estimates = judge(experiment, result, fault)
    claimed = [one for one in estimates if one.claim < np.inf]
    above = [(one, e) for one in claimed for e in one.estimates if e.low > one.claim]
    return Outcome(
        tuple(check.name for check in found if check.status == "failed"),
        any("composed" in e.method for _, e in above),
        any("composed" not in e.method for _, e in above),
        any(one.bound.epsilon > one.claim for one in claimed),
    )


def judge(e: Experiment, result: TrainingResult, fault: Fault) -> tuple[list[Check], list[ObserverFinding]]:
    """What the report would say, with the ledger that the training would have written."""
    assert e.audited is not None
    watched = e.audited.mechanism
    notes = watched.notes(result.mechanism_state)
    rounds = [r.metrics for r in result.reports if r.metrics.aborted is None]
    spent = [e.mechanism.releases(e.sampling, fault.claimed(r.cohort, r.survivors)) for r in rounds]
    if e.mechanism.whole_run:
        spent = spent[:1]
    delta = e.settings.privacy.delta
    claims = {observer: g.epsilon for observer, g in by_observer(spent, delta).items()}
    moved = result.weights.astype(np.float64) - e.initial_weights
    seen = seen_by_observers(watched, notes, moved, mode=e.plan.mode)
    return (
        checks(watched, notes, result.weights, e.audited.sampling, spent),
        findings(seen, spent, claims, delta),
    )


def row(fault: Fault, outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """Counts over runs."""
    failed: dict[str, int] = {}
    for one in outcomes:
        for name in one.failed:
            failed[name] = failed.get(name, 0) + 1
    return {
        "fault": fault.name,
        "runs": len(outcomes),
        "caught": sum(one.caught for one in outcomes),
        "by_checks": sum(bool(one.failed) for one in outcomes),
        "by_canaries": sum(one.by_canaries for one in outcomes),
        "by_composed": sum(one.by_composed for one in outcomes),
        "by_fit": sum(one.by_fit for one in outcomes),
        "by_bound": sum(one.by_bound for one in outcomes),
        "failed": failed,
        "cpu_seconds": seconds,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = [
        *INTRODUCTION,
        "",
        "| fault | flagged | by checks | by canaries | CPU-s |",
        "|---|--:|---|--:|--:|",
    ]
    for r in rows:
        names = {
            next(short for start, short in SHORT.items() if n.startswith(start)): c for n, c in r["failed"].items()
        }
        by = "; ".join(f"{name}: {count}" for name, count in names.items())
        lines.append(
            f"| {r['fault']} | {r['caught']} of {r['runs']} | {by or 'none'} | {r['by_canaries'] or 'none'} "
            f"| {r['cpu_seconds']:.1f} |"
        )
    return "\n".join([*lines, "", f"CPU-seconds are of one run with its audit. {table.machine()}."])


def cost(file: Path, runs: int) -> dict[str, Any]:
    """CPU-seconds of a round with canaries of each kind, of one without, and of judging in the end: medians."""
    settings = load_settings(file)
    plain = settings.model_copy(update={"audit": settings.audit.model_copy(update={"canaries": 0})})
    a_round: dict[str, list[float]] = {}
    judging: list[float] = []
    for seed in range(runs):
        training = settings.training.model_copy(update={"seed": seed})
        for kind in ("none", "update", "input"):
            chosen = plain
            if kind != "none":
                options = {"canaries": settings.audit.canaries or 100, "canary_kind": kind}
                chosen = settings.model_copy(update={"audit": settings.audit.model_copy(update=options)})
            one, end = _seconds(compose(chosen.model_copy(update={"training": training})))
            a_round.setdefault(kind, []).append(one)
            if kind != "none":
                judging.append(end)
            print(
                f"{kind}, seed {seed}: {one:.3f} CPU-s a round, {end:.2f} in the end", file=sys.stderr, flush=True
            )
    medians = {kind: statistics.median(values) for kind, values in a_round.items()}
    end, rounds = statistics.median(judging), settings.training.rounds
    return {
        "settings": settings.name,
        "mode": settings.secure_aggregation.mode,
        "runs": runs,
        "cpu_seconds_a_round": medians,
        "cpu_seconds_of_judging": end,
        "over": {kind: (medians[kind] + end / rounds) / medians["none"] - 1 for kind in ("update", "input")},
        "over_of_rounds": {kind: medians[kind] / medians["none"] - 1 for kind in ("update", "input")},
    }


def _seconds(e: Experiment) -> tuple[float, float]:
    """CPU-seconds of a round after the first, which traces and compiles, and of the judgement."""
    ends: list[float] = []
    result = e.run(None, lambda report: ends.append(time.process_time()))
    judged = time.process_time()
    if e.audited is not None:
        judge(e, result, FAULTS["none"])
    return (ends[-1] - ends[0]) / (len(ends) - 1), time.process_time() - judged


@cache
def _calibrated(kind: str) -> tuple[float, Population, LocalClientWork]:
    """Noise multiplier, clients, and their local training: the same in all runs, and not to be traced again."""
    first = compose(_settings(kind, 0, {"epsilon": 3}))
    data = first.population
    work = LocalClientWork(first.model, data.features, data.labels, data.offsets, first.local_training)
    assert first.noise_multiplier is not None
    return first.noise_multiplier, data, work


def _settings(kind: str, seed: int, noise: dict[str, float]) -> Any:
    return resolve_settings(
        {
            "data": {"source": "digits", "clients": 359},
            "training": {**TRAINING, "seed": seed},
            "privacy": {"mechanism": kind, "clip_norm": 0.5, "delta": 1e-4, **noise},
            "attacks": {"enabled": False},
            "audit": {"canaries": 100},
            **MECHANISMS[kind],
        }
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=lambda text: text.split(","), default=list(FAULTS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--cost", type=Path, metavar="SETTINGS")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    unknown = set(options.faults) - FAULTS.keys()
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; known: {', '.join(FAULTS)}")
    return options


if __name__ == "__main__":
    main()
