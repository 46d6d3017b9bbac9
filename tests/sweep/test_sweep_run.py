"""A sweep from end to end, with made-up trainings: its files, going on, failures, interrupts and refusals."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_trials import QUIET, FakeRunner

from privfed.errors import OutputError, PrivFedError, Stopped
from privfed.sweep.campaign import claimed
from privfed.sweep.grid import Base, Trial
from privfed.sweep.record import Sweep, read_baseline, read_sweep
from privfed.sweep.run import run_sweep

VARY = ["privacy.epsilon=1,2,inf"]


@pytest.fixture
def base(base: Base) -> Base:
    return replace(base, overrides=("privacy.noise_multiplier=none", "privacy.epsilon=1"))


def accuracy(trial: Trial) -> float:
    epsilon = trial.settings.privacy.epsilon
    return (0.9 if epsilon is None else 0.8 - 0.1 / epsilon) + 0.01 * trial.repeat


def sweep_with(runner: FakeRunner, base: Base, out: Path, vary: list[str] = VARY, seeds: int = 2) -> Sweep:
    return run_sweep(base, vary, seeds, 1, out, QUIET, runner=runner)


def test_the_three_files_agree(base: Base, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = sweep_with(FakeRunner(accuracy), base, out)
    assert read_sweep(out / "sweep.json") == sweep
    text = (out / "sweep.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [trial.id for trial in sweep.trials]
    for row, trial in zip(rows, sweep.trials, strict=True):
        assert float(row["test_accuracy"]) == trial.test_accuracy
        assert float(row["epsilon release"]) == trial.privacy["release"].epsilon
        assert row["epsilon server"] == "inf"
        assert row["privacy.epsilon"] == str(trial.values["privacy.epsilon"])
        assert (out / row["folder"] / "ledger.jsonl").exists()
    page = (out / "sweep.html").read_text()
    assert all(trial.id in page for trial in sweep.trials)


def test_selected_is_the_most_accurate_of_the_protected(base: Base, tmp_path: Path) -> None:
    cost = sweep_with(FakeRunner(accuracy), base, tmp_path / "out").cost
    assert cost.selected is not None
    assert cost.selected.id == "epsilon-2_seed-1"
    assert math.isinf(cost.together.privacy["release"].epsilon)
    assert cost.protected is not None
    assert cost.protected.privacy["release"].epsilon > cost.selected.privacy["release"].epsilon


def test_what_is_done_is_not_run_again(base: Base, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = sweep_with(FakeRunner(accuracy), base, out)
    again = FakeRunner(accuracy)
    second = sweep_with(again, base, out)
    assert again.ran == []
    assert second.trials == first.trials
    larger = FakeRunner(accuracy)
    sweep_with(larger, base, out, ["privacy.epsilon=1,2,4,inf"])
    assert larger.ran == ["epsilon-4_seed-0", "epsilon-4_seed-1"]


def test_a_failure_stops_nobody_else_and_is_tried_again(base: Base, tmp_path: Path) -> None:
    def fails(trial: Trial) -> float:
        if trial.id == "epsilon-1_seed-1":
            raise RuntimeError("no such data")
        return accuracy(trial)

    out = tmp_path / "out"
    sweep = sweep_with(FakeRunner(fails), base, out)
    assert sweep.status == "partial"
    assert [t.status for t in sweep.trials] == ["done", "failed", "done", "done", "done", "done"]
    assert sweep.trials[1].error == "no such data"
    assert sweep.cost.together.trials == 6  # it has a ledger, so what it spent counts
    assert sweep.summaries[0].accuracy.n == 1
    assert "no such data" in (out / "sweep.html").read_text()
    again = FakeRunner(accuracy)
    assert sweep_with(again, base, out).status == "complete"
    assert again.ran == ["epsilon-1_seed-1"]


def test_an_interrupt_keeps_what_is_done(base: Base, tmp_path: Path) -> None:
    def stops(trial: Trial) -> float:
        if trial.id == "epsilon-2_seed-0":
            raise KeyboardInterrupt
        return accuracy(trial)

    out = tmp_path / "out"
    with pytest.raises(Stopped, match="2 of 6 trials done") as caught:
        sweep_with(FakeRunner(stops), base, out)
    assert caught.value.exit_code == 130
    assert [t.status for t in read_sweep(out / "sweep.json").trials] == ["done"] * 2 + ["unfinished"] * 4
    again = FakeRunner(accuracy)
    sweep_with(again, base, out)
    assert len(again.ran) == 4


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_run(base: Base, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep_with(FakeRunner(accuracy), base, out)
    before = (out / "sweep.json").read_text()
    changed = replace(base, overrides=(*base.overrides, "training.rounds=4"))
    runner = FakeRunner(accuracy)
    with pytest.raises(OutputError, match=r"training\.rounds is 3, here 4"):
        sweep_with(runner, changed, out, ["privacy.epsilon=0.5,1,2,inf"])
    assert runner.ran == []
    assert (out / "sweep.json").read_text() == before


def test_a_marker_of_other_settings_does_not_count(base: Base, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep_with(FakeRunner(accuracy), base, out, [], 1)
    marker = out / "trials" / "seed-0" / "trial.json"
    fingerprint = json.loads(marker.read_text())["settings_fingerprint"]
    marker.write_text(marker.read_text().replace(fingerprint, "0" * 64))
    runner = FakeRunner(accuracy)
    sweep_with(runner, base, out, [], 1)
    assert runner.ran == ["seed-0"]


def test_foreign_folders_and_two_at_once_are_refused(base: Base, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        sweep_with(FakeRunner(accuracy), base, tmp_path / "foreign")
    with claimed(tmp_path / "busy", ()), pytest.raises(OutputError, match="another process"):
        sweep_with(FakeRunner(accuracy), base, tmp_path / "busy")
    with pytest.raises(OutputError, match="cannot be written"):
        sweep_with(FakeRunner(accuracy), base, tmp_path / "foreign" / "thesis.tex")


def test_baseline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("epsilon,accuracy,label\n1,0.5,theirs\ninf,0.9,theirs\n")
    assert [(p.epsilon, p.accuracy, p.label) for p in read_baseline(path)] == [
        (1.0, 0.5, "theirs"),
        (math.inf, 0.9, "theirs"),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "epsilon,accuracy\n1,0.5\n", "epsilon,accuracy,label\n", "epsilon,accuracy,label\n0,0.5,x\n"]
    + [
        f"epsilon,accuracy,label\n{line}\n"
        for line in ("1,85,x", "nan,0.5,x", "1,nan,x", "a,0.5,x", "1,0.5,", "1")
    ],
)
def test_baselines_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.csv"
    path.write_text(text)
    with pytest.raises(PrivFedError, match="--baseline") as caught:
        read_baseline(path)
    assert "\n" not in str(caught.value)
