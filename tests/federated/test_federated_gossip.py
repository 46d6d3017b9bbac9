"""Gossip: nothing is lost in mixing, all models go to one average, and noise is in whatever leaves a client."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfed.federated.client_work import ClientUpdates, ClientWork
from privfed.federated.gossip import Peers, complete, gossip, guarantee, neighbour_view, push, ring
from privfed.federated.streams import Streams
from privfed.models.build import build_model
from privfed.privacy.accounting import account
from privfed.privacy.mechanisms import LocalGaussian, NoMechanism
from privfed.privacy.sampling import KnownCohorts
from privfed.transcript import Plan

STREAMS = Streams(3, secure=False)


class Steps(ClientWork):
    """Client ``c`` moves by ``updates[c]`` from wherever it is."""

    def __init__(self, updates: np.ndarray) -> None:
        self.updates = updates.astype(np.float32)

    def __call__(
        self, weights: np.ndarray, clients: Sequence[int], seed: Sequence[int]
    ) -> Iterator[ClientUpdates]:
        ones = np.ones(len(clients))
        yield ClientUpdates(tuple(clients), self.updates[list(clients)], ones.astype(np.int64), ones, ones, ones)


@st.composite
def peers_and_receivers(draw: st.DrawFn) -> tuple[Peers, list[list[int]]]:
    clients = draw(st.integers(2, 8))
    number = st.floats(-1e3, 1e3)
    models = draw(st.lists(st.lists(number, min_size=3, max_size=3), min_size=clients, max_size=clients))
    weights = draw(st.lists(st.floats(0.01, 10), min_size=clients, max_size=clients))
    step = st.tuples(*(st.integers(0, clients - 2).map(lambda j, i=i: j + (j >= i)) for i in range(clients)))
    rounds = draw(st.lists(step.map(list), min_size=1, max_size=6))
    return Peers(np.array(models), np.array(weights)), rounds


@given(peers_and_receivers())
def test_mass_is_conserved_and_models_stay_in_their_hull(drawn: tuple[Peers, list[list[int]]]) -> None:
    before, rounds = drawn
    after = before
    for receivers in rounds:
        after, messages = push(after, receivers, 1)
        assert [message.receiver for message in messages] == receivers
    assert (after.weights > 0).all()
    assert after.weights.sum() == pytest.approx(before.weights.sum(), rel=1e-12)
    scale = before.weights @ np.abs(before.models) + 1e-12
    moved = after.weights @ after.models - before.weights @ before.models
    assert (np.abs(moved) <= 1e-12 * scale).all()
    room = 1e-9
    assert (after.models >= before.models.min(0) - room).all()
    assert (after.models <= before.models.max(0) + room).all()


def test_one_push_by_hand() -> None:
    """0 and 1 both send to 2, which sends to 0: weights and models worked out on paper."""
    peers, messages = push(Peers(np.array([[0.0], [6.0], [12.0]]), np.ones(3)), [2, 2, 0], 4)
    np.testing.assert_allclose(peers.weights, [1, 0.5, 1.5])
    np.testing.assert_allclose(peers.models, [[6.0], [6.0], [6.0]])  # (0+12)/2; 6; (0+6+12)/3
    assert [(m.round, m.sender, m.receiver, m.model.tolist(), m.weight) for m in messages] == [
        (4, 0, 2, [0.0], 0.5),
        (4, 1, 2, [6.0], 0.5),
        (4, 2, 0, [12.0], 0.5),
    ]


@pytest.mark.parametrize("neighbours", [ring(6), complete(6)], ids=["ring", "complete"])
def test_without_training_all_models_go_to_the_average(neighbours: tuple[tuple[int, ...], ...]) -> None:
    models = np.random.default_rng(0).normal(size=(6, 4))
    start = Peers(models, np.ones(6))
    *_, last = gossip(start, Steps(np.zeros((6, 4))), neighbours, NoMechanism(None), STREAMS, 200)
    assert start.spread > 1
    assert last.peers.spread < 1e-9
    np.testing.assert_allclose(last.peers.models, np.repeat(models.mean(0)[None], 6, 0), atol=1e-9)
    assert last.peers.weights.std() > 0.01  # the mean of the models alone is not what is kept


def test_messages_go_to_neighbours_and_hold_the_trained_model() -> None:
    updates = np.arange(10.0).reshape(5, 2)
    (first,) = gossip(
        Peers.alike(np.ones(2, np.float32), 5), Steps(updates), ring(5), NoMechanism(None), STREAMS, 1
    )
    assert [message.sender for message in first.messages] == list(range(5))
    for message in first.messages:
        assert message.receiver in ring(5)[message.sender]
        np.testing.assert_array_equal(message.model, 1 + updates[message.sender])


def test_noise_of_the_stated_scale_is_in_what_is_sent_and_the_clip_before_it() -> None:
    dimension, mechanism = 20_000, LocalGaussian(2.0, 1.5)
    updates = np.zeros((2, dimension))
    updates[:, 0] = 1e4
    start = Peers.alike(np.zeros(dimension, np.float32), 2)
    (first,) = gossip(start, Steps(updates), ring(2), mechanism, STREAMS, 1)
    for message in first.messages:
        # 20,000 draws of standard deviation 3: off by 5 standard errors with probability below 1e-6.
        assert abs(message.model[1:].std() / 3 - 1) < 5 / math.sqrt(2 * dimension)
        assert abs(message.model[0] - 2) < 5 * 3
    assert not np.array_equal(first.messages[0].model, first.messages[1].model)


def test_an_update_that_is_not_finite_counts_as_zero_and_is_noised_all_the_same() -> None:
    updates = np.array([[np.nan, 1.0], [1.0, 0.0]])
    start = Peers.alike(np.zeros(2, np.float32), 2)
    (plain,) = gossip(start, Steps(updates), ring(2), NoMechanism(None), STREAMS, 1)
    assert plain.diverged == (0,)
    assert plain.messages[0].model.tolist() == [0.0, 0.0]
    (noised,) = gossip(start, Steps(updates), ring(2), LocalGaussian(1.0, 1.0), STREAMS, 1)
    assert noised.diverged == (0,)
    assert np.isfinite(noised.messages[0].model).all()
    assert noised.messages[0].model.all()


def test_epsilon_is_of_one_gaussian_a_round_and_infinite_without_noise() -> None:
    spent = guarantee(LocalGaussian(0.5, 4.0), 30, 1e-4)
    assert spent == account(4.0, KnownCohorts(), 30, 1e-4)
    assert spent.epsilon > guarantee(LocalGaussian(0.5, 4.0), 29, 1e-4).epsilon
    assert math.isinf(guarantee(NoMechanism(1.0), 1, 1e-4).epsilon)


def test_a_neighbour_subtracts_the_public_start_in_the_first_round_only() -> None:
    model = build_model("softmax", (1, 2, 1), 2)
    start = np.full(model.dimension, 0.5, np.float32)
    updates = np.random.default_rng(1).normal(size=(3, model.dimension)).astype(np.float32)
    rounds = list(gossip(Peers.alike(start, 3), Steps(updates), complete(3), NoMechanism(None), STREAMS, 3))
    messages = [message for one in rounds for message in one.messages]
    plan = Plan(0.1, 1, 1, None, None, 0.0, None, "off")
    seen = [neighbour_view(messages, receiver, start, plan, model).observations for receiver in range(3)]
    assert sorted(o.clients for view in seen for o in view) == [(0,), (1,), (2,)]
    for view in seen:
        for observation in view:
            np.testing.assert_allclose(observation.vector, updates[observation.clients[0]], atol=1e-7)


@pytest.mark.parametrize(
    ("receivers", "reason"), [([1], "one of 0 to 1"), ([1, 2], "one of 0 to 1"), ([1, 1], "to itself")]
)
def test_receivers_that_are_none_are_refused(receivers: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        push(Peers.alike(np.zeros(1, np.float32), 2), receivers, 1)


def test_a_client_without_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one neighbour"):
        next(
            gossip(
                Peers.alike(np.zeros(1, np.float32), 1),
                Steps(np.zeros((1, 1))),
                ring(1),
                NoMechanism(None),
                STREAMS,
                1,
            )
        )
