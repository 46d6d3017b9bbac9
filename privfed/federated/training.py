"""The training: rounds one after another, each on the ledger before its model is shown to anybody."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from privfed.errors import PrivFedError
from privfed.federated.checkpoint import Progress
from privfed.federated.cohorts import Cohort
from privfed.federated.evaluation import Evaluation, Evaluator
from privfed.federated.outcome import RoundMetrics, RoundOutcome
from privfed.federated.round import Round, Vector
from privfed.privacy.mechanisms import State as MechanismState
from privfed.transcript import Plan, RoundRecord, Transcript


class Spending(Protocol):
    """Where each round's release is put on record; the ledger, or nothing when nothing is claimed."""

    def reserve(self, round_number: int) -> None:
        """Before the noise is drawn: from here on the round counts as spent."""
        ...

    def commit(self, round_number: int, digest: str, survivors: int) -> None:
        """Before the new weights are shown; ``survivors`` are the clients in the sum."""
        ...

    def abort(self, round_number: int, reason: str) -> None:
        """The round ended without new weights; it stays spent."""
        ...


@dataclass(frozen=True)
class RoundReport:
    """One line of ``metrics.jsonl``.

    Attributes:
        metrics: Of the round.
        evaluation: Of the model that would be released now, on held-out examples.
        weights_sha256: Of the round's model, which the next cohort is sent.
        average_sha256: Of the average of the models, where that is what would be released.
    """

    metrics: RoundMetrics
    evaluation: Evaluation | None
    weights_sha256: str
    average_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, one level deep."""
        held_out = {"test_accuracy": None, "test_loss": None}
        if self.evaluation is not None:
            held_out = {"test_accuracy": self.evaluation.accuracy, "test_loss": self.evaluation.loss}  # type: ignore[dict-item]  # None above
        hashes = {"weights_sha256": self.weights_sha256, "average_sha256": self.average_sha256}
        return {**asdict(self.metrics), **held_out, **hashes}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RoundReport:
        """From what ``as_json`` gave."""
        metrics = RoundMetrics(**{f.name: values[f.name] for f in fields(RoundMetrics)})
        loss, accuracy = values["test_loss"], values["test_accuracy"]
        evaluation = None if accuracy is None else Evaluation(loss, accuracy)
        return cls(metrics, evaluation, values["weights_sha256"], values["average_sha256"])


@dataclass(eq=False)
class TrainingResult:
    """What a training leaves: the released model, a report for each round, and the transcript."""

    weights: Vector
    transcript: Transcript
    reports: list[RoundReport] = field(default_factory=list)
    stage_costs: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Bytes from clients to server and seconds, by stage of the aggregation, all rounds together."""
    seconds: float = 0.0
    unfinished: bool = False
    """Whether the training was asked to stop before its end."""
    mechanism_state: MechanismState = ()
    """After the last round."""

    @property
    def final_evaluation(self) -> Evaluation | None:
        """Of the released model."""
        return next((r.evaluation for r in reversed(self.reports) if r.evaluation is not None), None)


class Keeper(Protocol):
    """Keeps where a training stands."""

    def newest(self, warn: Callable[[str], None]) -> Progress | None:
        """Where it stood."""
        ...

    def load_records(self, recorded: Mapping[int, str], warn: Callable[[str], None]) -> list[RoundRecord]:
        """What the transcript held then."""
        ...

    def save_record(self, plan: Plan, record: RoundRecord) -> str:
        """Keep a recorded round; returns the hash by which it is known again."""
        ...

    def save(self, progress: Progress) -> object:
        """Keep where it stands."""
        ...


@dataclass(frozen=True)
class Keeping:
    """How a training is kept, watched and stopped.

    Attributes:
        keeper: Of checkpoints; ``None`` to keep nothing.
        every: Rounds from one checkpoint to the next.
        stop: Asked after each round; true ends the training there, with a checkpoint.
        patience: Evaluations without a lower held-out loss after which the training ends; ``None`` for never.
        resumed: Called once with the reports of the rounds that a checkpoint holds, before the first new round.
        warn: Hears of checkpoints that cannot be used.
        within: ``(rounds done, rounds planned)`` to rounds in all: fewer where replays spent part of a budget.
    """

    keeper: Keeper | None = None
    every: int = 1
    stop: Callable[[], bool] = lambda: False
    patience: int | None = None
    resumed: Callable[[Sequence[RoundReport]], None] = lambda reports: None
    warn: Callable[[str], None] = lambda text: None
    within: Callable[[int, int], int] = lambda done, rounds: rounds


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
    keeping: Keeping = Keeping(),
    average: float = 0.0,
) -> TrainingResult:
    """Run ``rounds`` rounds, from the newest checkpoint where there is one.

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
        keeping: Checkpoints, and when to stop early.
        average: Factor of the moving average of the rounds' models, which is evaluated and released in place of
            the last one; 0 for the last one. Clients are sent the models themselves.

    Raises:
        PrivFedError: The training diverged. What it spent until then is on the ledger.
    """
    started = time.perf_counter()
    keeper = keeping.keeper
    at = keeper.newest(keeping.warn) if keeper else None
    if at is None:
        at = Progress(0, initial_weights, one_round.initialize(len(initial_weights)))
    records = keeper.load_records(at.recorded, keeping.warn) if keeper else []
    result = TrainingResult(at.weights, Transcript(plan, initial_weights, at.weights, 0, records))
    result.reports = [RoundReport.from_json(values) for values in at.reports]
    result.stage_costs = dict(at.stage_costs)
    keeping.resumed(result.reports)
    rounds = keeping.within(at.round, rounds)
    while at.round < rounds and not _plateau(result.reports, keeping.patience):
        number = at.round + 1
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in words below
            outcome = _spend_and_run(one_round, number, at, sample(number), spending, number in record_rounds)
        if not np.isfinite(outcome.weights).all():
            raise PrivFedError(
                f"the training diverged: after round {number} the model's weights are not finite",
                where="training",
                remedy="Lower training.server_learning_rate or training.learning_rate",
            )
        last = number == rounds
        at.round, at.weights, at.state = number, outcome.weights, outcome.state
        if average:
            at.average = moving_average(at.average, at.weights, number, average)
        evaluation = evaluator(at.released) if number % evaluate_every == 0 or last else None
        report = RoundReport(
            outcome.metrics, evaluation, digest(at.weights), None if at.average is None else digest(at.average)
        )
        result.reports.append(report)
        for stage, (size, seconds) in outcome.stage_costs.items():
            earlier = result.stage_costs.get(stage, (0, 0.0))
            result.stage_costs[stage] = (earlier[0] + size, earlier[1] + seconds)
        if outcome.record is not None:
            result.transcript.records.append(outcome.record)
            if keeper:
                at.recorded[number] = keeper.save_record(plan, outcome.record)
        # A training that ends early ends with a checkpoint too, or a rerun would spend its last rounds again.
        last = last or _plateau(result.reports, keeping.patience)
        stopping = keeping.stop() and not last
        if keeper and (stopping or last or number % keeping.every == 0):
            at.reports = [report.as_json() for report in result.reports]
            at.stage_costs = result.stage_costs
            keeper.save(at)
        observe(report)
        if stopping:
            result.unfinished = True
            break
    result.weights = result.transcript.final_weights = at.released
    result.mechanism_state = at.state.mechanism
    result.transcript.rounds = sum(1 for report in result.reports if report.metrics.aborted is None)
    result.seconds = time.perf_counter() - started
    return result


def _spend_and_run(
    one_round: Round, number: int, at: Progress, cohort: Cohort, spending: Spending | None, record: bool
) -> RoundOutcome:
    """One round, reserved on the ledger before its noise is drawn, committed before its model is shown."""
    if spending is None:
        return one_round(number, at.weights, at.state, cohort, _ignore, record=record)
    spending.reserve(number)
    outcome = one_round(
        number,
        at.weights,
        at.state,
        cohort,
        lambda w, survivors: spending.commit(number, digest(w), survivors),
        record=record,
    )
    if outcome.metrics.aborted is not None:
        spending.abort(number, outcome.metrics.aborted)
    return outcome


def _plateau(reports: Sequence[RoundReport], patience: int | None) -> bool:
    losses = [report.evaluation.loss for report in reports if report.evaluation is not None]
    if patience is None or len(losses) <= patience:
        return False
    return not min(losses[-patience:]) < min(losses[:-patience])


def moving_average(average: Vector | None, weights: Vector, number: int, factor: float) -> Vector:
    """The average ``[d]`` after round ``number``, where a model counts ``factor`` of the one a round later.

    Its weights come to 1 from round 1 on, when it is that round's model: the zero start of an exponential average
    is divided out (Kingma & Ba 2015, section 3). Under differential privacy it is a function of what was released
    before, and costs nothing.
    """
    if average is None:
        return weights
    share = (1 - factor) / (1 - factor**number)
    moved: Vector = average + np.float32(share) * (weights - average)
    return moved


def digest(weights: Vector) -> str:
    """SHA-256 of weights ``[d]`` as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").tobytes()).hexdigest()


def _ignore(weights: Vector, survivors: int) -> None:
    """Nothing is claimed, so nothing is recorded."""
