"""The training loop: ended anywhere and gone on with, it comes to the same bits; nothing is shown unrecorded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import (
    AVERAGE,
    INITIAL,
    MECHANISMS,
    REMEMBERING,
    ROUNDS,
    SERVERS,
    STREAMS,
    D,
    Killed,
    TowardsTargets,
    Witness,
    drawn,
    evaluate,
    everything,
    last_state,
    run,
    unexpected,
    values,
)

from privfed.errors import PrivFedError
from privfed.federated.aggregation import PlainAggregation
from privfed.federated.checkpoint import Checkpoints, Progress
from privfed.federated.cohorts import Cohort
from privfed.federated.evaluation import Evaluation
from privfed.federated.round import Round
from privfed.federated.training import Keeping, RoundReport, TrainingResult, digest
from privfed.privacy.mechanisms import CentralGaussian


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints have their own tests; here thousands are written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


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
