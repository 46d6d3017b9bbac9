"""SCAFFOLD: rounds against Algorithm 1 of Karimireddy et al. (2020) written out, in every mode, and resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.federated.aggregation import Aggregation, PlainAggregation, RingAggregation
from privfed.federated.checkpoint import Checkpoints, Progress
from privfed.federated.client_work import ClientUpdates, ClientWork, Conditions
from privfed.federated.cohorts import Cohort
from privfed.federated.outcome import RoundState
from privfed.federated.round import Round
from privfed.federated.scaffold import Scaffold
from privfed.federated.server_update import sgd
from privfed.federated.streams import Streams
from privfed.privacy.mechanisms import NoMechanism
from privfed.secagg import ProtocolSum, RingSum, SecureSum, Stage

D, CLIENTS, RATE = 5, 8, 0.1
RNG = np.random.default_rng(4)
CENTRES = RNG.normal(size=(CLIENTS, D))
CURVATURES = RNG.uniform(0.2, 2.0, (CLIENTS, D))
STEPS = np.array([5, 3, 5, 0, 4, 5, 1, 5])
"""Client 3 has no examples."""
START = np.zeros(D, np.float32)
COHORTS = [(0, 1, 2, 3), (2, 4, 5, 6), (0, 1, 6, 7), (0, 3, 4, 7), (1, 2, 5, 7)]


class Quadratic(ClientWork):
    """Clients that go down a parabola of their own, in float64 up to the end."""

    def __init__(self) -> None:
        self.conditions = Conditions()

    def under(self, conditions: Conditions) -> Quadratic:
        work = copy.copy(self)
        work.conditions = conditions
        return work

    def __call__(self, weights: Any, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        for client in clients:
            w = np.asarray(weights, np.float64)
            shift = (
                np.zeros(D) if self.conditions.corrections is None else self.conditions.corrections([client])[0]
            )
            for _ in range(STEPS[client]):
                gradient = CURVATURES[client] * (w - CENTRES[client])
                w = w - RATE * self.conditions.rate_factor * (gradient + shift)
            one = np.ones(1)
            yield ClientUpdates((client,), (w - weights).astype(np.float32)[None], np.ones(1, int), one, one, one)


def aggregation(mode: str) -> Aggregation:
    if mode == "off":
        return PlainAggregation()

    def secure_sum(number: int, threshold: int, model: bytes, bits: int) -> SecureSum:
        if mode == "protocol":
            return ProtocolSum(number, threshold, model=model, ring_bits=bits)
        return RingSum(threshold, bits)

    return RingAggregation(secure_sum, 64, 2, mode == "protocol")


def build(mode: str = "off", rate: Callable[[int], float] = lambda number: 1.0) -> Round:
    return Round(
        Quadratic(),
        NoMechanism(None if mode == "off" else 100.0),
        aggregation(mode),
        sgd(0.8),
        Streams(7, secure=False),
        None,
        client_rate=rate,
        scaffold=Scaffold(RATE, STEPS),
    )


def rounds_of(one: Round, cohorts: Sequence[Cohort], state: RoundState | None = None, first: int = 1) -> Any:
    state, weights = state or one.initialize(D), START
    for number, cohort in enumerate(cohorts, start=first):
        outcome = one(number, weights, state, cohort, lambda w, _: None, record=number == 2)
        weights, state = outcome.weights, outcome.state
    return weights, state


def written_out(
    cohorts: Sequence[Sequence[int]], rate: Callable[[int], float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Algorithm 1, line by line, in float64: model, server's and clients' variates."""
    x, c, own = np.zeros(D), np.zeros(D), np.zeros((CLIENTS, D))
    for number, cohort in enumerate(cohorts, start=1):
        eta = RATE * rate(number)
        dys, dcs = [], []
        for i in cohort:
            y = x.copy()
            for _ in range(STEPS[i]):
                y = y - eta * (CURVATURES[i] * (y - CENTRES[i]) - own[i] + c)
            new = own[i] - c + (x - y) / (STEPS[i] * eta) if STEPS[i] else own[i]
            dys.append(y - x)
            dcs.append(new - own[i])
            own[i] = new
        x = x + 0.8 * np.mean(dys, axis=0)
        c = c + len(cohort) / CLIENTS * np.mean(dcs, axis=0)
    return x, c, own


@pytest.mark.parametrize("mode", ["off", "ring", "protocol"])
@pytest.mark.parametrize("rate", [lambda n: 1.0, lambda n: 0.5**n], ids=["one rate", "falling rate"])
def test_rounds_are_algorithm_1(mode: str, rate: Callable[[int], float]) -> None:
    weights, state = rounds_of(build(mode, rate), [Cohort(cohort, {}) for cohort in COHORTS])
    x, c, own = written_out(COHORTS, rate)
    np.testing.assert_allclose(weights, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.variates.server, c, rtol=1e-4, atol=1e-5)
    for client, variate in state.variates.clients.items():
        np.testing.assert_allclose(variate, own[client], rtol=1e-4, atol=1e-5)
    assert sorted(state.variates.clients) == list(range(CLIENTS))


def test_the_servers_variate_stays_the_mean_of_the_clients() -> None:
    _, state = rounds_of(build("protocol"), [Cohort(cohort, {}) for cohort in COHORTS])
    mean = sum(state.variates.clients.values()) / CLIENTS
    np.testing.assert_allclose(state.variates.server, mean, atol=1e-5)


def test_it_finds_the_common_optimum_where_averaging_drifts_away() -> None:
    """With the same steps, clients of different curvature pull averaging to another fixed point."""
    cohorts = [Cohort(tuple(c for c in range(CLIENTS) if STEPS[c] == 5), {})] * 200
    scaffold = build()
    clients = list(cohorts[0].clients)
    best = (CURVATURES[clients] * CENTRES[clients]).sum(0) / CURVATURES[clients].sum(0)
    averaged, _ = rounds_of(replace(scaffold, scaffold=None), cohorts)
    corrected, _ = rounds_of(scaffold, cohorts)
    assert np.abs(corrected - best).max() < 0.02 * np.abs(averaged - best).max()
    assert np.abs(averaged - best).max() > 0.02


def test_who_drops_out_keeps_its_variate_and_an_aborted_round_changes_none() -> None:
    one = build("protocol")
    cohort = Cohort((0, 1, 2, 4, 5), {1: Stage.SHARE_KEYS, 2: None, 5: Stage.UNMASK})
    _, state = rounds_of(one, [cohort])
    assert sorted(state.variates.clients) == [0, 4, 5]
    lost = Cohort((0, 1, 2, 4, 5), dict.fromkeys((0, 1, 2, 4), None))
    outcome = one(2, START, state, lost, lambda w, _: None)
    assert outcome.metrics.aborted
    assert outcome.state is state


def test_a_client_that_diverges_spoils_no_variate() -> None:
    class Diverging(Quadratic):
        def __call__(self, weights: Any, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
            for chunk in super().__call__(weights, clients, seed):
                yield replace(chunk, deltas=chunk.deltas * (np.nan if chunk.clients == (2,) else 1))

    one = replace(build(), work=Diverging())
    weights, state = rounds_of(one, [Cohort((0, 1, 2, 4), {})] * 3)
    assert np.isfinite(weights).all()
    assert np.isfinite(state.variates.server).all()
    assert sorted(state.variates.clients) == [0, 1, 4]


def test_a_checkpoint_holds_every_bit_of_it(tmp_path: Path) -> None:
    one, cohorts = build("ring"), [Cohort(cohort, {}) for cohort in COHORTS]
    expected, last = rounds_of(one, cohorts)
    weights, state = rounds_of(one, cohorts[:3])
    keeper = Checkpoints(tmp_path, "s")
    keeper.save(Progress(3, weights, state))
    found = keeper.newest(lambda text: pytest.fail(text))
    assert found is not None
    assert found.state.variates is not None
    for number, cohort in enumerate(cohorts[3:], start=4):
        outcome = one(number, found.weights, found.state, cohort, lambda w, _: None, record=False)
        found.weights, found.state = outcome.weights, outcome.state
    np.testing.assert_array_equal(found.weights, expected)
    np.testing.assert_array_equal(found.state.variates.server, last.variates.server)
    assert found.state.variates.clients.keys() == last.variates.clients.keys()
    for client, variate in last.variates.clients.items():
        np.testing.assert_array_equal(found.state.variates.clients[client], variate)


def test_the_change_travels_inside_the_masked_vector() -> None:
    one = build("protocol")
    outcome = one(1, START, one.initialize(D), Cohort((0, 1, 2), {}), lambda w, _: None, record=True)
    assert outcome.record is not None
    assert {len(v) for v in outcome.record.updates.values()} == {D}
    plain = replace(one, scaffold=None)
    half = plain(1, START, plain.initialize(D), Cohort((0, 1, 2), {}), lambda w, _: None, record=True)
    assert outcome.metrics.upload_bytes > half.metrics.upload_bytes + 3 * D * 8 - 1
