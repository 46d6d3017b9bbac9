"""The search on a made-up landscape: how near it gets, that it goes on where it was, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_trials import QUIET, FakeRunner

from privfed.errors import SettingError, Stopped
from privfed.privacy.accounting import account
from privfed.privacy.sampling import PoissonSampling
from privfed.settings_file import load_settings
from privfed.sweep.grid import Base, Trial
from privfed.sweep.search import Range, ranges_for, spread
from privfed.sweep.tune import Tune, fragment, read_tune, run_tune

BUDGET = 30


def landscape(trial: Trial) -> float:
    """A hill with its top at clip 0.3, learning rate 0.2, momentum 0.6; local epochs do not matter."""
    training, clip = trial.settings.training, trial.settings.privacy.clip_norm or 1.0
    off = (math.log(clip / 0.3)) ** 2 + math.log(training.learning_rate / 0.2) ** 2
    off += 2 * (training.server_momentum - 0.6) ** 2 + math.log(training.server_learning_rate) ** 2
    return 0.9 * math.exp(-off / 8)


def noisy(trial: Trial) -> float:
    rng = np.random.default_rng(trial.settings.training.seed)
    return float(min(1.0, max(0.0, landscape(trial) + rng.normal(0, 0.03))))


def tune(base: Base, out: Path, runner: FakeRunner, budget: int = BUDGET, ranges: tuple[str, ...] = ()) -> Tune:
    return run_tune(base, ranges, budget, 1, out, QUIET, runner=runner)


def test_the_budget_is_kept(base: Base, tmp_path: Path) -> None:
    runner = FakeRunner(noisy)
    got = tune(base, tmp_path / "out", runner)
    assert len(runner.ran) == len(got.trials) == BUDGET
    stages = [searched.stage for searched in got.trials]
    assert {stage: stages.count(stage) for stage in stages} == {
        "start": 1,
        "explore": 11,
        "refine": 12,
        "confirm": 6,
    }


def test_finds_better_settings_than_points_spread_on_the_same_budget(base: Base, tmp_path: Path) -> None:
    """Mean over six seeds of the search, by the landscape without its noise, whose top is 0.9."""
    found, spread_only = [], []
    for seed in range(6):
        out = tmp_path / str(seed)
        run_tune(base, (), BUDGET, 1, out, QUIET, seed=seed, runner=FakeRunner(noisy))
        found.append(landscape(Trial("", {}, 0, load_settings(out / "best.toml"))))
        trials = [base.trial(values, 0) for values in spread(ranges_for(base.settings(), []), BUDGET, seed)]
        spread_only.append(landscape(max(trials, key=noisy)))
    assert landscape(Trial("", {}, 0, base.settings())) < 0.75
    assert np.mean(found) > max(0.83, np.mean(spread_only))


def test_best_is_judged_by_fresh_trainings(base: Base, tmp_path: Path) -> None:
    got = tune(base, tmp_path / "out", FakeRunner(noisy))
    assert got.best is not None
    fresh = [
        s.trial.test_accuracy for s in got.trials if s.stage == "confirm" and s.trial.values == got.best.values
    ]
    assert got.best.confirmed is not None
    assert got.best.confirmed.n == len(fresh) == 2
    assert got.best.confirmed.value == pytest.approx(np.mean(fresh))
    others: dict[str, list[float]] = {}
    for searched in got.trials:
        if searched.stage == "confirm":
            others.setdefault(str(searched.trial.values), []).append(searched.trial.test_accuracy or 0)
    assert len(others) == 3
    assert got.best.confirmed.value == pytest.approx(max(np.mean(scores) for scores in others.values()))


def test_the_experiment_stays_when_nothing_is_better(base: Base, tmp_path: Path) -> None:
    own = {key: str(v) for key, v in {"privacy.clip_norm": 1.0, "training.learning_rate": 0.1}.items()}

    def top_at_start(trial: Trial) -> float:
        return 0.9 if trial.settings.training.learning_rate == 0.1 else 0.5

    got = tune(base, tmp_path / "out", FakeRunner(top_at_start), 12)
    assert got.best is not None
    assert got.start_confirmed is not None
    assert {key: str(got.best.values[key]) for key in own} == own


def test_same_result_after_an_interrupt(base: Base, tmp_path: Path) -> None:
    whole = tune(base, tmp_path / "whole", FakeRunner(noisy))
    left = iter(range(17))

    def stops(trial: Trial) -> float:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return noisy(trial)

    with pytest.raises(Stopped, match="17 of 30 trials done"):
        tune(base, tmp_path / "two", FakeRunner(stops))
    partial = json.loads((tmp_path / "two" / "tune.json").read_text())
    assert partial["status"] == "partial"
    again = FakeRunner(noisy)
    resumed = tune(base, tmp_path / "two", again)
    assert len(again.ran) == 13
    assert resumed.best == whole.best
    assert resumed.trials == whole.trials
    assert read_tune(tmp_path / "two" / "tune.json") == resumed


def test_failures_leave_the_search_going(base: Base, tmp_path: Path) -> None:
    def half(trial: Trial) -> float:
        if trial.settings.training.local_epochs % 2:
            raise RuntimeError("odd")
        return noisy(trial)

    got = tune(base, tmp_path / "out", FakeRunner(half))
    assert got.status == "partial"
    assert got.best is not None
    assert got.best.values["training.local_epochs"] in (2, 4, 6, 8, 10)


def test_nothing_comes_of_nothing(base: Base, tmp_path: Path) -> None:
    def fails(trial: Trial) -> float:
        raise RuntimeError("no such data")

    got = tune(base, tmp_path / "out", FakeRunner(fails), 5)
    assert got.best is None
    assert not (tmp_path / "out" / "best.toml").exists()


def test_all_trials_are_paid_for(base: Base, tmp_path: Path) -> None:
    got = tune(base, tmp_path / "out", FakeRunner(noisy), 12)
    expected = account(1.5, PoissonSampling(0.2), 3 * 12, 1e-5).epsilon
    assert got.cost.together.privacy["release"].epsilon == pytest.approx(expected, rel=1e-12)
    assert got.cost.selected is not None
    assert got.cost.selected.values == got.best.values  # type: ignore[union-attr]
    assert got.cost.selected.privacy["release"].epsilon < expected


def test_best_toml_is_the_experiment_with_the_best_values(base: Base, tmp_path: Path) -> None:
    got = tune(base, tmp_path / "out", FakeRunner(noisy), 5)
    assert got.best is not None
    changes = [f"{key}={value}" for key, value in got.best.values.items()]
    assert load_settings(tmp_path / "out" / "best.toml") == load_settings(base.experiment, changes)
    (tmp_path / "f.toml").write_text(fragment(got.best.values))
    settings = load_settings(tmp_path / "f.toml", ["privacy.mechanism=none"])
    assert settings.training.learning_rate == got.best.values["training.learning_rate"]


def test_ranges_follow_the_settings(base: Base) -> None:
    usual = [one.key for one in ranges_for(base.settings(), [])]
    assert usual[0] == "privacy.clip_norm"
    assert len(usual) == 5
    adam = replace(base, overrides=("training.server_optimizer=adam",)).settings()
    assert "training.server_momentum" not in [one.key for one in ranges_for(adam, [])]
    bare = ("privacy.mechanism=none", "privacy.noise_multiplier=none", "privacy.clip_norm=none")
    assert "privacy.clip_norm" not in [r.key for r in ranges_for(replace(base, overrides=bare).settings(), [])]
    own = ranges_for(base.settings(), ["training.batch_size=5:50:log", "training.learning_rate=none"])
    assert {one.key: (one.low, one.high, one.log, one.whole) for one in own}["training.batch_size"] == (
        5,
        50,
        True,
        True,
    )
    assert "training.learning_rate" not in [one.key for one in own]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("privacy.clip_norm", "is written"),
        ("privacy.clip_norm=1", "is written"),
        ("privacy.clip_norm=1:2:cubic", "is written"),
        ("privacy.clip_norm=a:2", "is written"),
        ("privacy.clip_norm=2:1", "low end"),
        ("privacy.clip_norm=nan:1", "low end"),
        ("privacy.clip_norm=0:1:log", "above 0"),
        ("training.local_epochs=1.5:3", "whole numbers"),
        ("training.colour=1:2", "unknown key"),
        ("training=1:2", "not a number"),
        ("training.shuffle=0:1", "not a number"),
        ("privacy.epsilon=1:2", "all trials spend the same"),
        ("training.rounds=1:2", "all trials spend the same"),
        ("cohort.rate=0.1:0.2", "all trials spend the same"),
    ],
)
def test_ranges_that_are_none(base: Base, text: str, named: str) -> None:
    with pytest.raises(SettingError, match=re.escape(named)):
        ranges_for(base.settings(), [text])


def test_a_bad_range_or_objective_runs_nothing(base: Base, tmp_path: Path) -> None:
    runner = FakeRunner(noisy)
    with pytest.raises(SettingError, match=r"clip_norm"):
        tune(base, tmp_path / "out", runner, ranges=("privacy.clip_norm=-2:-1",))
    with pytest.raises(SettingError, match="--objective"):
        run_tune(base, (), 5, 1, tmp_path / "out", QUIET, objective="speed", runner=runner)
    assert runner.ran == []


def test_points_are_spread_and_begin_the_same() -> None:
    ranges = [
        Range(key="a", low=0.01, high=1, log=True, whole=False),
        Range(key="b", low=1, high=8, log=False, whole=True),
    ]
    few, many = spread(ranges, 5, 0), spread(ranges, 32, 0)
    assert many[:5] == few
    assert spread(ranges, 5, 1) != few
    # Sobol points: of 32, each quarter of a range holds 8, which independent ones do with a chance below 1 %.
    quarters = np.floor([np.log10(float(point["a"]) / 0.01) * 2 for point in many])
    assert [int((quarters == q).sum()) for q in range(4)] == [8] * 4
    assert {point["b"] for point in many} == {str(i) for i in range(1, 9)}


def test_places_and_values_are_inverse() -> None:
    for one in (
        Range(key="a", low=0.01, high=1, log=True, whole=False),
        Range(key="a", low=-1, high=3, log=False, whole=False),
    ):
        for place in (0.0, 0.3, 1.0):
            assert one.place(float(one.text(place))) == pytest.approx(place, abs=2e-3)
