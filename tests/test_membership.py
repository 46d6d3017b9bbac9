"""Membership inference end to end: on models that memorise, on one that never saw the data, and its pool."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from privfed.audit.membership import MembershipInference
from privfed.audit.pool import by_client, make_pool, signals_of
from privfed.audit.shadow_scores import METHODS
from privfed.composition import compose, load_population_of
from privfed.config import Audit
from privfed.console import Console
from privfed.data import Population, take_clients
from privfed.errors import SettingError
from privfed.experiment import Experiment
from privfed.membership import _shadow, infer_membership, judge_all, train_shadows
from privfed.settings_file import resolve_settings

QUIET = Console(quiet=True)


def composed(**tables: Any) -> Experiment:
    return compose(resolve_settings({"data": {"source": "digits", "clients": 60}} | tables))


def test_the_pool_is_the_training_and_as_many_test_clients_as_it_takes() -> None:
    trained = composed().population
    pool = make_pool(trained, None)
    data = pool.population
    assert not pool.by_client
    assert len(data.labels) == len(trained.labels) + len(trained.test_labels)
    assert int(pool.is_member[pool.owners].sum()) == len(trained.labels)
    np.testing.assert_array_equal(data.features[: len(trained.labels)], trained.features)
    others = data.features[len(trained.labels) :].reshape(len(trained.test_labels), -1)
    expected = trained.test_features.reshape(len(trained.test_labels), -1)
    np.testing.assert_array_equal(np.sort(others.sum(axis=1)), np.sort(expected.sum(axis=1)))
    assert data.sizes[~pool.is_member].max() <= trained.sizes.max()
    np.testing.assert_array_equal(pool.clients[:60], np.arange(60))
    assert make_pool(trained, None, dealt=True).by_client  # test clients are then made as the training's were


def test_signals_are_those_of_the_softmax() -> None:
    experiment = composed(model={"name": "mlp"})
    model, data = experiment.model, experiment.population
    weights = 3 * experiment.initial_weights
    found = signals_of(model, data)(weights)
    logits = np.asarray(model.logits([np.asarray(v) for v in model.unflatten(weights)], data.features), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = p[np.arange(len(p)), data.labels]
    np.testing.assert_allclose(found.log_confidence, np.log(own), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.log_odds, np.log(own / (1 - own)), rtol=1e-4, atol=1e-5)
    clients = by_client(found, data)
    third = slice(int(data.offsets[3]), int(data.offsets[4]))
    assert clients.log_odds[3] == pytest.approx(found.log_odds[third].mean())


def test_clients_without_examples_are_neither_members_nor_others() -> None:
    data = composed().population
    gap = replace(data, offsets=np.insert(data.offsets, 5, data.offsets[5]))
    pool = make_pool(gap, data)
    assert (pool.population.sizes > 0).all()
    np.testing.assert_array_equal(pool.clients[:61], [*range(5), *range(6, 62)])
    assert (pool.is_member.sum(), (~pool.is_member).sum()) == (60, 60)


@pytest.mark.parametrize(
    ("tables", "units"),
    [
        ({"cohort": {"sampling": "fixed", "size": 50}}, {"example", "client"}),
        ({"data": {"source": "digits", "clients": 60, "partition": "dirichlet"}}, {"example"}),
        (
            {
                "data": {"source": "digits", "clients": 60, "held_out_clients": 20},
                "cohort": {"sampling": "poisson", "rate": 0.5},
                "privacy": {"mechanism": "gaussian", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
                "secure_aggregation": {"mode": "protocol", "threshold": 25},
            },
            {"example", "client"},
        ),
    ],
)
def test_every_method_runs_in_the_setting(tables: dict[str, Any], units: set[str]) -> None:
    experiment = composed(
        **tables, training={"rounds": 2}, audit={"membership": list(METHODS), "shadow_models": 4}
    )
    found = infer_membership(experiment, experiment.initial_weights, QUIET)
    assert {(a.method, a.unit) for a in found.attacks} == {(name, unit) for name in METHODS for unit in units}
    assert found.shadow_models == 4
    assert [attack.alike for attack in found.attacks] == ["client" in units] * len(found.attacks)
    sizes = {attack.unit: len(np.unique(attack.owners)) for attack in found.attacks}
    assert len(set(sizes.values())) == 1  # examples have the same owners as clients
    again = infer_membership(experiment, experiment.initial_weights, QUIET)
    for one, other in zip(found.attacks, again.attacks, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_shadow_models_know_of_no_canaries() -> None:
    privacy = {"mechanism": "gaussian", "clip_norm": 0.1, "noise_multiplier": 20.0, "delta": 1e-3}
    experiment = composed(privacy=privacy, audit={"canaries": 20})
    assert experiment.audited is not None
    assert _shadow(experiment, experiment.population, seed=1).audited is None


def test_the_loss_alone_trains_nothing() -> None:
    experiment = composed()
    found = infer_membership(experiment, experiment.initial_weights, QUIET)
    assert ([(a.method, a.unit) for a in found.attacks], found.shadow_models) == (
        [("loss", "example"), ("loss", "client")],
        0,
    )


def test_settings_name_every_method_and_refuse_what_cannot_be() -> None:
    assert Audit(membership=list(METHODS)).membership == list(METHODS)
    for table, words in (
        ({"membership": True}, "list"),
        ({"membership": ["lyra"]}, "lira"),
        ({"membership": ["loss", "loss"]}, "twice"),
        ({"membership": ["lira"], "shadow_models": 2}, "too few"),
        ({"shadow_models": 5}, "multiple"),
    ):
        with pytest.raises(SettingError, match=words):
            resolve_settings({"audit": table})


@cache
def overfitted() -> dict[str, dict[tuple[str, str], MembershipInference]]:
    """By model: trained on the members, or on neither. 30 + 30 + 30 clients of 15 noisily labelled digits."""
    settings = resolve_settings(
        {
            "data": {"source": "digits", "clients": 90, "examples_per_client": 15},
            "model": {"name": "mlp"},
            "training": {"rounds": 30, "local_epochs": 5, "batch_size": 5, "learning_rate": 0.3, "seed": 1},
        }
    )
    everybody = load_population_of(settings)
    rng = np.random.default_rng(7)
    noisy = np.where(rng.random(len(everybody.labels)) < 0.3, rng.integers(0, 10, len(everybody.labels)), -1)
    everybody = replace(everybody, labels=np.where(noisy < 0, everybody.labels, noisy).astype(np.int32))
    thirds = rng.permutation(90).reshape(3, 30)
    members, others, strangers = (take_clients(everybody, np.sort(third)) for third in thirds)
    experiment = replace(compose(settings, members), held_out=others)
    shadows = train_shadows(experiment, make_pool(members, others), 8, QUIET)

    def judged(population: Population) -> dict[tuple[str, str], MembershipInference]:
        weights = replace(experiment, population=population).run(None, lambda report: None).weights
        return {(a.method, a.unit): a for a in judge_all(shadows, experiment, weights, list(METHODS))}

    return {"members": judged(members), "strangers": judged(strangers)}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lira", "rmia"])
def test_shadow_models_beat_the_loss_on_a_model_that_memorised(method: str) -> None:
    found = overfitted()["members"]
    attack, loss = found[method, "example"], found["loss", "example"]
    assert attack.auc > loss.auc
    point, base = attack.points[0.01], loss.points[0.01]
    assert point is not None
    assert base is not None
    # Intervals that part: of two attacks equally strong, at most once in 20 runs.
    assert point.tpr_interval[0] > base.tpr_interval[1]
    assert found[method, "client"].auc > attack.auc


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_never_saw_the_data_gives_nothing_away(method: str) -> None:
    """False alarms: |z| > 4 once in 15,000 by the rank sum's null for clients, which are independent."""
    found = overfitted()["strangers"][method, "client"]
    n, m = found.members, found.non_members
    assert abs(found.auc - 0.5) < 4 * math.sqrt((n + m + 1) / (12 * n * m))
