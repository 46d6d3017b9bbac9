"""Gossip learning without a server: clients train their own models, and push them to their neighbours.

A round, after GoSGD (Blot et al. 2016, https://arxiv.org/abs/1611.09726, Section 3) in rounds instead of clocks::

    train   x_i += client half of the mechanism (clip, local noise) of the local update, from x_i
    push    w_i is halved; (x_i, w_i) goes to one neighbour drawn at random
    mix     x_r = (w_r·x_r + Σ w_s·x_s) / (w_r + Σ w_s),   w_r += Σ w_s

The weights are those of push-sum (Kempe, Dobra & Gehrke 2003): ``Σ w_i`` and, without training, ``Σ w_i·x_i``
never change, so all models go to one average although nobody waits for an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.federated.client_work import ClientWork, Vector
from privfed.federated.streams import Purpose, Streams
from privfed.models.functional import Model
from privfed.privacy.accounting import Guarantee, account
from privfed.privacy.errors import NonFiniteUpdateError
from privfed.privacy.mechanisms import LocalGaussian, NoMechanism
from privfed.privacy.mechanisms.base import Terms
from privfed.privacy.sampling import KnownCohorts
from privfed.transcript import Kind, Observation, Observer, Plan, View

Neighbours = tuple[tuple[int, ...], ...]
"""By client, whom it may send to."""


def ring(clients: int) -> Neighbours:
    """Everybody has two neighbours, the one before and the one after; of two clients, each the other."""
    return tuple(tuple(sorted({(i - 1) % clients, (i + 1) % clients} - {i})) for i in range(clients))


def complete(clients: int) -> Neighbours:
    """Everybody is everybody's neighbour."""
    return tuple(tuple(j for j in range(clients) if j != i) for i in range(clients))


@dataclass(frozen=True, eq=False)
class Message:
    """What a neighbour receives.

    Attributes:
        round: From 1.
        sender: Who sent it.
        receiver: Who got it.
        model: The sender's, ``[d]`` float64.
        weight: The half of the sender's weight that goes with it.
    """

    round: int
    sender: int
    receiver: int
    model: NDArray[np.float64]
    weight: float


@dataclass(frozen=True, eq=False)
class Peers:
    """Every client's model and push-sum weight.

    Attributes:
        models: ``[clients, d]`` float64.
        weights: ``[clients]``, above 0; their sum is the number of clients.
    """

    models: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def alike(cls, model: Vector, clients: int) -> Peers:
        """All begin with ``model`` ``[d]`` and weight 1."""
        return cls(np.repeat(model[None].astype(np.float64), clients, axis=0), np.ones(clients))

    @property
    def average(self) -> NDArray[np.float64]:
        """The weighted average ``[d]``: what mixing keeps, and what all models go to. No client knows it."""
        mean: NDArray[np.float64] = self.weights @ self.models / self.weights.sum()
        return mean

    @property
    def spread(self) -> float:
        """Largest L2 distance of a client's model from the average."""
        return float(np.linalg.norm(self.models - self.average, axis=1).max())


def push(peers: Peers, receivers: Sequence[int], round_number: int) -> tuple[Peers, list[Message]]:
    """Client ``i`` sends its model and half its weight to ``receivers[i]``, all at once; then everybody mixes.

    Raises:
        ValueError: Not one receiver for each client; one that is none; somebody who sends to itself.
    """
    to, clients = np.asarray(receivers, np.int64), len(peers.weights)
    if to.shape != (clients,) or (to < 0).any() or (to >= clients).any():
        raise ValueError(f"receivers are one of 0 to {clients - 1} for each client, got {list(receivers)}")
    if (to == np.arange(clients)).any():
        raise ValueError("a client does not send to itself")
    half = peers.weights / 2
    messages = [
        Message(round_number, i, int(to[i]), peers.models[i].copy(), float(half[i])) for i in range(clients)
    ]
    weights = half.copy()
    np.add.at(weights, to, half)
    # Kept shares and received ones are convex coefficients, so that equal models stay as they are.
    models = peers.models * (half / weights)[:, None]
    np.add.at(models, to, peers.models * (half / weights[to])[:, None])
    return Peers(models, weights), messages


@dataclass(frozen=True, eq=False)
class GossipRound:
    """What one round left.

    Attributes:
        round: From 1.
        peers: After mixing.
        messages: All that crossed the wire.
        diverged: Clients whose update was not finite: in its place they took zero, clipped and noised alike.
    """

    round: int
    peers: Peers
    messages: list[Message]
    diverged: tuple[int, ...]


def gossip(
    peers: Peers,
    work: ClientWork,
    neighbours: Neighbours,
    mechanism: LocalGaussian | NoMechanism,
    streams: Streams,
    rounds: int,
) -> Iterator[GossipRound]:
    """Train and gossip for ``rounds`` rounds, one item each.

    Noise goes into a client's own model, before it sends or keeps anything: whatever leaves the client later is
    made of noised updates and of what it received (``guarantee``).

    Args:
        peers: To begin with.
        work: Trains any client from any model.
        neighbours: Of each client, at least one.
        mechanism: Of each update: clipping with noise, or without.
        streams: Of batches, noise and choice of neighbours.
        rounds: How many.

    Raises:
        ValueError: A client has no neighbour, or neighbours are not given for all.
    """
    clients = len(peers.weights)
    if len(neighbours) != clients or not all(neighbours):
        raise ValueError(f"each of {clients} clients needs at least one neighbour")
    for number in range(1, rounds + 1):
        models, diverged = peers.models.copy(), []
        for client in range(clients):
            (chunk,) = work(models[client].astype(np.float32), [client], streams.key(Purpose.SHUFFLE, number))
            update, known = _client_half(mechanism, chunk.deltas[0], number, client, streams)
            models[client] += update
            if not known:
                diverged.append(client)
        rng = np.random.default_rng(streams.key(Purpose.PEERS, number))
        receivers = [int(rng.choice(around)) for around in neighbours]
        peers, messages = push(Peers(models, peers.weights), receivers, number)
        yield GossipRound(number, peers, messages, tuple(diverged))


def guarantee(mechanism: LocalGaussian | NoMechanism, rounds: int, delta: float) -> Guarantee:
    """ε of a client against any neighbour, and against all other clients together, after so many ``rounds``.

    A client's data reach others through its clipped and noised updates alone, one a round; every model that it
    sends is computed from those, from models received and from the public start. So all it ever sends is an
    adaptive composition of ``rounds`` Gaussians. That a neighbour sees few of these models, mixed with others'
    noise, may lower its ε (Cyffers et al. 2022, https://arxiv.org/abs/2206.05091); nothing of it is claimed.
    Without noise ε is infinite.

    Raises:
        PrivacyError: A parameter is out of range.
    """
    multiplier = mechanism.noise_multiplier if isinstance(mechanism, LocalGaussian) else 0.0
    return account(multiplier, KnownCohorts(), rounds, delta)


def neighbour_view(messages: Sequence[Message], receiver: int, start: Vector, plan: Plan, model: Model) -> View:
    """What ``receiver`` can subtract: a model of round 1 less the public ``start`` ``[d]`` is its sender's update.

    Towards such a sender a neighbour stands where a server without masking stands, and the view says so. Later
    models are mixed with others that the receiver does not know; it can follow them as far as it knows those.
    """
    observations = [
        Observation(
            1,
            Kind.CLIENT_UPDATE,
            start,
            message.model - start.astype(np.float64),
            1.0,
            (message.sender,),
            plan.client_noise_stddev,
        )
        for message in messages
        if message.receiver == receiver and message.round == 1
    ]
    return View(Observer.SERVER, plan, model, tuple(observations))


def _client_half(
    mechanism: LocalGaussian | NoMechanism, delta: Vector, number: int, client: int, streams: Streams
) -> tuple[NDArray[np.float64], bool]:
    """The update that the client makes its own, and whether it is of its training."""
    state, terms = mechanism.initialize(len(delta)), Terms(number, 1)
    source = streams.source(Purpose.CLIENT_NOISE, number, client)
    try:
        sent = mechanism.on_client(state, delta, 0.0, terms, source)
    except NonFiniteUpdateError:
        sent = None
    if sent is None or not math.isfinite(sent.norm_before):
        sent = mechanism.on_client(state, np.zeros_like(delta), 0.0, terms, source)
        return sent.vector.astype(np.float64), False
    return sent.vector.astype(np.float64), True
