"""The round against a naive twin, in every mode, with dropouts, NaN clients, weights and empty cohorts."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from privfed.federated.aggregation import Aggregation, PlainAggregation, RingAggregation
from privfed.federated.client_half import ClientHalf, CollectedHalves
from privfed.federated.client_work import ClientUpdates, ClientWork, Fold, clip_and_sum
from privfed.federated.cohorts import Cohort
from privfed.federated.outcome import RoundOutcome
from privfed.federated.round import Round
from privfed.federated.server_update import sgd
from privfed.federated.streams import Streams
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.mechanisms import (
    AdaptiveClipping,
    CentralGaussian,
    DistributedNoise,
    LocalGaussian,
    Mechanism,
    NoMechanism,
    Terms,
)
from privfed.privacy.randomness import SeededSource
from privfed.secagg import FixedPointCodec, HomomorphicSum, ProtocolSum, RingSum, SecureSum, Stage
from privfed.secagg.packing import packed_bytes

D = 12
CLIENTS = tuple(range(8))
DELTAS = np.random.default_rng(1).normal(size=(len(CLIENTS), D)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).normal(size=D).astype(np.float32)
CLIP = 2.0
MODES = ("off", "ring", "protocol", "bfv")


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


def aggregation(mode: str, bits: int | None = 32) -> Aggregation:
    if mode == "off":
        return PlainAggregation()

    def secure_sum(number: int, threshold: int, model: bytes, width: int) -> SecureSum:
        if mode == "protocol":
            return ProtocolSum(number, threshold, model=model, ring_bits=width)
        if mode == "bfv":
            return HomomorphicSum(threshold, width)
        return RingSum(threshold, width)

    return RingAggregation(secure_sum, bits, None, mode in ("protocol", "bfv"))


def run(
    mode: str = "off",
    *,
    deltas: np.ndarray = DELTAS,
    mechanism: Mechanism | None = None,
    cohort: Cohort | None = None,
    divisor: float | None = None,
    shares: np.ndarray | None = None,
    bits: int | None = 32,
    released: list[Any] | None = None,
    record: bool = True,
    work: ClientWork | None = None,
) -> RoundOutcome:
    one = Round(
        work or FixedWork(deltas),
        mechanism or NoMechanism(CLIP),
        aggregation(mode, bits),
        sgd(1.0),
        Streams(7, secure=False),
        divisor,
        shares,
    )
    sink = released if released is not None else []
    state, cohort = one.initialize(D), cohort or Cohort(CLIENTS, {})
    return one(3, WEIGHTS, state, cohort, lambda w, _: sink.append(w), record=record)


def clipped(deltas: np.ndarray = DELTAS) -> np.ndarray:
    norms = np.linalg.norm(deltas.astype(np.float64), axis=1, keepdims=True)
    return deltas * np.minimum(1, CLIP / norms)


@pytest.mark.parametrize("mode", MODES)
def test_unweighted_average_of_clipped_updates(mode: str) -> None:
    outcome = run(mode)
    np.testing.assert_allclose(outcome.weights, WEIGHTS + clipped().mean(0), atol=1e-6)
    assert outcome.metrics.clipped_fraction == (np.linalg.norm(DELTAS, axis=1) > CLIP).mean()
    assert (outcome.metrics.train_loss, outcome.metrics.train_accuracy) == (1.5, 0.5)


@pytest.mark.parametrize("bits", [16, 21, 32, 64, None])
def test_ring_protocol_and_encryption_are_bit_identical_with_dropouts_at_every_stage(bits: int | None) -> None:
    dropouts = {0: None, 3: Stage.SHARE_KEYS, 6: Stage.MASKED_INPUT}
    cohort = Cohort(CLIENTS, dropouts)
    ring, protocol = (run(m, cohort=cohort, bits=bits) for m in ("ring", "protocol"))
    np.testing.assert_array_equal(ring.weights, protocol.weights)
    survivors = [1, 2, 4, 5, 6, 7]  # client 6 vanished after its input had arrived
    # Six values of one step's error each, in their mean.
    step = 1e-6 if bits in (32, 64) else 2 / FixedPointCodec.for_cohort(8, CLIP, 12, bits or 16).scale
    np.testing.assert_allclose(ring.weights, WEIGHTS + clipped()[survivors].mean(0), atol=step)
    assert ring.metrics.ring_bits == protocol.metrics.ring_bits == (bits or 64)
    # By itself, three coordinates in a word of 64 bits.
    sent = packed_bytes(len(WEIGHTS), bits) if bits else 8 * -(-len(WEIGHTS) // 3)
    assert ring.metrics.upload_bytes == 6 * sent
    if bits in (16, 21, 32):
        encrypted = run("bfv", cohort=cohort, bits=bits)
        np.testing.assert_array_equal(encrypted.weights, protocol.weights)
        assert sorted(encrypted.record.updates) == survivors
        assert not encrypted.record.uploads  # ciphertexts are no vectors
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


@pytest.mark.parametrize("mode", ["ring", "protocol", "bfv"])
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


UNRECORDED = [
    ("off", None, 32),
    ("off", CentralGaussian(CLIP, 0.5), 32),
    ("ring", None, 32),
    ("ring", CentralGaussian(CLIP, 0.5), 64),
    ("ring", CentralGaussian(CLIP, 0.5), 21),
    ("ring", CentralGaussian(CLIP, 0.5), None),
    ("ring", AdaptiveClipping(CLIP, 0.5, 8.0), 32),
    ("protocol", CentralGaussian(CLIP, 0.5), 32),
    ("off", LocalGaussian(CLIP, 0.5), 32),
]


@pytest.mark.parametrize(("mode", "mechanism", "bits"), UNRECORDED)
@pytest.mark.parametrize("shares", [None, np.linspace(0.1, 1, len(CLIENTS))])
def test_a_round_that_nobody_records_gives_the_same_model_and_metrics(
    mode: str, mechanism: Mechanism | None, bits: int | None, shares: np.ndarray | None
) -> None:
    deltas = DELTAS.copy()
    deltas[4, 7] = np.nan
    cohort = Cohort(CLIENTS, {0: None, 6: Stage.MASKED_INPUT})
    recorded, unrecorded = (
        run(mode, deltas=deltas, mechanism=mechanism, cohort=cohort, shares=shares, bits=bits, record=record)
        for record in (True, False)
    )
    assert unrecorded.record is None
    if mode == "off":
        np.testing.assert_allclose(unrecorded.weights, recorded.weights, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(unrecorded.weights, recorded.weights)
    for key, value in vars(recorded.metrics).items():
        if key != "seconds":
            got = getattr(unrecorded.metrics, key)
            assert got == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    assert {k: v[0] for k, v in unrecorded.stage_costs.items()} == {
        k: v[0] for k, v in recorded.stage_costs.items()
    }
    assert (unrecorded.metrics.survivors, unrecorded.metrics.non_finite) == (6, 1)


class Refusing(FixedWork):
    """A client work that must not be asked for single updates."""

    def __call__(self, weights: Any, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        raise AssertionError("asked for single updates")

    def clipped_sum(self, weights: Any, clients: Any, seed: Any, clip_norm: Any, *, exact: bool = False) -> Any:
        self.asked = (tuple(clients), clip_norm, exact)
        return clip_and_sum(FixedWork.__call__(self, weights, clients, seed), clip_norm, D)


class Elsewhere(FixedWork):
    """Clients in three places, which get pickled copies and answer in another order."""

    def __call__(self, weights: Any, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        raise AssertionError("asked for single updates")

    def fold(self, weights: Any, clients: Sequence[int], seed: Sequence[int], fold: Fold) -> None:
        sent, answers = pickle.dumps(fold), []
        for place in range(3):
            there = pickle.loads(sent)
            FixedWork(self.deltas).each(weights, clients[place::3], seed, there.take)
            answers.append(pickle.dumps(there.taken()))
        self.sizes = [len(answer) for answer in answers]
        for answer in reversed(answers):
            fold.merge(pickle.loads(answer))


def shares_of_noise() -> Mechanism:
    params = DistributedParams.for_cohort("skellam", CLIP, D, 0.5, len(CLIENTS))
    return DistributedNoise("skellam", params, len(CLIENTS), 2, masked=False)


@pytest.mark.parametrize(
    ("mechanism", "bits"),
    [
        *[(mechanism, bits) for mode, mechanism, bits in UNRECORDED if mode == "ring"],
        (shares_of_noise(), 32),
    ],
)
def test_a_ring_sum_that_is_added_up_where_clients_train_has_the_same_bits(
    mechanism: Mechanism | None, bits: int | None
) -> None:
    deltas = DELTAS.copy()
    deltas[4, 7] = np.nan
    work, cohort = Elsewhere(deltas), Cohort(CLIENTS, {0: None, 6: Stage.MASKED_INPUT})
    outcomes = [
        run("ring", deltas=deltas, mechanism=mechanism, cohort=cohort, bits=bits, record=record, work=place)
        for record, place in ((True, None), (False, None), (False, work))
    ]
    recorded, here, there = outcomes
    np.testing.assert_array_equal(here.weights, recorded.weights)
    np.testing.assert_array_equal(there.weights, recorded.weights)
    for one in (here, there):
        assert {**vars(one.metrics), "seconds": 0} == {**vars(recorded.metrics), "seconds": 0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shares", [None, np.linspace(0.1, 1, len(CLIENTS))])
def test_vectors_that_are_made_where_clients_train_are_those_made_here(
    mode: str, shares: np.ndarray | None
) -> None:
    """The client half, its noise and its weight, in rounds that are recorded and so keep every vector."""
    deltas = DELTAS.copy()
    deltas[4, 7] = np.nan
    mechanism = LocalGaussian(CLIP, 0.5) if mode == "off" else CentralGaussian(CLIP, 0.5)
    cohort = Cohort(CLIENTS, {0: None, 6: Stage.MASKED_INPUT})
    here, there = (
        run(mode, deltas=deltas, mechanism=mechanism, cohort=cohort, shares=shares, work=place)
        for place in (FixedWork(deltas), Elsewhere(deltas))
    )
    np.testing.assert_array_equal(there.weights, here.weights)
    moving = {"seconds": 0, **({"upload_bytes": 0} if mode == "bfv" else {})}  # ciphertexts are random, and packed
    assert {**vars(there.metrics), **moving} == {**vars(here.metrics), **moving}
    assert here.record is not None
    assert there.record is not None
    assert len(here.record.updates) == here.metrics.survivors == 6
    assert there.record.shares == here.record.shares
    for client, update in here.record.updates.items():
        np.testing.assert_array_equal(there.record.updates[client], update)


def test_a_fold_keeps_no_vector_of_memory_that_is_not_its_own() -> None:
    """What comes from elsewhere may lie in an object store, which it would fill."""
    half = ClientHalf(
        NoMechanism(CLIP), NoMechanism(CLIP).initialize(D), 0.0, Terms(1, 8), Streams(7, secure=False)
    )
    there, here = CollectedHalves(half, None), CollectedHalves(half, None)
    assert there.apart
    FixedWork(DELTAS).each(WEIGHTS, CLIENTS, (1,), there.take)
    here.merge(there.taken())
    for client in CLIENTS:
        kept, came = here.halves[client][0], there.halves[client][0]
        assert kept is not None
        assert came is not None
        np.testing.assert_array_equal(kept.vector, came.vector)
        assert not np.shares_memory(kept.vector, came.vector)


def test_a_place_where_nobody_trains_or_nobody_is_finite_adds_nothing() -> None:
    deltas = np.full_like(DELTAS, np.nan)
    deltas[0] = DELTAS[0]
    cohort = Cohort((0, 3, 6), {})  # all in one place, two of them not finite
    here, there = (
        run("ring", deltas=deltas, cohort=cohort, record=False, work=work, mechanism=CentralGaussian(CLIP, 0.5))
        for work in (None, Elsewhere(deltas))
    )
    assert here.metrics.aborted == there.metrics.aborted
    assert (there.metrics.non_finite, len(there.weights)) == (2, D)
    np.testing.assert_array_equal(here.weights, there.weights)


@pytest.mark.parametrize("secure", [False, True])
def test_a_plain_clip_and_sum_is_left_to_the_training(secure: bool) -> None:
    work = Refusing(DELTAS)
    mechanism = CentralGaussian(CLIP, 1e-3, secure=secure)
    one = Round(work, mechanism, PlainAggregation(), sgd(1.0), Streams(7, secure=secure), 8.0)
    cohort = Cohort(CLIENTS, {0: None, 6: Stage.MASKED_INPUT})
    outcome = one(1, WEIGHTS, one.initialize(D), cohort, lambda w, _: None, record=False)
    np.testing.assert_allclose(outcome.weights, WEIGHTS + clipped()[1:].sum(0) / 8, atol=5e-3)
    clients, clip_norm, exact = work.asked
    assert (clients, exact) == (CLIENTS[1:], secure)  # client 0 vanishes before it sends anything
    assert clip_norm == mechanism.flat_clip((), D)
    with pytest.raises(AssertionError, match="single updates"):
        one(1, WEIGHTS, one.initialize(D), cohort, lambda w, _: None, record=True)


def test_an_unrecorded_round_below_the_threshold_releases_nothing() -> None:
    released: list[Any] = []
    cohort = Cohort(CLIENTS, dict.fromkeys(range(4), Stage.SHARE_KEYS))
    outcome = run("ring", cohort=cohort, released=released, record=False)
    assert "threshold 5" in (outcome.metrics.aborted or "")
    assert released == []
