"""The training: rounds one after another, each on the ledger before its model is shown to anybody."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from privfed.federated.cohorts import Cohort
from privfed.federated.evaluation import Evaluation, Evaluator
from privfed.federated.round import Round, RoundMetrics, Vector
from privfed.transcript import Plan, Transcript


class Spending(Protocol):
    """Where each round's release is put on record; the ledger, or nothing when nothing is claimed."""

    def reserve(self, round_number: int) -> None:
        """Before the noise is drawn: from here on the round counts as spent."""
        ...

    def commit(self, round_number: int, digest: str) -> None:
        """Before the new weights are shown."""
        ...

    def abort(self, round_number: int, reason: str) -> None:
        """The round ended without new weights; it stays spent."""
        ...


@dataclass(frozen=True)
class RoundReport:
    """One line of ``metrics.jsonl``: the round, the held-out evaluation of its model, and the model's hash."""

    metrics: RoundMetrics
    evaluation: Evaluation | None
    weights_sha256: str

    def as_json(self) -> dict[str, Any]:
        """Plain values, one level deep."""
        held_out = {"test_accuracy": None, "test_loss": None}
        if self.evaluation is not None:
            held_out = {"test_accuracy": self.evaluation.accuracy, "test_loss": self.evaluation.loss}  # type: ignore[dict-item]  # None above
        return {**asdict(self.metrics), **held_out, "weights_sha256": self.weights_sha256}


@dataclass(eq=False)
class TrainingResult:
    """What a training leaves: the released model, a report for each round, and the transcript."""

    weights: Vector
    transcript: Transcript
    reports: list[RoundReport] = field(default_factory=list)
    stage_costs: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Bytes from clients to server and seconds, by stage of the aggregation, all rounds together."""
    seconds: float = 0.0

    @property
    def final_evaluation(self) -> Evaluation | None:
        """Of the released model."""
        return next((r.evaluation for r in reversed(self.reports) if r.evaluation is not None), None)


def train(
    one_round: Round,
    *,
    initial_weights: Vector,
    rounds: int,
    plan: Plan,
    sample: Callable[[int], Cohort],
    evaluator: Evaluator,
    evaluate_every: int,
    record_rounds: Collection[int],
    spending: Spending | None,
    observe: Callable[[RoundReport], None],
) -> TrainingResult:
    """Run ``rounds`` rounds.

    Args:
        one_round: The round.
        initial_weights: ``[d]``, public.
        rounds: How many; 0 releases the initial model.
        plan: For the transcript.
        sample: Draws the cohort of a round.
        evaluator: On held-out examples.
        evaluate_every: Rounds between evaluations; the last round always has one.
        record_rounds: Rounds whose vectors the transcript keeps.
        spending: The ledger.
        observe: Called after each round.
    """
    started = time.perf_counter()
    weights, state = initial_weights, one_round.server.initialize(len(initial_weights))
    result = TrainingResult(weights, Transcript(plan, initial_weights, weights))
    for number in range(1, rounds + 1):
        cohort = sample(number)
        if spending is not None:
            spending.reserve(number)
        committed = (lambda w, n=number: spending.commit(n, digest(w))) if spending is not None else _ignore
        outcome = one_round(number, weights, state, cohort, committed)
        if spending is not None and outcome.metrics.aborted is not None:
            spending.abort(number, outcome.metrics.aborted)
        weights, state = outcome.weights, outcome.state
        if number in record_rounds:
            result.transcript.records.append(outcome.record)
        evaluation = evaluator(weights) if number % evaluate_every == 0 or number == rounds else None
        report = RoundReport(outcome.metrics, evaluation, digest(weights))
        result.reports.append(report)
        for stage, (size, seconds) in outcome.stage_costs.items():
            earlier = result.stage_costs.get(stage, (0, 0.0))
            result.stage_costs[stage] = (earlier[0] + size, earlier[1] + seconds)
        observe(report)
    result.weights = result.transcript.final_weights = weights
    result.transcript.rounds = sum(1 for report in result.reports if report.metrics.aborted is None)
    result.seconds = time.perf_counter() - started
    return result


def digest(weights: Vector) -> str:
    """SHA-256 of weights ``[d]`` as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").tobytes()).hexdigest()


def _ignore(weights: Vector) -> None:
    """Nothing is claimed, so nothing is recorded."""
