"""What trials spend together, against the accountant's own figure for as many rounds in one training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_trials import spend

from privfed.privacy.accounting import account
from privfed.privacy.sampling import PoissonSampling
from privfed.sweep.cost import ADVICE, compose, read_spent, search_cost
from privfed.sweep.grid import Base, Trial, grid

MODELS = ("client", "release")


def laid_down(base: Base, out: Path, vary: list[str], seeds: int = 1, rounds: int | None = None) -> list[Trial]:
    trials = grid(base, vary, seeds)
    for trial in trials:
        folder = out / "trials" / trial.id
        folder.mkdir(parents=True)
        spend(folder, trial.settings, trial.settings.training.rounds if rounds is None else rounds)
    return trials


def test_equal_trials_spend_what_one_long_training_does(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, [], seeds=4)
    got = search_cost(tmp_path, None).together
    expected = account(1.5, PoissonSampling(0.2), 12, 1e-5)
    assert got.trials == 4
    for observer in MODELS:
        assert got.privacy[observer].epsilon == pytest.approx(expected.epsilon, rel=1e-12)
        assert got.privacy[observer].delta == 1e-5
    for observer in ("server", "server+colluders", "active server"):
        assert math.isinf(got.privacy[observer].epsilon)


def test_composition_is_more_than_one_and_less_than_the_sum(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, ["privacy.noise_multiplier=1,2,4"])
    got = search_cost(tmp_path, None).together.privacy["release"].epsilon
    alone = [account(z, PoissonSampling(0.2), 3, 1e-5).epsilon for z in (1, 2, 4)]
    assert max(alone) < got < sum(alone)


def test_killed_and_forgotten_trials_count(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, [], seeds=1)
    laid_down(base, tmp_path, ["training.rounds=9"], rounds=2)
    got = search_cost(tmp_path, None).together
    assert got.privacy["release"].epsilon == pytest.approx(
        account(1.5, PoissonSampling(0.2), 5, 1e-5).epsilon, rel=1e-12
    )


def test_a_trial_without_mechanism_makes_everything_infinite_and_is_named(base: Base, tmp_path: Path) -> None:
    base = replace(base, overrides=("privacy.noise_multiplier=none", "privacy.epsilon=1"))
    laid_down(base, tmp_path, ["privacy.epsilon=1,2,inf"])
    cost = search_cost(tmp_path, None)
    assert all(math.isinf(loss.epsilon) for loss in cost.together.privacy.values())
    assert "1 of the trials has no mechanism" in cost.together.why
    assert cost.protected is not None
    assert cost.protected.trials == 2
    assert math.isfinite(cost.protected.privacy["release"].epsilon)
    assert cost.statement.endswith(ADVICE)


def test_trials_that_share_their_noise_protect_nobody_together(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, ["privacy.clip_norm=1,2", "training.seed=5"])
    got = search_cost(tmp_path, None).together
    assert math.isinf(got.privacy["release"].epsilon)
    assert "share a seed" in got.why


def test_the_smallest_delta_is_the_one_in_all(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, ["privacy.delta=1e-5,1e-7"])
    loss = search_cost(tmp_path, None).together.privacy["release"]
    assert loss.delta == 1e-7
    assert loss.epsilon == pytest.approx(account(1.5, PoissonSampling(0.2), 6, 1e-7).epsilon, rel=1e-12)


def test_other_clients_do_not_compose(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, ["data.clients=40,50"])
    got = search_cost(tmp_path, None).together
    assert got.privacy == {}
    assert "data settings differ" in got.why


def test_other_neighbours_do_not_compose(base: Base, tmp_path: Path) -> None:
    laid_down(base, tmp_path, [])
    base = replace(base, overrides=("cohort.sampling=fixed", "cohort.rate=none", "cohort.size=10"))
    laid_down(base, tmp_path, ["training.rounds=4"])
    got = search_cost(tmp_path, None).together
    assert got.privacy == {}
    assert "neighbouring relations differ" in got.why


def test_a_damaged_ledger_bounds_nothing(base: Base, tmp_path: Path) -> None:
    one, _ = laid_down(base, tmp_path, [], seeds=2)
    path = tmp_path / "trials" / one.id / "ledger.jsonl"
    path.write_text(path.read_text().replace('"noise_multiplier": 1.5', '"noise_multiplier": 15.0', 1))
    got = search_cost(tmp_path, None).together
    assert math.isinf(got.privacy["release"].epsilon)
    assert "cannot be read" in got.why


def test_nothing_trained_spends_nothing_that_can_be_stated(tmp_path: Path) -> None:
    assert compose(list(read_spent(tmp_path / "trials"))).why == "nothing was trained"
