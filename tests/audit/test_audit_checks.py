"""The auditor's checks: a training as claimed passes, each planted fault fails the check that is meant for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_training import (
    Audited,
    ClippedByLayer,
    HalfTheShares,
    OneLayerClear,
    SameSeed,
    WeakNoise,
    train,
)

from privfed.audit import checks as under_test
from privfed.audit.checks import FALSE_ALARMS, checks
from privfed.federated.streams import Purpose, Streams
from privfed.privacy.mechanisms import Terms
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling

NOISE, INDEPENDENT, CLIP, COHORTS, STEP, LEDGER = range(6)
KINDS = (
    *("gaussian", "adaptive", "tree", "banded", "skellam", "local"),
    pytest.param("discrete_gaussian", marks=pytest.mark.slow),  # exact sampling takes its time
)
FAULTS: dict[str, tuple[int, dict[str, Any]]] = {
    "half the noise": (NOISE, {"inner": WeakNoise}),
    "half the noise, correlated": (NOISE, {"inner": WeakNoise, "kind": "banded"}),
    "half the noise of a tree": (NOISE, {"inner": WeakNoise, "kind": "tree"}),
    "no noise on the smaller layer": (NOISE, {"inner": OneLayerClear}),
    "every second client brings no noise": (NOISE, {"inner": HalfTheShares, "kind": "skellam"}),
    "one seed for all rounds": (INDEPENDENT, {"inner": SameSeed}),
    "one seed for all rounds of correlated noise": (INDEPENDENT, {"inner": SameSeed, "kind": "banded"}),
    "clip by layer": (CLIP, {"inner": ClippedByLayer}),
    "fixed cohorts for Poisson's": (COHORTS, {"drawn": lambda scheme: FixedSizeSampling(30, 100)}),
    "cohorts larger than claimed": (COHORTS, {"drawn": lambda scheme: PoissonSampling(0.4)}),
    "divided by the survivors": (STEP, {"divisor": lambda expected: None}),
    "noise of clients that are not there": (
        LEDGER,
        {"claimed_survivors": lambda survivors: survivors + 3, "kind": "skellam"},
    ),
}


def judged(audited: Audited) -> list[under_test.Check]:
    return checks(audited.watched, audited.notes, audited.weights, audited.sampling, audited.spent)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_as_claimed_passes(kind: str, record: bool) -> None:
    found = judged(train(kind, record=record))
    assert [c.name for c in found if c.status == "failed"] == []
    noisy = kind in ("discrete_gaussian", "skellam", "local")
    assert [c.status for c in found] == ["passed"] * 5 + ["passed" if noisy else "not checked"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_check(fault: str) -> None:
    expected, planted = FAULTS[fault]
    found = judged(train(**planted))
    failed = {i for i, check in enumerate(found) if check.status == "failed"}
    assert expected in failed
    # The one draw of noise that comes again and again can be weak by chance; its weakness then adds up.
    assert failed <= {expected, NOISE} if "seed" in fault else failed == {expected}


def test_false_alarms_are_as_rare_as_stated() -> None:
    """At a level of 5 %, of 200 trainings at most 22 may fail (chance 1e-4)."""
    values: dict[int, list[Any]] = {name: [] for name in (INDEPENDENT, COHORTS)}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        fresh = rng.standard_normal((20, 64))
        values[INDEPENDENT].append(under_test._independence(fresh).p_value)
        there = rng.random((20, 300)) < 0.1
        by_client, by_round = there.sum(axis=0).astype(float), there.sum(axis=1).astype(float)
        values[COHORTS].append(under_test._poisson("", by_round, by_client, 0.1).p_value)
    for name in (INDEPENDENT, COHORTS):
        assert sum(p < 0.05 for p in values[name]) <= 22
    assert FALSE_ALARMS == under_test.LEVEL * 4


def test_sparse_participation_is_no_alarm_and_shuffled_epochs_are_one() -> None:
    """Where clients are in less than one round on average the counts are far from Gaussian."""
    alarms = 0
    for seed in range(100):
        there = np.random.default_rng([seed, 1]).random((10, 2000)) < 0.02
        found = under_test._poisson("", there.sum(axis=1) * 1.0, there.sum(axis=0) * 1.0, 0.02)
        alarms += found.p_value < 0.01
    assert alarms <= 7  # of 100 at 1 %: more have a chance of 1e-4
    epochs = np.full(300, 3.0)  # every client in exactly three of 30 rounds
    sizes = np.random.default_rng(0).binomial(300, 0.1, 30) * 1.0
    assert under_test._poisson("", sizes, epochs, 0.1).status == "failed"


def test_notes_survive_a_checkpoint() -> None:
    audited = train()
    arrays = audited.notes.as_arrays()
    state = (*audited.watched.inner.initialize(230), *arrays)
    again = audited.watched.notes(state)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(again.as_arrays(), arrays, strict=True))


def test_what_was_not_seen_is_not_checked() -> None:
    audited = train()
    empty = audited.watched.notes(audited.watched.initialize(230))
    found = checks(audited.watched, empty, audited.weights, audited.sampling, audited.spent)
    assert {check.status for check in found} == {"not checked"}


def test_a_round_aborted_after_its_noise_was_drawn_is_no_step_and_no_score() -> None:
    """Rows of correlated noise belong to rounds; the server's momentum does not move in one that is aborted."""
    watched = train("banded").watched
    state, weights = watched.initialize(230), np.zeros(230, np.float32)
    momentum = watched.step.optimizer.initialize(230)
    for number in range(1, 6):
        watched.begins(weights)
        watched.summed(12, [], 1.9)
        total = np.zeros(230) if number == 3 else np.random.default_rng(number).normal(size=230)
        terms, source = Terms(number, 15), Streams(1, secure=False).source(Purpose.NOISE, number)
        noised, state = watched.on_server(state, total, terms, source)
        if number != 3:
            mean = (noised / watched.step.divisor).astype(np.float32)
            momentum, weights = watched.step.optimizer.step(momentum, weights, -mean)
    notes = watched.notes(state)
    found = checks(watched, notes, weights, PoissonSampling(0.3), [])
    assert [found[i].status for i in (NOISE, INDEPENDENT, STEP)] == ["passed"] * 3
    assert np.isnan(notes.scores[2]).all()
    assert np.isfinite(notes.scores[[0, 1, 3, 4]]).all()
    assert "over 4 steps" in found[STEP].finding
