"""More clients are drawn than are wanted: ε is that of the larger draw, and whoever answers counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privfed.composition import compose
from privfed.errors import SettingError
from privfed.experiment import Experiment
from privfed.privacy.accounting import by_observer, times
from privfed.privacy.mechanisms import Mechanism
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling, RoundRobinSampling
from privfed.rundir import RunFolder
from privfed.secagg import arrives
from privfed.settings_file import dump_toml, resolve_settings

CLIENTS, ROUNDS = 40, 3
POISSON = {"sampling": "poisson", "rate": 0.4}
FIXED = {"sampling": "fixed", "size": 10}
ROUND_ROBIN = {"sampling": "round_robin", "size": 5}
GAUSSIAN = {"mechanism": "gaussian", "clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
SKELLAM = {"mechanism": "skellam", "clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}


def experiment_of(cohort: dict[str, Any], privacy: dict[str, Any] | None = None, **more: Any) -> Experiment:
    tree = {
        "data": {"source": "digits", "clients": CLIENTS},
        "training": {"rounds": ROUNDS, "batch_size": 10, "learning_rate": 0.2},
        "cohort": cohort,
        "privacy": GAUSSIAN if privacy is None else privacy,
        "attacks": {"enabled": False},
        **more,
    }
    return compose(resolve_settings(tree))


def epsilon(experiment: Experiment) -> float:
    return experiment.guarantees()["release"].epsilon


def test_what_is_drawn_is_what_is_accounted() -> None:
    over = experiment_of({**POISSON, "over_selection": 0.5})
    assert over.sampling == PoissonSampling(0.4 * 1.5)
    assert epsilon(over) == epsilon(experiment_of({**POISSON, "rate": 0.4 * 1.5}))
    assert epsilon(over) > 1.1 * epsilon(experiment_of(POISSON))  # the claim for the wanted would be too small
    sizes = [len(over.sample(number).clients) for number in range(1, 401)]
    deviation = math.sqrt(CLIENTS * 0.6 * 0.4 / 400)
    assert abs(np.mean(sizes) - CLIENTS * 0.6) < 5 * deviation < CLIENTS * 0.2  # 0.4 would be caught
    assert experiment_of({**FIXED, "over_selection": 0.25}).sampling == FixedSizeSampling(13, CLIENTS)
    assert experiment_of({**FIXED, "over_selection": 0.1}).sampling == FixedSizeSampling(11, CLIENTS)
    banded = {**GAUSSIAN, "mechanism": "banded"}
    round_robin = experiment_of({**ROUND_ROBIN, "over_selection": 0.6}, banded)
    assert round_robin.sampling == RoundRobinSampling(8, CLIENTS, ROUNDS)


@pytest.mark.parametrize("cohort", [POISSON, FIXED], ids=["poisson", "fixed"])
def test_sums_are_divided_by_the_wanted_cohort_whoever_answers(cohort: dict[str, Any]) -> None:
    wanted = experiment_of(cohort).divisor
    assert wanted == CLIENTS * 0.4 if cohort is POISSON else 10
    assert experiment_of({**cohort, "over_selection": 0.5}).divisor == wanted


def test_everybody_who_answers_is_in_the_sum() -> None:
    over = experiment_of({**FIXED, "over_selection": 0.5, "dropout": 0.2})
    metrics = [report.metrics for report in over.run(None, lambda report: None).reports]
    cohorts = [over.sample(number) for number in range(1, ROUNDS + 1)]
    lost = [sum(not arrives(stage) for stage in cohort.dropouts.values()) for cohort in cohorts]
    assert [m.cohort for m in metrics] == [15] * ROUNDS
    assert [m.survivors for m in metrics] == [15 - n for n in lost]
    assert max(m.survivors for m in metrics) > 10  # nobody is sent home once the wanted are there


def test_noise_of_clients_is_enough_when_no_more_than_the_wanted_answer() -> None:
    masked = {"mode": "protocol", "colluders": 0}
    over = experiment_of({**FIXED, "over_selection": 0.5}, SKELLAM, secure_aggregation=masked)
    plan = over.privacy_plan
    assert plan is not None
    assert over.noise_multiplier is not None
    assert plan.expected_survivors == 10

    def spent(mechanism: Mechanism, survivors: int) -> float:
        releases = mechanism.releases(over.sampling, survivors)
        return plan.stated(by_observer([times(releases, ROUNDS)], plan.delta), "protected").epsilon

    planned = plan.stated(over.guarantees(), "protected").epsilon
    assert spent(over.mechanism, 10) == planned
    assert spent(over.mechanism, 15) < planned < spent(over.mechanism, 8)
    for_all_drawn = replace(plan, wanted=None).mechanism(over.noise_multiplier)  # shares of 15 clients
    assert spent(for_all_drawn, 10) > 1.1 * planned


def test_the_masks_and_the_threshold_are_of_the_drawn_cohort() -> None:
    masked = {"mode": "protocol", "colluders": 1}
    over = experiment_of({**FIXED, "over_selection": 0.5}, GAUSSIAN, secure_aggregation=masked)
    with over.client_work() as work:
        parts = over.round(work)
        weights = over.initial_weights
        outcome = parts(1, weights, parts.initialize(len(weights)), over.sample(1), lambda w, n: None, record=True)
    assert outcome.record is not None
    assert outcome.record.threshold == (15 + 1) // 2 + 1
    assert len(outcome.record.cohort) == 15


@pytest.mark.parametrize(
    ("cohort", "where", "words"),
    [
        ({"sampling": "all", "over_selection": 0.2}, "cohort", "draws everybody"),
        ({**POISSON, "over_selection": 2.0}, "cohort", "with probability 1.2"),
        ({**POISSON, "over_selection": -0.1}, "cohort.over_selection", "greater than or equal to 0"),
        ({**FIXED, "size": 38, "over_selection": 0.1}, "cohort.over_selection", "42 of 40"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cohort: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(SettingError, match=words) as refused:
        experiment_of(cohort)
    assert refused.value.where == where


def test_a_run_without_it_has_the_settings_that_it_had_before(tmp_path: Any) -> None:
    settings = experiment_of(POISSON).settings
    assert "over_selection" not in settings.model_dump(mode="json")["cohort"]
    over = experiment_of({**POISSON, "over_selection": 0.5}).settings
    assert over.fingerprint() != settings.fingerprint()
    path = tmp_path / "over.toml"
    path.write_text(dump_toml(over), encoding="utf-8")
    assert "over_selection = 0.5" in path.read_text(encoding="utf-8")
    RunFolder(tmp_path / "run", settings).claim()
    with pytest.raises(Exception, match=r"there cohort.over_selection is None, here 0.5"):
        RunFolder(tmp_path / "run", over)
