"""The training loop: ended anywhere and gone on with, it comes to the same bits; nothing is shown unrecorded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.errors import PrivFedError
from privfed.federated.aggregation import PlainAggregation, RingAggregation
from privfed.federated.checkpoint import Checkpoints, Progress
from privfed.federated.client_work import ClientUpdates, ClientWork
from privfed.federated.cohorts import Cohort, sample_cohort
from privfed.federated.evaluation import Evaluation
from privfed.federated.round import Round
from privfed.federated.server_update import ServerOptimizer, adam, sgd
from privfed.federated.streams import Streams
from privfed.federated.training import Keeping, RoundReport, TrainingResult, digest, train
from privfed.privacy.mechanisms import AdaptiveClipping, CentralGaussian, Mechanism, NoMechanism
from privfed.privacy.sampling import PoissonSampling
from privfed.secagg import RingSum
from privfed.transcript import Plan, RoundRecord

D, CLIENTS, ROUNDS = 6, 12, 6
STREAMS = Streams(11, secure=False)
INITIAL = np.linspace(-1, 1, D, dtype=np.float32)
PLAN = Plan(0.1, 1, 4, None, 1.0, 0.5, 6.0, "off")
SAMPLING = PoissonSampling(0.5)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints have their own tests; here thousands are written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


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


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("every", [1, 4])
def test_ended_at_any_call_and_gone_on_with_it_comes_to_the_same(
    mechanism: str, server: str, every: int, tmp_path: Path
) -> None:
    def go(name: str, at: int | None = None, after: bool = False) -> tuple[Witness, TrainingResult | None]:
        witness = Witness(Checkpoints(tmp_path / name, "s"), at, after, every)
        try:
            return witness, run(witness, mechanism=mechanism, server=server)
        except Killed:
            return witness, None

    whole, result = go("whole")
    assert result is not None
    expected, state = everything(result, tmp_path), last_state(tmp_path / "whole")
    assert [name for name, _ in whole.calls].count("commit") == ROUNDS
    for at in range(len(whole.calls)):
        # Whether the fatal call takes effect matters where it writes: the next call is after it otherwise.
        for after in (False, True) if whole.calls[at][0] in ("record", "checkpoint") else (False,):
            name = f"{at}{after}"
            dead, nothing = go(name, at, after)
            assert nothing is None
            again, result = go(name)
            assert result is not None
            assert everything(result, tmp_path) == expected
            assert last_state(tmp_path / name) == state
            # What was shown had been committed, and the rerun commits the same models for the same rounds.
            assert {report.weights_sha256 for report in dead.seen} <= set(dead.digests)
            assert set(dead.digests) <= set(whole.digests)
            assert again.digests == whole.digests[ROUNDS - len(again.digests) :]


@pytest.mark.parametrize(("mechanism", "server"), REMEMBERING)
def test_a_checkpoint_that_forgets_the_state_is_told_apart(mechanism: str, server: str, tmp_path: Path) -> None:
    """The comparison above has teeth: without its state the training goes another way."""

    class Forgetful(Checkpoints):
        def newest(self, warn: Callable[[str], None]) -> Progress | None:
            found = super().newest(warn)
            if found is not None:
                found.state = Round(
                    TowardsTargets(), MECHANISMS[mechanism], PlainAggregation(), SERVERS[server], STREAMS, 1.0
                ).initialize(D)
            return found

    expected = run(Witness(), mechanism=mechanism, server=server)
    for keeper, same in ((Checkpoints, True), (Forgetful, False)):
        folder = tmp_path / keeper.__name__
        first = Witness(keeper(folder, "s"))
        with pytest.raises(Killed):
            run(Witness(keeper(folder, "s"), at=14), mechanism=mechanism, server=server)
        result = run(first, mechanism=mechanism, server=server)
        assert (result.weights.tobytes() == expected.weights.tobytes()) is same


@pytest.mark.parametrize("stopped_after", range(1, ROUNDS))
def test_a_request_to_stop_ends_the_round_with_a_checkpoint(stopped_after: int, tmp_path: Path) -> None:
    checkpoints, first, second = Checkpoints(tmp_path / "c", "s"), Witness(), Witness()
    stop = Keeping(checkpoints, 100, stop=lambda: len(first.seen) == stopped_after - 1)
    result = run(first, stop)
    assert result.unfinished
    assert (len(result.reports), len(first.seen)) == (stopped_after, stopped_after)
    assert last_state(tmp_path / "c")[0] == stopped_after
    resumed = run(second, Keeping(checkpoints, 100))
    assert not resumed.unfinished
    assert everything(resumed, tmp_path) == everything(run(Witness()), tmp_path)
    assert [n for name, n in second.calls if name == "reserve"] == list(range(stopped_after + 1, ROUNDS + 1))


def test_a_request_to_stop_in_the_last_round_finds_the_training_done(tmp_path: Path) -> None:
    witness = Witness()
    result = run(witness, Keeping(Checkpoints(tmp_path, "s"), 100, stop=lambda: len(witness.seen) == ROUNDS - 1))
    assert not result.unfinished
    assert len(result.reports) == ROUNDS


def test_stopped_in_every_round_it_comes_to_its_end_all_the_same(tmp_path: Path) -> None:
    for done in range(1, ROUNDS + 1):
        result = run(Witness(), Keeping(Checkpoints(tmp_path, "s"), 100, stop=lambda: True))
        assert len(result.reports) == done
    assert not result.unfinished
    assert everything(result, tmp_path) == everything(run(Witness()), tmp_path)


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    first = run(Witness(Checkpoints(tmp_path / "c", "s")))
    witness = Witness(Checkpoints(tmp_path / "c", "s"))
    again = run(witness)
    assert witness.calls == []
    assert everything(again, tmp_path) == everything(first, tmp_path)


def test_each_round_is_reserved_then_committed_then_kept_then_shown(tmp_path: Path) -> None:
    witness = Witness(Checkpoints(tmp_path, "s"), checkpoint_every=2)
    run(witness, rounds=5)
    expected = [
        (name, number)
        for number in range(1, 6)
        for name in ("reserve", "commit", "record", "checkpoint", "observe")
        if (name != "record" or number in (1, 2, 5)) and (name != "checkpoint" or number in (2, 4, 5))
    ]
    assert witness.calls == expected


def test_noise_is_drawn_after_the_reservation_and_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    witness, on_server = Witness(), CentralGaussian.on_server

    def note(self: CentralGaussian, *rest: Any) -> Any:
        witness.calls.append(("noise", rest[2].round))
        return on_server(self, *rest)

    monkeypatch.setattr(CentralGaussian, "on_server", note)
    run(witness, rounds=2)
    assert [name for name, _ in witness.calls] == ["reserve", "noise", "commit", "observe"] * 2


def test_what_is_committed_is_what_is_shown() -> None:
    witness = Witness()
    result = run(witness)
    assert witness.digests == [report.weights_sha256 for report in witness.seen]
    assert result.reports == witness.seen
    assert digest(result.weights) == witness.digests[-1]
    assert digest(INITIAL) == hashlib.sha256(b"".join(np.float32(x).tobytes() for x in INITIAL)).hexdigest()


class TestAverage:
    def test_it_is_released_and_evaluated_while_clients_go_on_from_the_models_themselves(self) -> None:
        witness, plain, evaluated = Witness(), Witness(), list[np.ndarray]()

        def note(weights: np.ndarray) -> Evaluation:
            evaluated.append(weights)
            return evaluate(weights)

        models = list[np.ndarray]()
        run(plain, server="sgd", evaluator=lambda weights: models.append(weights) or evaluate(weights))  # type: ignore[func-returns-value]  # so that it is noted
        result = run(witness, server="average", evaluator=note)
        assert witness.digests == plain.digests
        for number in range(1, ROUNDS + 1):
            shares = AVERAGE ** np.arange(number - 1, -1, -1)
            mean = shares @ np.array(models[:number], np.float64) / shares.sum()
            np.testing.assert_allclose(evaluated[number - 1], mean, atol=1e-6)
        assert result.weights is evaluated[-1]
        assert result.transcript.final_weights is evaluated[-1]
        assert [r.average_sha256 for r in witness.seen] == [digest(average) for average in evaluated]
        assert {r.average_sha256 for r in plain.seen} == {None}

    def test_of_one_round_it_is_that_rounds_model(self) -> None:
        result = run(Witness(), server="average", rounds=1)
        assert result.weights.tobytes() == run(Witness(), server="sgd", rounds=1).weights.tobytes()

    def test_a_checkpoint_that_forgets_it_is_told_apart(self, tmp_path: Path) -> None:
        class Forgetful(Checkpoints):
            def newest(self, warn: Callable[[str], None]) -> Progress | None:
                found = super().newest(warn)
                if found is not None:
                    found.average = None
                return found

        expected = run(Witness(), server="average")
        for keeper, same in ((Checkpoints, True), (Forgetful, False)):
            checkpoints = keeper(tmp_path / keeper.__name__, "s")
            with pytest.raises(Killed):
                run(Witness(checkpoints, at=14), server="average")
            result = run(Witness(checkpoints), server="average")
            assert (result.weights.tobytes() == expected.weights.tobytes()) is same


def lost_in_round_3(number: int) -> Cohort:
    cohort = drawn(number)
    return Cohort(cohort.clients, dict.fromkeys(cohort.clients)) if number == 3 else cohort


def test_an_aborted_round_is_marked_and_shows_the_model_as_it_was(tmp_path: Path) -> None:
    witness = Witness(Checkpoints(tmp_path / "c", "s"))
    result = run(witness, mechanism="none", sample=lost_in_round_3)
    of_third = [name for name, number in witness.calls if number == 3]
    assert of_third == ["reserve", "abort", "checkpoint", "observe"]
    assert witness.reasons == ["no client survived"]
    second, third = result.reports[1:3]
    assert third.metrics.aborted == "no client survived"
    assert third.weights_sha256 == second.weights_sha256
    assert result.transcript.rounds == ROUNDS - 1
    for at, _ in enumerate(witness.calls):
        checkpoints = Checkpoints(tmp_path / str(at), "s")
        with pytest.raises(Killed):
            run(Witness(checkpoints, at), mechanism="none", sample=lost_in_round_3)
        again = run(Witness(checkpoints), mechanism="none", sample=lost_in_round_3)
        assert everything(again, tmp_path) == everything(result, tmp_path)


def losing(losses: Sequence[float]) -> Callable[[np.ndarray], Evaluation]:
    """An evaluator that gives one loss after another."""
    given = iter(losses)
    return lambda weights: Evaluation(next(given), 0.5)


@pytest.mark.parametrize(
    ("losses", "patience", "ended"),
    [
        ([5, 4, 3, 2, 1, 0], 1, 6),  # never
        ([5, 5, 5, 5, 5, 5], 1, 2),
        ([5, 5, 5, 5, 5, 5], 3, 4),
        ([5, 4, 6, 4, 3, 2], 2, 4),  # as low as before is not lower
        ([5, 4, 6, 3, 6, 6], 2, 6),
        ([5, 4, 6, 3, 6, 6], None, 6),
        ([5, 6, 6, 6, 6, 6], 9, 6),
    ],
)
def test_patience_ends_at_a_plateau_and_the_training_is_finished(
    losses: list[float], patience: int | None, ended: int, tmp_path: Path
) -> None:
    witness = Witness(Checkpoints(tmp_path, "s"), checkpoint_every=100)
    result = run(witness, witness.keeping(patience=patience), evaluator=losing(losses))
    assert len(result.reports) == ended
    assert not result.unfinished
    # It is finished for a rerun as well, which would otherwise spend again what secure mode draws anew.
    again = Witness(Checkpoints(tmp_path, "s"))
    assert len(run(again, again.keeping(patience=patience), evaluator=losing([])).reports) == ended
    assert again.calls == []


def test_patience_counts_evaluations_and_not_rounds() -> None:
    result = run(Witness(), Keeping(patience=2), evaluator=losing([5, 5, 5]), evaluate_every=2)
    assert len(result.reports) == 6
    assert [report.evaluation is not None for report in result.reports] == [False, True] * 3


def test_the_last_round_is_evaluated_in_any_case() -> None:
    result = run(Witness(), evaluate_every=4)
    assert [r.metrics.round for r in result.reports if r.evaluation is not None] == [4, ROUNDS]
    assert result.final_evaluation == result.reports[-1].evaluation


def test_earlier_rounds_are_told_once_before_the_first_new_one(tmp_path: Path) -> None:
    order: list[Any] = []
    with pytest.raises(Killed):
        run(Witness(Checkpoints(tmp_path, "s"), at=14))  # in the middle of round 4
    witness = Witness(Checkpoints(tmp_path, "s"))
    keeping = witness.keeping(resumed=lambda reports: order.extend(["resumed", [values(r) for r in reports]]))
    witness.reserve = lambda number: order.append(number)  # type: ignore[method-assign]
    run(witness, keeping)
    assert order == ["resumed", [values(r) for r in run(Witness()).reports[:3]], 4, 5, 6]


def test_a_report_survives_its_json() -> None:
    for report in run(Witness(), evaluate_every=2).reports:
        back = RoundReport.from_json(json.loads(json.dumps(report.as_json())))
        assert back.as_json() == report.as_json()
        assert (back.evaluation is None) == (report.evaluation is None)


def test_without_rounds_the_initial_model_is_released(tmp_path: Path) -> None:
    witness = Witness(Checkpoints(tmp_path, "s"))
    result = run(witness, rounds=0)
    assert (result.weights.tobytes(), result.reports, witness.calls) == (INITIAL.tobytes(), [], [])
    assert result.final_evaluation is None


def test_a_training_that_diverges_stays_on_record_and_is_refused(tmp_path: Path) -> None:
    witness = Witness(Checkpoints(tmp_path, "s"))
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(PrivFedError, match="diverged: after round 1 the model's weights are not finite"),
    ):
        run(witness, initial=np.full(D, np.inf, np.float32))
    assert [name for name, _ in witness.calls] == ["reserve", "commit"]
    assert Checkpoints(tmp_path, "s").newest(unexpected) is None
