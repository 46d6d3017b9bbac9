"""Whole trainings by each algorithm: they learn, agree where they must, and resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.api import Population, load_population, train
from privfed.federated.checkpoint import Checkpoints
from privfed.federated.training import digest
from privfed.transcript import Observer, Transcript
from privfed.verification import verify_run

PLAIN: dict[str, Any] = {"rounds": 4, "local_epochs": 2, "batch_size": 8, "learning_rate": 0.3}
SKEWED: dict[str, Any] = {"partition": "dirichlet", "alpha": 0.3, "clients": 20}


@pytest.fixture(scope="module")
def population() -> Population:
    return load_population("digits", **SKEWED)


def weights_of(population: Population, training: dict[str, Any], **tables: Any) -> Any:
    return train(population, "softmax", training={**PLAIN, **training}, attacks={"enabled": False}, **tables)


@pytest.mark.parametrize(
    "training",
    [
        {"algorithm": "fedprox", "proximal": 0.1},
        {"momentum": 0.8},
        {"local_epochs": 1, "local_steps": 12},
        {"learning_rate_decay": "exponential", "learning_rate_warmup": 1, "server_learning_rate_decay": "cosine"},
        {"algorithm": "scaffold"},
    ],
    ids=lambda training: ", ".join(map(str, training.values())),
)
def test_it_learns_and_is_not_plain_averaging(population: Population, training: dict[str, Any]) -> None:
    longer = {"rounds": 12, "evaluate_every": 12}
    plain, run = (weights_of(population, {**longer, **own}) for own in ({}, training))
    assert run.metrics["test_accuracy"][12] > 0.7
    assert np.abs(run.weights - plain.weights).max() > 1e-4


def test_fedsgd_is_one_step_over_everything(population: Population) -> None:
    largest = int(population.sizes.max())
    one_step = {"local_epochs": 1, "weighted": True}
    run = weights_of(population, {**one_step, "algorithm": "fedsgd"})
    np.testing.assert_array_equal(run.weights, weights_of(population, {**one_step, "batch_size": largest}).weights)
    # One step of gradient descent on everybody's examples together (McMahan et al. 2017, section 2).
    central = train(
        load_population("digits", clients=1), "softmax", training={**PLAIN, **one_step, "algorithm": "fedsgd"}
    )
    np.testing.assert_allclose(run.weights, central.weights, rtol=1e-3, atol=1e-5)


def test_the_average_of_models_is_what_a_run_releases_and_what_its_files_prove(
    population: Population, tmp_path: Path
) -> None:
    run = weights_of(population, {"server_average": 0.5}, out=tmp_path / "run")
    last = run.metrics.iloc[-1]
    assert digest(np.load(tmp_path / "run" / "weights.npy")) == last["average_sha256"] != last["weights_sha256"]
    assert verify_run(tmp_path / "run").holds
    again = weights_of(population, {"server_average": 0.5}, out=tmp_path / "run")
    np.testing.assert_array_equal(again.weights, run.weights)


@pytest.mark.parametrize("mode", ["off", "ring"])
def test_scaffold_stopped_in_the_middle_goes_on_to_the_same_bits(
    population: Population, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"algorithm": "scaffold", "checkpoint_every": 2}
    tables = {
        "cohort": {"sampling": "poisson", "rate": 0.5},
        "secure_aggregation": {"mode": mode},
        "privacy": {"clip_norm": 3.0},
    }
    whole = weights_of(population, training, **tables)
    save = Checkpoints.save

    def once(self: Checkpoints, progress: Any) -> Path:
        path = save(self, progress)
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", once)
        with pytest.raises(KeyboardInterrupt):
            weights_of(population, training, out=tmp_path / "run", **tables)
    resumed = weights_of(population, training, out=tmp_path / "run", **tables)
    np.testing.assert_array_equal(resumed.weights, whole.weights)
    assert resumed.metrics["weights_sha256"].tolist() == whole.metrics["weights_sha256"].tolist()


def test_scaffold_tells_observers_that_its_updates_are_none_of_plain_sgd(population: Population) -> None:
    run = train(
        population,
        "softmax",
        training={**PLAIN, "algorithm": "scaffold"},
        attacks={"rounds": [1, 3], "methods": ["dense_layer"], "targets": 100},
    )
    transcript: Transcript = run.result.transcript
    seen = transcript.view(Observer.SERVER, run.experiment.model).observations
    assert {(o.round, o.corrected) for o in seen} == {(1, False), (3, True)}
    assert [o.corrected for o in transcript.view(Observer.CLIENT, run.experiment.model).observations] == [
        False,
        True,
    ]
    assert [o.corrected for o in transcript.view(Observer.RELEASE, run.experiment.model).observations] == [True]
    failures = {o.round: o.failure for o in run.attack("server")}
    assert failures[1] is None
    assert "control variates" in str(failures[3])


def test_observers_know_the_rate_of_a_round(population: Population) -> None:
    decay = {"learning_rate_decay": "step", "learning_rate_every": 2, "learning_rate_factor": 0.5}
    server = {f"server_{key}": value for key, value in decay.items()}
    run = train(population, "softmax", training={**PLAIN, **decay, **server}, attacks={"rounds": [1, 3]})
    transcript, model = run.result.transcript, run.experiment.model
    assert [o.rate_factor for o in transcript.view(Observer.CLIENT, model).observations] == [1.0, 0.5]
    (release,) = transcript.view(Observer.RELEASE, model).observations
    assert release.rate_factor is None
    for observed, record in zip(
        transcript.view(Observer.CLIENT, model).observations, transcript.records, strict=True
    ):
        np.testing.assert_allclose(observed.vector, record.total, rtol=1e-3, atol=1e-5)
