"""Evaluation by client, against a loop over clients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from privfed.data import Population, build_population, hold_out_clients, load_dataset
from privfed.federated import client_evaluation
from privfed.federated.client_evaluation import PERCENTILES, evaluate_clients
from privfed.federated.evaluation import per_example_losses
from privfed.models.build import build_model

SHAPE = (3, 2, 1)
MODEL = build_model("softmax", SHAPE, 4)
LOSSES = per_example_losses(MODEL)
WEIGHTS = np.random.default_rng(5).normal(0, 2, MODEL.dimension).astype(np.float32)


def population(sizes: list[int], kind: type = np.float32, **changes: Any) -> Population:
    rng = np.random.default_rng(0)
    n = sum(sizes)
    x = rng.random((n, *SHAPE)) if kind is np.float32 else rng.integers(0, 256, (n, *SHAPE))
    fields: dict[str, Any] = {"features": x.astype(kind), "labels": rng.integers(0, 4, n).astype(np.int32)}
    return Population(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        test_features=np.zeros((1, *SHAPE), kind),
        test_labels=np.zeros(1, np.int32),
        name="made up",
        classes=4,
        **(fields | changes),
    )


def naive(people: Population, c: int) -> tuple[float, float]:
    """Accuracy and loss of client ``c`` in float64, without TensorFlow."""
    x, y = people.client(c)
    kernel, bias = (w.astype(np.float64) for w in MODEL.unflatten(WEIGHTS))
    logits = x.reshape(len(x), -1).astype(np.float64) @ kernel + bias
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return float((logits.argmax(axis=1) == y).mean()), float(losses.mean())


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_equals_a_loop_over_clients(kind: type, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_evaluation, "_ROWS_AT_ONCE", rows_at_once)
    people = population([3, 0, 12, 1, 0, 5], kind)
    got = evaluate_clients(MODEL, WEIGHTS, people, losses=LOSSES)
    assert got.clients.tolist() == [0, 2, 3, 5]
    assert got.examples.tolist() == [3, 12, 1, 5]
    assert got.empty == 2
    accuracies, losses = np.array([naive(people, c) for c in got.clients]).T
    np.testing.assert_allclose(got.client_accuracy, accuracies, rtol=1e-12)
    np.testing.assert_allclose(got.client_loss, losses, rtol=1e-5)
    for shown, values in ((got.accuracy, accuracies), (got.loss, losses)):
        assert shown.mean == pytest.approx(values.mean(), rel=1e-5)
        assert shown.weighted_mean == pytest.approx((values * got.examples).sum() / 21, rel=1e-5)
        ordered = sorted(values)
        for percent in PERCENTILES:  # linear between the two neighbours, by hand
            place = percent / 100 * 3
            below = ordered[int(place)] * (1 - place % 1)
            above = ordered[min(int(place) + 1, 3)] * (place % 1)
            assert shown.percentiles[percent] == pytest.approx(below + above, rel=1e-5)


def test_the_means_differ_where_clients_do() -> None:
    """A large client that is always right hides two small ones that never are."""
    labels = np.array([0] * 8 + [1, 1], np.int32)
    biased = np.zeros(MODEL.dimension, np.float32)
    biased[-4] = 5  # the bias of class 0
    got = evaluate_clients(MODEL, biased, population([8, 1, 1], labels=labels), losses=LOSSES).accuracy
    assert got.mean == pytest.approx(1 / 3)
    assert got.weighted_mean == pytest.approx(0.8)
    assert (got.percentiles[5], got.percentiles[50], got.percentiles[95]) == pytest.approx((0, 0, 0.9))


def test_some_clients_can_be_named_in_any_order() -> None:
    people = population([3, 0, 12, 1])
    everybody = evaluate_clients(MODEL, WEIGHTS, people, losses=LOSSES)
    some = evaluate_clients(MODEL, WEIGHTS, people, np.array([3, 1, 0]), losses=LOSSES)
    assert some.clients.tolist() == [3, 0]
    assert some.client_loss.tolist() == pytest.approx(everybody.client_loss[[2, 0]].tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([4], "clients are 0 to 3"),
        ([-1], "clients are 0 to 3"),
        ([0, 0], "twice"),
        ([1], "no client"),
        ([], "no cl"),
    ],
)
def test_refuses_clients_that_cannot_be_evaluated(clients: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_clients(MODEL, WEIGHTS, population([3, 0, 12, 1]), np.array(clients, np.int64), losses=LOSSES)


def test_the_json_holds_numbers_or_none() -> None:
    people = population([3, 0, 12])
    got = evaluate_clients(MODEL, WEIGHTS, people, losses=LOSSES).as_json()
    assert (got["clients"], got["clients_without_examples"], got["examples"]) == (2, 1, 15)
    assert list(got["accuracy"]["percentiles"]) == ["5", "25", "50", "75", "95"]
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    diverged = np.full(MODEL.dimension, np.nan, np.float32)
    broken = evaluate_clients(MODEL, diverged, people, losses=LOSSES).as_json()
    json.dumps(broken, allow_nan=False)
    assert broken["loss"]["mean"] is None


def test_one_client_that_diverges_leaves_the_others_numbers() -> None:
    """An example of 1e38 or so overflows; here the losses are made up, so that only one is not finite."""
    people = population([2, 2])

    def losses(weights: Any, x: Any, y: Any) -> Any:
        return np.array([np.inf, 1.0, 2.0, 4.0]), np.array([False, True, True, True])

    got = evaluate_clients(MODEL, WEIGHTS, people, losses=losses)
    assert got.client_loss.tolist() == [np.inf, 3.0]
    assert got.loss.as_json()["mean"] is None
    assert got.accuracy.mean == 0.75


def test_held_out_clients_are_evaluated_like_any_others() -> None:
    training, others = hold_out_clients(build_population(load_dataset("digits"), "dirichlet", 20), 0.25)
    model = build_model("softmax", training.input_shape, training.classes)
    got = evaluate_clients(model, model.initial_vector(0), others)
    assert len(got.clients) == 5
    assert got.loss.mean == pytest.approx(np.log(10), rel=1e-5)
