"""Canaries take part as clients do: in trainings of every mode, and with faults planted in the mechanism."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_training import WeakNoise, train

from privfed.audit.canaries import CanaryClients, random_directions
from privfed.audit.canary_work import JoinedWork, RandomUpdates, Silenced
from privfed.audit.empirical import COMPOSED, ObserverFinding, _scaled, findings, seen_by_observers
from privfed.audit.notes import Tally
from privfed.composition import compose
from privfed.errors import PrivFedError, SettingError
from privfed.experiment import Experiment
from privfed.federated.checkpoint import Checkpoints
from privfed.federated.cohorts import Cohort
from privfed.federated.training import Keeping
from privfed.privacy.accounting import by_observer
from privfed.settings_file import load_settings
from privfed.transcript import Observer

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
WITHOUT = DIGITS.read_text().replace("canaries = 100\n", "").replace("canary_control = true\n", "")


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
    assert e.audited is not None
    watched = e.audited.mechanism
    claims = {observer: guarantee.epsilon for observer, guarantee in e.guarantees().items()}
    spent = [e.mechanism.releases(e.sampling)] * e.rounds
    moved = weights.astype(float) - e.initial_weights
    seen = seen_by_observers(watched, watched.notes(state), moved, mode="off")
    found = findings(seen, spent, claims, 1e-4)
    return {finding.observer: finding for finding in found}


def tally(e: Experiment) -> Tally:
    assert e.audited is not None
    return Tally(e.audited.mechanism.notes(e.run(None, lambda report: None).mechanism_state).tally)


def test_a_cohort_admits_only_canaries_that_exist() -> None:
    directions = random_directions(4, 50, (1,))
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    canaries = CanaryClients("update", 10, np.array([True, False, True, False]), directions, 0.5)
    drawn = Cohort((3, 10, 11, 13), {3: None, 11: None})
    assert canaries.admit(drawn) == Cohort((3, 10), {3: None})
    assert replace(canaries, zero_out=True).admit(drawn) == drawn


def test_canaries_that_would_act_as_noise_are_refused() -> None:
    canaries = CanaryClients("update", 10, np.ones(400, bool), random_directions(400, 50, (1,)), 0.5)
    assert canaries.noise_share(1.0) == pytest.approx(10 / 50**0.5)
    with pytest.raises(SettingError, match="act as noise"):
        canaries.check(1.0)
    with pytest.raises(SettingError, match="GiB"):
        random_directions(10_000, 1_000_000, (1,))


class Listener:
    """Notes what an auditor is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begins(self, weights: Any) -> None:
        self.told.append("begins")

    def sends(self, canary: int | None) -> None:
        self.told.append(canary)

    def summed(self, survivors: int, canaries: Any, longest: float) -> None:
        self.told.append((survivors, list(canaries), round(longest, 5)))


def test_joined_work_is_both_and_tells_the_auditor() -> None:
    directions, auditor = random_directions(6, 30, (2,)), Listener()
    work = JoinedWork(RandomUpdates(directions[:3], 0.5), RandomUpdates(directions[3:], 9.0), 3, auditor)
    weights = np.zeros(30, np.float32)
    handed = [(c, len(auditor.told)) for chunk in work(weights, [0, 2, 4, 5], (1,)) for c in chunk.clients]
    assert auditor.told == ["begins", 1, 2, None]
    assert handed == [(0, 1), (2, 1), (4, 2), (5, 3)]  # each canary is announced before its update is handed over
    each: list[Any] = []
    work.each(weights, [0, 2, 4], (1,), lambda chunk: each.append((chunk.clients, auditor.told[-1])))
    assert each == [((0, 2), "begins"), ((4,), 1)]
    auditor.told.clear()
    done = work.clipped_sum(weights, [0, 2, 4], (1,), 1.0)
    assert auditor.told == ["begins", (3, [1], 0.5)]
    assert done.clients == (0, 2, 4)
    assert done.norms == pytest.approx([0.5, 0.5, 9.0], rel=1e-5)
    assert done.total == pytest.approx(directions[0] / 2 + directions[2] / 2 + directions[4], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["update", "input"])
def test_every_mode_trains_and_scores_alike(kind: str) -> None:
    plain, ring = (experiment(60, kind, mode) for mode in ("off", "ring"))
    tallies = [tally(e) for e in (plain, ring)]
    assert np.array_equal(tallies[0].participations, tallies[1].participations)
    absent = ~plain.audited.canaries.included  # type: ignore[union-attr]  # asked for
    assert tallies[0].participations[absent].sum() == 0
    assert tallies[0].with_sum == pytest.approx(tallies[1].with_sum, abs=0.05)


@pytest.mark.slow
def test_a_training_that_was_stopped_and_went_on_leaves_the_same_notes(tmp_path: Path) -> None:
    whole, parts = experiment(40), experiment(40)
    expected = whole.run(None, lambda report: None).mechanism_state
    rounds: list[int] = []
    keeper = Checkpoints(tmp_path / "kept", "0" * 64)
    first = parts.run(None, lambda r: rounds.append(1), Keeping(keeper, 3, stop=lambda: len(rounds) == 7))
    assert first.unfinished
    again = experiment(40).run(None, lambda r: rounds.append(1), Keeping(keeper, 3)).mechanism_state
    assert len(rounds) == 20
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(again, expected, strict=True))


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
    assert e.audited is not None
    fault = WeakNoise(e.mechanism)
    fault.factor = factor
    e.audited.mechanism.inner = fault  # type: ignore[assignment]  # a planted fault
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
    file.write_text(WITHOUT.replace("baseline = true", changed))
    with pytest.raises(PrivFedError, match=reason):
        load_settings(file)


@pytest.mark.parametrize(
    ("mechanism", "reason"),
    [
        ('mechanism = "none"', "nothing is"),
        ('mechanism = "dp_sgd"\nunit = "example"\nexample_rate = 0.1', "whole clients"),
    ],
)
def test_canaries_need_a_claim_on_clients(mechanism: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    text = WITHOUT.replace("baseline = true", "canaries = 50").replace("epsilon = 3\n", "")
    if "none" in mechanism:
        text = text.replace("clip_norm = 0.5\n", "").replace("delta = 1e-4\n", "")
        text = text.replace('mode = "protocol"\n', "").replace("colluders = 3\n", "")
    else:
        text = text.replace('mode = "protocol"', 'mode = "off"').replace("local_epochs = 5", "local_steps = 5")
        mechanism += "\nepsilon = 3"
    file.write_text(text.replace('mechanism = "gaussian"', mechanism))
    with pytest.raises(PrivFedError, match=reason):
        load_settings(file)


CLAIMED = {
    "gaussian": ({"client", "release"}, "whether an update of it arrived"),
    "adaptive": ({"client", "release"}, "whether an update of it arrived"),
    "banded": ({"client", "release"}, "whether an update of it that is not zero arrived"),
    "tree": ({"client", "release"}, "whether an update of it that is not zero arrived"),
    "skellam": ({"client", "release"}, "its noisy updates"),
    "local": (
        {"server", "server+colluders", "active server", "client", "release"},
        "its noisy updates",
    ),
}


@pytest.mark.parametrize("kind", CLAIMED)
def test_every_mechanism_is_scored_by_every_observer(kind: str) -> None:
    """Right claims stand, and who is promised nothing with plain sums is told all."""
    a = train(kind, canaries=60)
    claims = {o: g.epsilon for o, g in by_observer(a.spent, 1e-3).items()}
    protected, servers_see = CLAIMED[kind]
    assert set(claims) == protected
    seen = seen_by_observers(a.watched, a.notes, a.weights - a.initial, mode="off")
    found = findings(seen, a.spent, claims, 1e-3)
    for one in found:
        assert not one.flagged, one
        assert one.claim == claims.get(one.observer.value, np.inf)
        composed = [e for e in one.estimates if e.method == COMPOSED]
        if one.observer.value in protected - {"release"}:
            assert composed[0].low < one.claim < 3 * composed[0].high
    assert found[0].sees == servers_see
    if kind in ("gaussian", "adaptive", "banded", "tree"):
        assert found[0].estimates[-1].low == np.inf
        assert found[0].bound.right > 0.9 * found[0].bound.guesses


@pytest.mark.parametrize(
    ("kind", "observer", "canaries"),
    [
        ("gaussian", Observer.CLIENT, 60),
        ("banded", Observer.CLIENT, 200),
        ("skellam", Observer.CLIENT, 60),
        ("local", Observer.SERVER, 60),
    ],
)
def test_a_tenth_of_the_noise_is_flagged(kind: str, observer: Observer, canaries: int) -> None:
    """With a claim that noise ten times as strong would have made true."""
    a = train(kind, canaries=canaries)
    strong = [[replace(s, release=_scaled(s.release, 10.0)) for s in one] for one in a.spent]
    claims = {o: g.epsilon for o, g in by_observer(strong, 1e-3).items()}
    seen = seen_by_observers(a.watched, a.notes, a.weights - a.initial, mode="off")
    found = findings(seen, a.spent, claims, 1e-3)
    assert next(one for one in found if one.observer is observer).flagged


def test_silenced_clients_send_zeros() -> None:
    directions = random_directions(3, 30, (2,))
    work = Silenced(RandomUpdates(directions, 2.0), np.array([False, True, False]))
    done = work.clipped_sum(np.zeros(30, np.float32), [0, 1, 2], (1,), 1.0)
    assert done.norms == pytest.approx([2, 0, 2], rel=1e-5)
    assert done.total == pytest.approx(directions[0] + directions[2], abs=1e-5)
