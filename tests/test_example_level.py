"""Example-level DP-SGD, whole: it learns, its ledger proves its ε, and its unit is never mistaken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld
from typer.testing import CliRunner

from privfed.api import Population, load_population, train
from privfed.cli import app
from privfed.privacy.accounting import EVERYBODY, Release, compose
from privfed.privacy.errors import PrivacyError
from privfed.privacy.ledger_report import verify_ledger
from privfed.privacy.sampling import LocalPoissonSampling, PoissonSampling

ROUNDS, STEPS, RATE, DELTA = 8, 10, 0.1, 1e-5
TABLES: dict[str, Any] = {
    "training": {"rounds": ROUNDS, "local_steps": STEPS, "batch_size": 14, "learning_rate": 1.0},
    "privacy": {
        "mechanism": "dp_sgd",
        "unit": "example",
        "example_rate": RATE,
        "clip_norm": 1.0,
        "epsilon": 8.0,
        "delta": DELTA,
    },
    "attacks": {"enabled": False},
}


@pytest.fixture(scope="module")
def population() -> Population:
    return load_population("digits", clients=10)


def reference(noise_multiplier: float, steps: int) -> float:
    """By the library alone: subsampled Gaussians one after another."""
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    event = dp.PoissonSampledDpEvent(RATE, dp.GaussianDpEvent(noise_multiplier))
    accountant.compose(event, steps)
    return float(accountant.get_epsilon(DELTA))


def test_it_learns_and_everybody_has_the_epsilon_that_the_ledger_proves(
    population: Population, tmp_path: Path
) -> None:
    run = train(population, "softmax", out=tmp_path / "run", **TABLES)
    assert run.metrics["test_accuracy"][ROUNDS] > 0.85
    report = verify_ledger(tmp_path / "run" / "ledger.jsonl")
    assert set(report.guarantees) == EVERYBODY
    (guarantee,) = set(report.guarantees.values())
    assert (guarantee.unit, guarantee.neighbouring) == ("example", "add or remove one example of one client")
    assert 7.9 < guarantee.epsilon <= 8
    noise = guarantee.noise_multiplier
    assert noise is not None
    # Every round of a client counts, and every step in it; cohorts amplify nothing.
    assert guarantee.epsilon == pytest.approx(reference(noise, ROUNDS * STEPS), rel=1e-3)
    assert report.spent == ROUNDS
    assert "For a client as a whole, all of its examples together: ε = ∞ against everybody." in repr(run)


def test_cohorts_amplify_nothing(population: Population) -> None:
    tables = {**TABLES, "training": {**TABLES["training"], "rounds": 1}}
    everybody, few = (
        train(population, "softmax", cohort=cohort, **tables).guarantees
        for cohort in ({"sampling": "all"}, {"sampling": "poisson", "rate": 0.3})
    )
    assert {g.epsilon for g in everybody.values()} == {g.epsilon for g in few.values()}


def test_the_same_seed_gives_the_same_model_and_secure_mode_never_does(population: Population) -> None:
    short = {**TABLES, "training": {**TABLES["training"], "rounds": 1, "local_steps": 2}}
    first, second = (train(population, "softmax", **short).weights for _ in range(2))
    np.testing.assert_array_equal(first, second)
    secure = {**short, "privacy": {**TABLES["privacy"], "randomness": "secure"}}
    third, fourth = (train(population, "softmax", **secure).weights for _ in range(2))
    assert np.isfinite(third).all()
    assert (third != fourth).mean() > 0.99


def test_units_do_not_compose_with_each_other() -> None:
    of_examples, of_clients = Release(LocalPoissonSampling(RATE, 3), 1.0), Release(PoissonSampling(RATE), 1.0)
    assert compose([of_examples], DELTA).unit == "example"
    for releases, unit in (
        ([of_examples], "client"),
        ([of_clients], "example"),
        ([of_examples, of_clients], None),
    ):
        with pytest.raises(PrivacyError, match="different units"):
            compose(releases, DELTA, unit)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 5), (0.1, 10)])
def test_account_and_calibrate_cover_it(rate: float, steps: int) -> None:
    common = ["--mechanism", "dp_sgd", "--sampling", "all", "--rounds", "4", "--delta", str(DELTA), "--json"]
    common += ["--example-rate", str(rate), "--local-steps", str(steps)]
    found = CliRunner().invoke(app, ["calibrate", "--epsilon", "3", *common])
    calibrated = json.loads(found.stdout)
    assert calibrated["unit"] == "example"
    assert 2.98 < calibrated["epsilon"] <= 3
    again = CliRunner().invoke(
        app, ["account", "--noise-multiplier", str(calibrated["noise_multiplier"]), *common]
    )
    assert json.loads(again.stdout)["epsilon"] == calibrated["epsilon"]
    assert set(calibrated["observers"]) == EVERYBODY
