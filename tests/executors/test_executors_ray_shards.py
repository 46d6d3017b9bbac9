"""Clients at home with actors: what is sent, kept and laid out, without Ray; the actors are in this process."""

from __future__ import annotations

import numpy as np
import pytest
from test_executors_ray import CLIENTS, SEED, SUM, UPDATES, cohort, joined, population, same

from privfed.executors.local import LocalClientWork, configure_threads
from privfed.executors.parts import cut, total_of
from privfed.executors.ray import _Shard
from privfed.executors.ray_cluster import _Left
from privfed.executors.ray_shards import Examples, Shards
from privfed.federated.client_work import Conditions, LocalTraining
from privfed.models.build import build_model

configure_threads()

PARTS = 3


def sum_in_parts(actors, shards, weights, clients, *, strangers=False):
    """The total as ``RayClientWork`` makes it, each part by the actor of its home, or by the next one."""
    ids, offsets = np.asarray(clients), population()[2]
    sizes = offsets[ids + 1] - offsets[ids]
    norms, totals = np.zeros(len(ids)), []
    for part in cut(sizes[sizes > 0], PARTS):
        share = np.flatnonzero(sizes > 0)[part]
        seat = (shards.seat_of(ids[share]) + strangers) % len(actors)
        sent = shards.for_job(seat, ids[share])
        got = actors[seat].clipped_sum(ids[share], sent, weights, SEED, Conditions(), 0.3, False)
        norms[share] = got.norms
        totals.append(got.total)
    return total_of(totals, len(weights)), norms


# One step over all of a client's examples goes by Gram matrices, several of full batches by XLA, others by a loop.
@pytest.mark.parametrize(
    ("path", "training", "name"),
    [
        ("ghost", LocalTraining(0.1, 1, 25), "mlp"),
        ("xla", LocalTraining(0.1, 2, 5), "mlp"),
        ("loop", LocalTraining(0.1, 1, 5), "cnn"),
    ],
)
def test_parts_trained_where_clients_are_at_home_have_the_bits_of_local(path, training, name):
    model, data = build_model(name, (8, 8, 1), 10), population()
    weights = model.initial_vector(1)
    local = LocalClientWork(model, *data, training, threads=1, parts=PARTS)
    shards, actors = Shards(*data, 4, 2), [_Shard(model, training, data[2]) for _ in range(2)]
    rounds = [cohort(), list(range(CLIENTS)), list(range(0, CLIENTS, 3))]
    for strangers in (False, True):
        for clients in rounds:
            expected = local.clipped_sum(weights, clients, SEED, 0.3)
            total, norms = sum_in_parts(actors, shards, weights, clients, strangers=strangers)
            np.testing.assert_array_equal(total, expected.total)
            np.testing.assert_array_equal(norms, expected.norms)
    taken = {type(one).__name__ for one in actors[0]._work._sums[False]}
    assert taken == {{"ghost": "GhostSum", "xla": "CompiledSum", "loop": "LoopSum"}[path]}


def test_updates_and_a_fold_of_what_was_sent_are_those_of_local():
    model, data = build_model("cnn", (8, 8, 1), 10), population()
    training, weights = LocalTraining(0.1, 2, 5), model.initial_vector(1)
    local, shards = LocalClientWork(model, *data, training, threads=1), Shards(*data, 4, 2)
    actor, ids = _Shard(model, training, data[2]), np.array(cohort())
    here = joined(local(weights, ids.tolist(), SEED))
    for piece in (ids[:11], ids[11:]):
        there = joined([actor.updates(piece, shards.for_job(0, piece), weights, SEED, Conditions())])
        for name in UPDATES:
            np.testing.assert_array_equal(there[name], here[name][np.isin(ids, piece)])


def test_clients_go_home_once_and_to_others_each_time():
    data = population()
    features, _, offsets = data
    shards, everybody = Shards(*data, 5, 2), np.arange(CLIENTS)
    mine, other = shards.at_home(everybody)
    assert sorted([*mine, *other]) == everybody.tolist()
    sizes = np.diff(offsets)
    assert sizes[mine].sum() <= 0.75 * sizes.sum()  # three blocks of five, and a client at the border
    assert shards.seat_of(mine) == 0
    assert shards.seat_of(other) == 1

    home = Examples(offsets)
    first = shards.for_job(0, everybody)
    np.testing.assert_array_equal(first.clients, everybody)
    np.testing.assert_array_equal(first.clients[first.kept], mine)
    held, laid_out, _ = home.lay_out(everybody[::-1], first)
    np.testing.assert_array_equal(laid_out[: len(features)], features)
    assert home.kept_bytes == sizes[mine].sum() * (64 + 4)
    assert not np.shares_memory(laid_out, features)

    second = shards.for_job(0, everybody)
    np.testing.assert_array_equal(second.clients, other)
    assert not second.kept.any()
    same_held, again, _ = home.lay_out(everybody, second)
    np.testing.assert_array_equal(again, laid_out)
    np.testing.assert_array_equal(same_held, held)
    assert home.kept_bytes == sizes[mine].sum() * (64 + 4)

    shards.forget(1)  # somebody else's loss
    np.testing.assert_array_equal(shards.for_job(0, everybody).clients, other)
    shards.forget(0)
    np.testing.assert_array_equal(shards.for_job(0, mine).clients, mine)


def test_rows_that_are_not_held_are_refused():
    model, (features, labels, offsets) = build_model("softmax", (8, 8, 1), 10), population()
    held = np.array([1, 4, 5])
    with pytest.raises(ValueError, match="the clients held have"):
        LocalClientWork(model, features[:3], labels[:3], offsets, LocalTraining(0.1, 1, 5), held=held)


def test_who_is_free_does_its_own_jobs_first_and_then_the_first_that_is_left():
    left = _Left([0, 0, 1, 0, 1], 3)
    assert left.take([1], 5) == [(1, 2)]
    assert left.take([0, 2], 5) == [(0, 0), (2, 1)]
    left.put_back(1)
    assert left.take([2], 5) == [(2, 1)]
    assert left.take([1, 2], 3) == []  # the window is not so far
    assert left.take([1], 5) == [(1, 4)]
    assert left.take([1, 2], 5) == [(1, 3)]
    assert left.take([0, 1, 2], 5) == []


def test_sums_of_local_and_of_held_examples_share_the_population_s_way():
    """A client with many examples decides how all are trained, also where it is not held."""
    model, data = build_model("mlp", (8, 8, 1), 10), population()
    training, weights = LocalTraining(0.1, 1, 24), model.initial_vector(1)
    sizes = np.diff(data[2])
    small = np.flatnonzero((sizes > 0) & (sizes < 5))
    assert sizes.max() == 24
    local = LocalClientWork(model, *data, training, threads=1, parts=1, path="xla")
    rows = np.concatenate([np.arange(*data[2][c : c + 2]) for c in small])
    held = LocalClientWork(
        model, data[0][rows], data[1][rows], data[2], training, threads=1, parts=1, path="xla", held=small
    )
    assert held._sum_paths(False)[0]._shape == local._sum_paths(False)[0]._shape
    expected = local.clipped_sum(weights, small.tolist(), SEED, 0.3)
    same(expected, held.clipped_sum(weights, small.tolist(), SEED, 0.3), SUM)
