"""The round against a naive twin, in every mode, with dropouts, NaN clients, weights and empty cohorts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from privfed.federated.aggregation import Aggregation, PlainAggregation, RingAggregation
from privfed.federated.client_work import ClientUpdates, ClientWork
from privfed.federated.cohorts import Cohort
from privfed.federated.round import Round, RoundOutcome
from privfed.federated.server_update import sgd
from privfed.federated.streams import Streams
from privfed.privacy.mechanisms import CentralGaussian, Mechanism, NoMechanism
from privfed.privacy.randomness import SeededSource
from privfed.secagg import ProtocolSum, RingSum, Stage

D = 12
CLIENTS = tuple(range(8))
DELTAS = np.random.default_rng(1).normal(size=(len(CLIENTS), D)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=D).astype(np.float32)
CLIP = 2.0
MODES = ("off", "ring", "protocol")


class FixedWork(ClientWork):
    """Clients whose training always has the same outcome, in chunks of three."""

    def __init__(self, deltas: np.ndarray) -> None:
        self.deltas = deltas

    def __call__(self, weights: Any, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        for i in range(0, len(clients), 3):
            part = tuple(clients[i : i + 3])
            n = len(part)
            ones = np.ones(n)
            yield ClientUpdates(part, self.deltas[list(part)], np.full(n, 2), 3 * ones, ones, 2 * ones)


def aggregation(mode: str, bits: int = 32) -> Aggregation:
    if mode == "off":
        return PlainAggregation()
    secure_sum = ProtocolSum if mode == "protocol" else lambda number, threshold: RingSum(threshold)
    return RingAggregation(secure_sum, bits, None, mode == "protocol")


def run(
    mode: str = "off",
    *,
    deltas: np.ndarray = DELTAS,
    mechanism: Mechanism | None = None,
    cohort: Cohort | None = None,
    divisor: float | None = None,
    shares: np.ndarray | None = None,
    bits: int = 32,
    released: list[Any] | None = None,
) -> RoundOutcome:
    one = Round(
        FixedWork(deltas),
        mechanism or NoMechanism(CLIP),
        aggregation(mode, bits),
        sgd(1.0),
        Streams(7, secure=False),
        divisor,
        shares,
    )
    sink = released if released is not None else []
    return one(3, WEIGHTS, one.initialize(D), cohort or Cohort(CLIENTS, {}), lambda w, _: sink.append(w))


def clipped(deltas: np.ndarray = DELTAS) -> np.ndarray:
    norms = np.linalg.norm(deltas.astype(np.float64), axis=1, keepdims=True)
    return deltas * np.minimum(1, CLIP / norms)


@pytest.mark.parametrize("mode", MODES)
def test_unweighted_average_of_clipped_updates(mode: str) -> None:
    outcome = run(mode)
    np.testing.assert_allclose(outcome.weights, WEIGHTS + clipped().mean(0), atol=1e-6)
    assert outcome.metrics.clipped_fraction == (np.linalg.norm(DELTAS, axis=1) > CLIP).mean()
    assert (outcome.metrics.train_loss, outcome.metrics.train_accuracy) == (1.5, 0.5)


@pytest.mark.parametrize("bits", [32, 64])
def test_ring_and_protocol_are_bit_identical_with_dropouts_at_every_stage(bits: int) -> None:
    dropouts = {0: None, 3: Stage.SHARE_KEYS, 6: Stage.MASKED_INPUT}
    cohort = Cohort(CLIENTS, dropouts)
    ring, protocol = (run(m, cohort=cohort, bits=bits) for m in ("ring", "protocol"))
    np.testing.assert_array_equal(ring.weights, protocol.weights)
    survivors = [1, 2, 4, 5, 6, 7]  # client 6 vanished after its input had arrived
    np.testing.assert_allclose(ring.weights, WEIGHTS + clipped()[survivors].mean(0), atol=1e-6)
    assert sorted(protocol.record.updates) == survivors
    assert protocol.metrics.survivors == 6
    assert sorted(run("off", cohort=cohort).record.updates) == survivors


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_client_that_is_not_finite_counts_as_dropped_and_is_reported(mode: str, bad: float) -> None:
    deltas = DELTAS.copy()
    deltas[4, 7] = bad
    outcome = run(mode, deltas=deltas)
    rest = np.delete(clipped(), 4, axis=0)
    np.testing.assert_allclose(outcome.weights, WEIGHTS + rest.mean(0), atol=1e-6)
    assert (outcome.metrics.non_finite, outcome.metrics.survivors) == (1, 7)
    assert 4 not in outcome.record.updates


@pytest.mark.parametrize("mode", MODES)
def test_weights_travel_with_the_update(mode: str) -> None:
    shares = np.linspace(0.1, 1, len(CLIENTS))
    outcome = run(mode, shares=shares)
    expected = (shares[:, None] * clipped()).sum(0) / shares.sum()
    np.testing.assert_allclose(outcome.weights, WEIGHTS + expected, atol=1e-6)
    assert sum(outcome.record.shares.values()) == pytest.approx(shares.sum(), abs=1e-5)
    np.testing.assert_allclose(outcome.record.total, expected * shares.sum(), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_noise_is_added_to_the_sum_and_divided_by_the_expected_cohort(mode: str) -> None:
    mechanism = CentralGaussian(CLIP, 0.5)
    released: list[Any] = []
    outcome = run(mode, mechanism=mechanism, divisor=5.0, released=released)
    noise = 0.5 * CLIP * SeededSource(7, 5, 3).normal(D)
    np.testing.assert_allclose(outcome.weights, WEIGHTS + (clipped().sum(0) + noise) / 5, atol=1e-5)
    np.testing.assert_array_equal(released[0], outcome.weights)
    expected = np.linalg.norm(clipped().sum(0)) / (0.5 * CLIP * math.sqrt(D))
    assert outcome.metrics.signal_to_noise == pytest.approx(expected, rel=1e-5)


def test_secure_mode_runs_in_every_mode_and_never_repeats() -> None:
    for mode in MODES:
        one = Round(
            FixedWork(DELTAS),
            CentralGaussian(CLIP, 1e-3, secure=True),
            aggregation(mode),
            sgd(1.0),
            Streams(7, secure=True),
            8.0,
        )
        state, cohort = one.initialize(D), Cohort(CLIENTS, {})
        first, second = (one(1, WEIGHTS, state, cohort, lambda w, _: None).weights for _ in range(2))
        np.testing.assert_allclose(first, WEIGHTS + clipped().mean(0), atol=5e-3)
        assert not np.array_equal(first, second)


def test_an_empty_cohort_still_gets_its_noise() -> None:
    released: list[Any] = []
    outcome = run(
        "protocol", mechanism=CentralGaussian(CLIP, 1.0), cohort=Cohort((), {}), divisor=4.0, released=released
    )
    assert outcome.metrics.aborted is None
    assert not np.array_equal(outcome.weights, WEIGHTS)
    assert len(released) == 1


@pytest.mark.parametrize("mode", ["ring", "protocol"])
def test_below_the_threshold_nothing_is_released(mode: str) -> None:
    cohort = Cohort(CLIENTS, dict.fromkeys(range(4), Stage.SHARE_KEYS))
    released: list[Any] = []
    outcome = run(mode, cohort=cohort, mechanism=CentralGaussian(CLIP, 1.0), divisor=8.0, released=released)
    np.testing.assert_array_equal(outcome.weights, WEIGHTS)
    assert "threshold 5" in (outcome.metrics.aborted or "")
    assert (released, dict(outcome.record.updates), outcome.metrics.survivors) == ([], {}, 0)


def test_nobody_left_without_a_mechanism_keeps_the_model() -> None:
    empty = run(cohort=Cohort((), {}))
    lost = run(cohort=Cohort(CLIENTS, dict.fromkeys(CLIENTS)))
    for outcome in (empty, lost):
        np.testing.assert_array_equal(outcome.weights, WEIGHTS)
        assert outcome.metrics.aborted
    assert empty.metrics.train_loss is None


def test_the_server_of_the_protocol_receives_masks_only() -> None:
    record = run("protocol").record
    assert sorted(record.uploads) == list(CLIENTS)
    for client, upload in record.uploads.items():
        # A masked coordinate is uniform on the ring, thousands of times wider than any update.
        assert np.linalg.norm(upload) > 10 * np.linalg.norm(record.updates[client])
    assert not run("ring").record.uploads
