"""A server that crafts the model: what it gets from plain sums, and what the protocol's commitment stops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks import Imprint, ModelInconsistency, NotInvertible, attempt
from privfed.secagg import merkle, wire
from privfed.secagg.client import Client
from privfed.secagg.errors import InconsistentModelError
from privfed.secagg.identities import Directory, Identity
from privfed.secagg.keys import KeyPair
from privfed.secagg.messages import Roster
from privfed.secagg.params import SecAggParams
from privfed.secagg.server import Server
from privfed.secagg.sessions import SessionsInMemory
from privfed.secagg.simulation import RingSum
from privfed.transcript import Kind, Observer

SCALE = 2.0**40
"""Of fixed-point updates in a ring of 64 bits."""
CLIENTS = {0: [3, 4], 1: [10, 11], 2: [20, 21], 3: [30, 31]}
"""Rows of the digits by client; the first is the target."""


def encode(update):
    return np.rint(update * SCALE).astype(np.int64).view(np.uint64)


def decode(total):
    return total.view(np.int64) / SCALE


def handed_out(place, crafted):
    return {client: crafted.others if client else crafted.weights for client in CLIENTS}


def attack_sum(place, crafted, total):
    seen = place.observe([], total, kind=Kind.SUM, contributors=float(len(CLIENTS)), weights=crafted.weights)
    view = place.view(seen, observer=Observer.ACTIVE_SERVER)
    return attempt(ModelInconsistency(), view, 0, np.random.default_rng(0))


def updates(place, crafted):
    return {
        client: dataclasses.replace(place, weights=start).update(CLIENTS[client])
        for client, start in handed_out(place, crafted).items()
    }


def test_inconsistent_models_make_a_plain_ring_sum_the_target_s(lab):
    place = lab("mlp")
    crafted = ModelInconsistency().craft(place.model, place.weights, place.images)
    encoded = {client: encode(update) for client, update in updates(place, crafted).items()}
    found = attack_sum(place, crafted, decode(RingSum().sum(encoded, {}).total))
    assert found.failure is None
    assert len(found.images) == 2
    for row in CLIENTS[0]:
        assert np.mean((found.images - place.images[row]) ** 2, axis=(1, 2, 3)).min() < 1e-6
    # The same sum of clients who were all given the model itself holds eight images, and not only the target's.
    honest = sum(place.update(rows) for rows in CLIENTS.values())
    same = attack_sum(place, crafted, honest)
    assert same.failure is not None or len(same.images) != 2


def secagg(models):
    """Server and clients of the real protocol, each with the model that it was given, up to the rosters."""
    params = SecAggParams(b"a session of sixteen bytes", 1, tuple(models), threshold=3, dimension=4, ring_bits=64)
    identities = {client: Identity.generate() for client in models}
    directory = Directory({client: identity.public for client, identity in identities.items()})
    clients = {
        client: Client(
            params,
            client,
            identity=identities[client],
            directory=directory,
            sessions=SessionsInMemory(),
            model=model,
        )
        for client, model in models.items()
    }
    return params, directory, clients


def test_the_model_commitment_stops_inconsistent_models(lab):
    place = lab("mlp")
    crafted = ModelInconsistency().craft(place.model, place.weights, place.images)
    models = {client: start.tobytes() for client, start in handed_out(place, crafted).items()}
    params, directory, clients = secagg(models)
    advertised = {client: party.start() for client, party in clients.items()}
    # An honest server's code refuses the odd one out; this server passes all on to everybody.
    server = Server(params, directory, model=models[1])
    with pytest.raises(InconsistentModelError):
        server.receive(advertised[0])
    for client, party in clients.items():
        with pytest.raises(InconsistentModelError, match="were given different models"):
            party.receive(roster(params, client, advertised))
    # With one model for all, the same server's roster is taken.
    params, directory, clients = secagg(dict.fromkeys(CLIENTS, models[1]))
    advertised = {client: party.start() for client, party in clients.items()}
    for client, party in clients.items():
        assert party.receive(roster(params, client, advertised))


def roster(params, recipient, advertised):
    """Everybody's advertisement to everybody, as a server sends it that checks nothing."""
    tree = merkle.Tree([merkle.leaf(wire.encode(advertised[client])) for client in params.client_ids])
    others = tuple(entry for sender, entry in advertised.items() if sender != recipient)
    key = KeyPair.generate().public
    return Roster(
        recipient, merkle.top(tree.root, key), key, tree.path(params.client_ids.index(recipient)), others
    )


def test_an_imprint_reads_a_sum_of_clients_who_all_have_the_same_model(lab):
    place = lab("imprinted")
    rows = list(range(40, 52))
    total = sum(place.update(rows[i : i + 3]) for i in range(0, 12, 3))
    seen = place.observe(rows, total, kind=Kind.SUM, contributors=4.0)
    view = place.view(seen, observer=Observer.ACTIVE_SERVER)
    found = attempt(Imprint(), view, 0, np.random.default_rng(0))
    errors = ((found.images[:, None] - place.images[rows][None]) ** 2).mean(axis=(2, 3, 4)).min(axis=0)
    # Two of the twelve share one of the 64 bins.
    assert (errors < 1e-8).sum() == 10


def test_what_cannot_be_crafted_or_was_not_is_said(lab):
    place = lab("lenet")
    with pytest.raises(NotInvertible, match="no dense layer"):
        ModelInconsistency().craft(place.model, place.weights, place.images)
    softmax = lab("softmax")
    with pytest.raises(NotInvertible, match="no ReLU"):
        ModelInconsistency().craft(softmax.model, softmax.weights, softmax.images)
    with pytest.raises(NotInvertible, match="too few levels of brightness"):
        Imprint().craft(place.model, place.weights, np.full((5, 8, 8, 1), 0.5))
    found = attempt(Imprint(), place.view(place.observe([1])), 0, np.random.default_rng(0))
    assert "was not crafted" in found.failure


def test_noise_defeats_the_imprint(lab):
    place = lab("imprinted")
    update = place.update([1, 2])
    noisy = update + np.random.default_rng(1).normal(0, 0.1 * np.linalg.norm(update), update.size)
    found = attempt(Imprint(), place.view(place.observe([1, 2], noisy)), 0, np.random.default_rng(0))
    assert found.failure is not None
