"""Canaries take part as clients do: in trainings of every mode, and with faults planted in the mechanism."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.audit.canaries import CanaryClients, JoinedWork, RandomUpdates, Tally, random_directions
from privfed.audit.empirical import ObserverFinding, findings
from privfed.errors import PrivFedError, SettingError
from privfed.experiment import Experiment, compose
from privfed.federated.cohorts import Cohort
from privfed.settings_file import load_settings
from privfed.transcript import Observer

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"


def experiment(canaries: int = 100, kind: str = "update", mode: str = "off", seed: int = 1) -> Experiment:
    settings = load_settings(DIGITS)
    changes: dict[str, Any] = {
        "audit": settings.audit.model_copy(update={"canaries": canaries, "canary_kind": kind}),
        "attacks": settings.attacks.model_copy(update={"enabled": False}),
        "secure_aggregation": settings.secure_aggregation.model_copy(update={"mode": mode}),
        "training": settings.training.model_copy(update={"seed": seed, "rounds": 20, "local_epochs": 1}),
    }
    return compose(settings.model_copy(update=changes))


def judged(e: Experiment, state: Any, weights: Any) -> dict[Observer, ObserverFinding]:
    assert e.canaries is not None
    claims = {observer: guarantee.epsilon for observer, guarantee in e.guarantees().items()}
    spent = [e.mechanism.releases(e.sampling)] * e.rounds
    moved = weights.astype(float) - e.initial_weights
    rng = np.random.default_rng(0)
    found = findings(e.canaries, Tally(state[-1]), moved, spent, claims, 1e-4, masked=False, rng=rng)
    return {finding.observer: finding for finding in found}


def test_a_cohort_admits_only_canaries_that_exist() -> None:
    directions = random_directions(4, 50, (1,))
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    canaries = CanaryClients("update", 10, np.array([True, False, True, False]), directions, 0.5)
    assert canaries.admit(Cohort((3, 10, 11, 13), {3: None, 11: None})) == Cohort((3, 10), {3: None})


def test_canaries_that_would_act_as_noise_are_refused() -> None:
    canaries = CanaryClients("update", 10, np.ones(400, bool), random_directions(400, 50, (1,)), 0.5)
    assert canaries.noise_share(1.0) == pytest.approx(10 / 50**0.5)
    with pytest.raises(SettingError, match="act as noise"):
        canaries.check(1.0)
    with pytest.raises(SettingError, match="GiB"):
        random_directions(10_000, 1_000_000, (1,))


def test_joined_work_is_both_and_tells_who_arrived() -> None:
    directions, arrived = random_directions(6, 30, (2,)), []
    work = JoinedWork(RandomUpdates(directions[:3], 0.5), RandomUpdates(directions[3:], 9.0), 3, arrived.extend)
    weights = np.zeros(30, np.float32)
    chunks = list(work(weights, [0, 2, 4], (1,)))
    assert [c for chunk in chunks for c in chunk.clients] == [0, 2, 4]
    assert arrived == [1]
    done = work.clipped_sum(weights, [0, 2, 4], (1,), 1.0)
    assert done.clients == (0, 2, 4)
    assert done.norms == pytest.approx([0.5, 0.5, 9.0], rel=1e-5)
    assert done.total == pytest.approx(directions[0] / 2 + directions[2] / 2 + directions[4], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["update", "input"])
def test_every_mode_trains_and_scores_alike(kind: str) -> None:
    plain, ring = (experiment(60, kind, mode) for mode in ("off", "ring"))
    tallies = [Tally(e.run(None, lambda report: None).mechanism_state[-1]) for e in (plain, ring)]
    assert np.array_equal(tallies[0].participations, tallies[1].participations)
    assert tallies[0].participations[~plain.canaries.included].sum() == 0  # type: ignore[union-attr]  # asked for
    assert tallies[0].with_sum == pytest.approx(tallies[1].with_sum, abs=0.05)


@pytest.mark.slow
def test_the_server_with_plain_sums_guesses_all_and_a_right_claim_stands() -> None:
    e = experiment()
    result = e.run(None, lambda report: None)
    found = judged(e, result.mechanism_state, result.weights)
    assert found[Observer.SERVER].estimates[0].low == np.inf
    assert found[Observer.SERVER].bound.right == found[Observer.SERVER].bound.guesses
    assert not any(finding.flagged for finding in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 0.1])
def test_less_noise_than_claimed_is_flagged(factor: float) -> None:
    e = experiment()
    watched = e.watched
    assert watched is not None
    assert e.noise_multiplier is not None
    real = replace(e, noise_multiplier=e.noise_multiplier * factor).mechanism
    claimed = watched.inner.stddev((), 1)

    class LessNoise:
        """The mechanism with less noise, that says it has all of it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def stddev(self, state: Any, survivors: float) -> float:
            return claimed

    watched.inner = LessNoise()  # type: ignore[assignment]  # a planted fault
    result = e.run(None, lambda report: None)
    found = judged(e, result.mechanism_state, result.weights)
    assert found[Observer.CLIENT].flagged
    assert found[Observer.CLIENT].claim == e.guarantees()["client"].epsilon


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("canaries = 5", "at least 20"),
        ("canary_control = true", "set canaries"),
        ("canaries = -1", "greater than or equal"),
        ('canaries = 50\ncanary_kind = "text"', "update"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changed: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(DIGITS.read_text().replace("baseline = true", changed))
    with pytest.raises(PrivFedError, match=reason):
        load_settings(file)


def test_canaries_need_the_noise_that_they_are_scored_against(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    text = DIGITS.read_text().replace("baseline = true", "canaries = 50")
    file.write_text(text.replace('mechanism = "gaussian"', 'mechanism = "adaptive"'))
    with pytest.raises(PrivFedError, match="central Gaussian"):
        load_settings(file)
