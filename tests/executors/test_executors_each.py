"""Clients handed over one chunk after another while others train: what comes, and how it ends."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from test_executors_local import SEED
from test_executors_sums import CLIENTS, make

from privfed.executors import local


@pytest.mark.parametrize("model_name", ["mlp", "softmax"])
def test_each_hands_over_what_a_call_yields(model_name):
    options = {"hidden": [2000]} if model_name == "mlp" else {}
    model, work = make(model_name, **options)
    weights, got, here = model.initial_vector(1), {}, threading.get_ident()

    def consume(chunk):
        assert threading.get_ident() == here
        for i, client in enumerate(chunk.clients):
            got[client] = (chunk.deltas[i], chunk.loss_sum[i], chunk.correct[i], chunk.seen[i])

    work.each(weights, CLIENTS, SEED, consume)
    (expected,) = work(weights, CLIENTS, SEED)
    assert sorted(got) == sorted(CLIENTS)
    for i, client in enumerate(expected.clients):
        np.testing.assert_array_equal(got[client][0], expected.deltas[i])
        assert got[client][1:] == (expected.loss_sum[i], expected.correct[i], expected.seen[i])


def test_each_ends_when_its_consumer_or_a_client_fails(monkeypatch):
    model, work = make("mlp", hidden=[2000])
    weights, threads = model.initial_vector(1), threading.active_count()

    def consume(chunk):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        work.each(weights, CLIENTS, SEED, consume)
    with pytest.raises(IndexError):
        work.each(weights, [*CLIENTS, 1000], SEED, lambda chunk: None)
    updates = local._Updates.__call__

    def fail(self, start, clients, *rest):
        if CLIENTS[-1] in clients:
            raise RuntimeError("lost a client")
        return updates(self, start, clients, *rest)

    monkeypatch.setattr(local._Updates, "__call__", fail)
    with pytest.raises(RuntimeError, match="lost a client"):
        work.each(weights, CLIENTS, SEED, lambda chunk: None)
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        time.sleep(0.05)
    assert threading.active_count() <= threads


def test_who_interrupts_does_not_wait_for_clients(monkeypatch):
    model, work = make("mlp", hidden=[2000])
    updates, trained = local._Updates.__call__, threading.Event()

    def slowly(self, start, clients, *rest):
        if CLIENTS[0] not in clients:
            trained.wait(60)
        return updates(self, start, clients, *rest)

    def interrupt(chunk):
        raise KeyboardInterrupt

    monkeypatch.setattr(local._Updates, "__call__", slowly)
    with pytest.raises(KeyboardInterrupt):
        work.each(model.initial_vector(1), CLIENTS, SEED, interrupt)
    assert not trained.is_set()
    training = [thread for thread in threading.enumerate() if thread.name.startswith("clients")]
    assert training  # the interrupt came while others trained
    trained.set()
    for thread in training:
        thread.join(60)
        assert not thread.is_alive()
