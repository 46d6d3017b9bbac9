"""Momentum, proximal term, fixed steps, changing rates and corrections: every path against the eager twin."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from test_executors_local import CLASSES, OFFSETS, SEED, SHAPE, SIZES, naive, population, run

from privfed.executors.local import LocalClientWork
from privfed.federated.client_work import Conditions, LocalTraining, schedule
from privfed.models.build import build_model

CLIENTS = [4, 0, 1, 2, 3]
PLAIN = LocalTraining(0.1, 2, 5)
TRAININGS = {
    "momentum": replace(PLAIN, momentum=0.9),
    "proximal": replace(PLAIN, proximal=0.7),
    "both": replace(PLAIN, momentum=0.5, proximal=0.3),
    "seven steps": replace(PLAIN, epochs=1, steps=7),
    "two steps": replace(PLAIN, epochs=1, steps=2, momentum=0.9),
}
FACTOR = 0.3


@functools.cache
def work_of(model_name, path, name):
    model = build_model(model_name, SHAPE, CLASSES)
    return model, LocalClientWork(model, *population(np.float32), TRAININGS[name], threads=2, path=path)


@functools.cache
def twin(model_name, name, factor):
    model = build_model(model_name, SHAPE, CLASSES)
    weights = model.initial_vector(1)
    return list(naive(model, *population(np.float32), TRAININGS[name], weights, CLIENTS, SEED, factor))


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(("model_name", "path"), [("softmax", "loop"), ("mlp", "xla"), ("softmax", "xla")])
def test_every_path_takes_the_steps_of_the_twin(model_name, path, name):
    model, work = work_of(model_name, path, name)
    weights = model.initial_vector(1)
    for factor in (1.0, FACTOR):
        expected = twin(model_name, name, factor)
        now = work.under(Conditions(factor))
        got, _ = run(now, weights, CLIENTS)
        summed = now.clipped_sum(weights, CLIENTS, SEED, None, exact=True)
        for row, (delta, loss_sum, correct) in enumerate(expected):
            np.testing.assert_allclose(got["deltas"][row], delta, rtol=2e-4, atol=2e-6)
            np.testing.assert_allclose(summed.loss_sum[row], loss_sum, rtol=1e-4)
            assert got["correct"][row] == summed.correct[row] == correct
        np.testing.assert_allclose(summed.total, sum(d for d, *_ in expected), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(got["seen"], summed.seen)


@pytest.mark.parametrize("name", ["momentum", "proximal", "seven steps"])
def test_the_twin_tells_the_algorithms_apart(name):
    ours = twin("softmax", name, 1.0)
    model = build_model("softmax", SHAPE, CLASSES)
    plain = naive(model, *population(np.float32), PLAIN, model.initial_vector(1), CLIENTS, SEED)
    far = [np.abs(a[0] - b[0]).max() for a, b in zip(ours, plain, strict=True)]
    assert max(far) > 1e-3


@pytest.mark.usefixtures("cnn_is_long")
@pytest.mark.parametrize("model_name", ["softmax", "cnn"])
def test_corrections_are_added_to_every_gradient_and_only_where_they_belong(model_name):
    model = build_model(model_name, SHAPE, CLASSES)  # the long one goes client by client
    training = replace(PLAIN, corrected=True)
    work = LocalClientWork(model, *population(np.float32), training, threads=2)
    weights = model.initial_vector(1)
    rows = 0.1 * np.random.default_rng(5).normal(size=(len(SIZES), model.dimension)).astype(np.float32)
    now = work.under(Conditions(FACTOR, lambda clients: rows[list(clients)]))
    got, _ = run(now, weights, CLIENTS)
    expected = naive(model, *population(np.float32), training, weights, CLIENTS, SEED, FACTOR, rows[CLIENTS])
    for row, (delta, _, _) in enumerate(expected):
        np.testing.assert_allclose(got["deltas"][row], delta, rtol=2e-4, atol=3e-6)
    summed = now.clipped_sum(weights, CLIENTS, SEED, None)
    np.testing.assert_allclose(summed.total, got["deltas"].astype(np.float64).sum(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="corrections go with training that is corrected"):
        work.under(Conditions())


def test_momentum_and_proximal_term_leave_a_single_step_to_ghost_clipping():
    model = build_model("mlp", SHAPE, CLASSES)
    weights, data = model.initial_vector(1), population(np.float32)
    plain, other = (
        LocalClientWork(model, *data, training, path="ghost")
        .under(Conditions(FACTOR))
        .clipped_sum(weights, CLIENTS, SEED, 0.05)
        for training in (LocalTraining(0.1, 1, 64), LocalTraining(0.1, 1, 64, steps=1, momentum=0.9, proximal=1.0))
    )
    np.testing.assert_array_equal(plain.total, other.total)
    (delta, *_), *_ = naive(model, *data, LocalTraining(0.1, 1, 64), weights, CLIENTS, SEED, FACTOR)
    assert plain.norms[0] == pytest.approx(np.linalg.norm(delta), rel=1e-4)


@pytest.mark.parametrize(("model_name", "path"), [("mlp", "loop"), ("mlp", "xla"), ("mlp", "ghost")])
def test_a_new_rate_is_no_new_trace(model_name, path):
    calls = []
    model = build_model(model_name, SHAPE, CLASSES)
    counted = replace(model, logits=lambda w, x: calls.append(1) or model.logits(w, x))
    training = LocalTraining(0.1, 1, 64)
    work = LocalClientWork(counted, *population(np.float32), training, threads=1, path=path)
    weights = model.initial_vector(0)
    counts = []
    for number in range(4):
        now = work.under(Conditions(0.5**number))
        now.clipped_sum(weights, CLIENTS, SEED, 1.0)
        run(now, weights, CLIENTS)
        counts.append(len(calls))
    assert counts == [counts[0]] * 4


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_fixed_number_of_steps_goes_through_the_examples_pass_by_pass(steps, shuffle):
    training = LocalTraining(0.1, 1, 5, shuffle, steps=steps)
    sizes = np.array(SIZES)
    work = schedule(OFFSETS, range(len(SIZES)), training, SEED)
    np.testing.assert_array_equal(np.diff(work.client_bounds), training.steps_of(sizes))
    np.testing.assert_array_equal(training.steps_of(sizes), [steps if n else 0 for n in SIZES])
    batches = np.split(work.rows, work.step_bounds[1:-1])
    for client, n in enumerate(SIZES):
        mine = batches[work.client_bounds[client] : work.client_bounds[client + 1]]
        assert sum(map(len, mine)) == training.seen(sizes)[client]
        in_pass = max(1, -(-n // 5))
        for first in range(0, steps if n else 0, in_pass):
            one_pass = np.concatenate(mine[first : first + in_pass])
            assert len(set(one_pass)) == len(one_pass)  # none twice in a pass
            assert ((one_pass >= OFFSETS[client]) & (one_pass < OFFSETS[client + 1])).all()
            if first + in_pass <= steps:
                assert len(one_pass) == n


def test_a_fixed_number_of_steps_that_is_whole_passes_is_those_passes():
    every = np.concatenate([[0], np.cumsum([10] * 3)])
    by_epoch, by_step = (schedule(every, [2, 0], t, SEED) for t in (PLAIN, replace(PLAIN, epochs=1, steps=4)))
    for name in ("rows", "step_bounds", "client_bounds"):
        np.testing.assert_array_equal(getattr(by_epoch, name), getattr(by_step, name))


@pytest.mark.slow
def test_the_tff_executor_takes_the_same_steps():
    from privfed.executors.tff import TffClientWork

    model = build_model("mlp", SHAPE, CLASSES)
    weights = model.initial_vector(1)
    for name in ("both", "two steps"):
        data = (model, *population(np.float32), TRAININGS[name])
        with TffClientWork(*data) as theirs:
            for factor in (1.0, FACTOR):
                got, _ = run(theirs.under(Conditions(factor)), weights, CLIENTS)
                expected, _ = run(LocalClientWork(*data).under(Conditions(factor)), weights, CLIENTS)
                np.testing.assert_allclose(got["deltas"], expected["deltas"], rtol=1e-4, atol=1e-6)
                np.testing.assert_array_equal(got["seen"], expected["seen"])
    with pytest.raises(ValueError, match="neither control variates"):
        TffClientWork(model, *population(np.float32), replace(PLAIN, corrected=True))
