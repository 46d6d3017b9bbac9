"""Small trainings that end when told to, and witnesses of what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from privfed.federated.aggregation import PlainAggregation, RingAggregation
from privfed.federated.checkpoint import Checkpoints, Progress
from privfed.federated.client_work import ClientUpdates, ClientWork
from privfed.federated.cohorts import Cohort, sample_cohort
from privfed.federated.evaluation import Evaluation
from privfed.federated.round import Round
from privfed.federated.server_update import ServerOptimizer, adam, sgd
from privfed.federated.streams import Streams
from privfed.federated.training import Keeping, RoundReport, TrainingResult, train
from privfed.privacy.mechanisms import AdaptiveClipping, CentralGaussian, Mechanism, NoMechanism
from privfed.privacy.sampling import PoissonSampling
from privfed.secagg import RingSum
from privfed.transcript import Plan, RoundRecord

D, CLIENTS, ROUNDS = 6, 12, 6
STREAMS = Streams(11, secure=False)
INITIAL = np.linspace(-1, 1, D, dtype=np.float32)
PLAN = Plan(0.1, 1, 4, None, 1.0, 0.5, 6.0, "off")
SAMPLING = PoissonSampling(0.5)
MECHANISMS: dict[str, Mechanism] = {
    "none": NoMechanism(1.0),
    "gaussian": CentralGaussian(1.0, 0.5),
    "adaptive": AdaptiveClipping(1.0, 0.5, SAMPLING.rate * CLIENTS),
}
SERVERS: dict[str, ServerOptimizer] = {
    "sgd": sgd(0.5),
    "momentum": sgd(0.5, 0.9),
    "adam": adam(0.1),
    "average": sgd(0.5),
}
AVERAGE = 0.7
"""Of ``average``."""
REMEMBERING = [(m, s) for m in MECHANISMS for s in SERVERS if m == "adaptive" or s in ("momentum", "adam")]
"""Pairs with a state that a checkpoint must keep."""


class TowardsTargets(ClientWork):
    """Clients that move towards a target of their own, with a step that weights, round and client decide."""

    def __call__(
        self, weights: np.ndarray, clients: Sequence[int], seed: Sequence[int]
    ) -> Iterator[ClientUpdates]:
        if clients:
            noise = np.stack([np.random.default_rng([*seed, client]).normal(size=D) for client in clients])
            targets = np.stack([np.full(D, client / CLIENTS) for client in clients])
            ones = np.ones(len(clients))
            losses = np.linalg.norm(targets - weights, axis=1)
            deltas = (0.5 * (targets - weights) + 0.3 * noise).astype(np.float32)
            yield ClientUpdates(tuple(clients), deltas, np.full(len(clients), 2), losses, ones, 2 * ones)


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


class Witness:
    """Stands between the loop and all that it calls: notes each call, and can end the run at one of them.

    Args:
        keeper: Of checkpoints.
        at: Number of the call that is the last, from 0; ``None`` for none.
        after: Whether that call still takes effect.
        checkpoint_every: Rounds.
    """

    def __init__(
        self, keeper: Any = None, at: int | None = None, after: bool = False, checkpoint_every: int = 1
    ) -> None:
        self.calls: list[tuple[str, int]] = []
        self.digests: list[str] = []
        self.reasons: list[str] = []
        self.seen: list[RoundReport] = []
        self._keeper, self._at, self._after = keeper, at, after
        self._every = checkpoint_every

    def _call(self, name: str, number: int, effect: Callable[[], Any] = lambda: None) -> Any:
        fatal = len(self.calls) == self._at
        self.calls.append((name, number))
        if fatal and not self._after:
            raise Killed
        result = effect()
        if fatal:
            raise Killed
        return result

    def reserve(self, round_number: int) -> None:
        self._call("reserve", round_number)

    def commit(self, round_number: int, digest: str, survivors: int) -> None:
        self._call("commit", round_number, lambda: self.digests.append(digest))

    def abort(self, round_number: int, reason: str) -> None:
        self._call("abort", round_number, lambda: self.reasons.append(reason))

    def observe(self, report: RoundReport) -> None:
        self._call("observe", report.metrics.round, lambda: self.seen.append(report))

    def newest(self, warn: Callable[[str], None]) -> Progress | None:
        found: Progress | None = self._keeper.newest(warn)
        return found

    def load_records(self, recorded: Any, warn: Callable[[str], None]) -> list[RoundRecord]:
        found: list[RoundRecord] = self._keeper.load_records(recorded, warn)
        return found

    def save_record(self, plan: Plan, record: RoundRecord) -> str:
        saved: str = self._call("record", record.round, lambda: self._keeper.save_record(plan, record))
        return saved

    def save(self, progress: Progress) -> None:
        self._call("checkpoint", progress.round, lambda: self._keeper.save(progress))

    def keeping(self, **others: Any) -> Keeping:
        """With this one as keeper, if it has one behind it."""
        return Keeping(self if self._keeper else None, self._every, warn=unexpected, **others)


def unexpected(text: str) -> None:
    raise AssertionError(f"nothing to warn of, but: {text}")


def evaluate(weights: np.ndarray) -> Evaluation:
    return Evaluation(float(np.linalg.norm(weights - 0.4)), float(1 / (1 + np.abs(weights[0]))))


def drawn(number: int) -> Cohort:
    return sample_cohort(number, CLIENTS, SAMPLING, 0.1, STREAMS)


def run(
    witness: Witness,
    keeping: Keeping | None = None,
    *,
    mechanism: str = "gaussian",
    server: str = "momentum",
    rounds: int = ROUNDS,
    sample: Callable[[int], Cohort] = drawn,
    evaluator: Callable[[np.ndarray], Evaluation] = evaluate,
    evaluate_every: int = 1,
    initial: np.ndarray = INITIAL,
) -> TrainingResult:
    parts = MECHANISMS[mechanism]
    divisor = None if mechanism == "none" else SAMPLING.rate * CLIENTS
    # Both kinds have their turn.
    ring = RingAggregation(lambda _, threshold, model, bits: RingSum(threshold, bits), 64, 2, False)
    aggregation = ring if mechanism == "adaptive" else PlainAggregation()
    return train(
        Round(TowardsTargets(), parts, aggregation, SERVERS[server], STREAMS, divisor),
        initial_weights=initial,
        rounds=rounds,
        plan=PLAN,
        sample=sample,
        evaluator=evaluator,  # type: ignore[arg-type]  # a function in place of a model's evaluator
        evaluate_every=evaluate_every,
        record_rounds=(1, 2, 5),
        spending=witness,
        observe=witness.observe,
        keeping=keeping or witness.keeping(),
        average=AVERAGE if server == "average" else 0.0,
    )


def values(report: RoundReport) -> dict[str, Any]:
    return {key: value for key, value in report.as_json().items() if key != "seconds"}


def everything(result: TrainingResult, folder: Path) -> Any:
    """What a training leaves, by its bits; times aside."""
    sizes = {stage: size for stage, (size, _) in result.stage_costs.items()}
    return (
        result.weights.tobytes(),
        [values(report) for report in result.reports],
        result.transcript.save(folder / "transcript.npz"),
        sizes,
        result.unfinished,
    )


def last_state(folder: Path) -> Any:
    found = Checkpoints(folder, "s").newest(unexpected)
    assert found is not None
    return found.round, [part.tobytes() for part in (*found.state.server, *found.state.mechanism)]
