"""DP-SGD on clients: every step against an eager twin, noise of the claimed scale, spoilt examples."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import chi2
from test_executors_local import CLASSES, OFFSETS, SHAPE, SIZES, population, run

from privfed.executors.examples import noised_gradients
from privfed.executors.local import LocalClientWork
from privfed.federated.client_work import Conditions, LocalTraining, drawn_schedule
from privfed.models.build import build_model
from privfed.models.functional import cross_entropy
from privfed.privacy.errors import PrivacyError
from privfed.privacy.mechanisms import ExampleNoise
from privfed.privacy.randomness import SeededSource, SystemSource

CLIENTS = [4, 0, 1, 2, 3]
CLIP, Z, RATE, STEPS, BATCH = 0.5, 0.7, 0.3, 4, 6
EXAMPLE = ExampleNoise(CLIP, Z, RATE)
TRAINING = LocalTraining(0.2, 1, BATCH, steps=STEPS, example=EXAMPLE)
FALSE_ALARM = 1e-6


def seeded(client):
    return SeededSource(9, client)


def clipped(model, weights, x, y, clip_norm):
    """Gradients of single examples, one after the other in float64, each clipped: ``[batch, d]``."""
    rows = np.zeros((len(y), model.dimension))
    for row, inputs, label in zip(rows, x, y, strict=True):
        now = [tf.constant(w, tf.float64) for w in weights]
        with tf.GradientTape() as tape:
            tape.watch(now)
            loss = cross_entropy(model.logits(now, tf.constant(inputs[None], tf.float64)), tf.constant([label]))
        row[:] = np.concatenate([np.reshape(g, -1) for g in tape.gradient(loss, now)])
        row *= min(1, clip_norm / np.linalg.norm(row))
    return rows


def twin(model, data, training, weights, client, source):
    """Algorithm 1 of Abadi et al. (2016) on one client, with the noise and the batches of ``source``."""
    features, labels, offsets = data
    mine = slice(offsets[client], offsets[client + 1])
    taken = training.example.batches(source, training.steps, mine.stop - mine.start)
    noise = training.example.noise(source, training.steps, model.dimension)
    now, velocity = weights.astype(np.float64), np.zeros(model.dimension)
    for batch, extra in zip(taken, noise, strict=True):
        x, y = features[mine][batch].astype(np.float64), labels[mine][batch]
        summed = clipped(model, model.unflatten(now), x, y, training.example.clip_norm).sum(0) + extra
        gradient = summed / training.batch_size + training.proximal * (now - weights)
        velocity = training.momentum * velocity + gradient
        now = now - training.learning_rate * velocity
    return now - weights


@pytest.mark.parametrize(
    ("model_name", "changes"),
    [("softmax", {}), ("mlp", {"momentum": 0.5, "proximal": 0.2}), ("lenet", {}), ("cnn", {})],
)
def test_local_training_is_the_eager_twin(model_name, changes):
    model = build_model(model_name, SHAPE, CLASSES)
    training, data = replace(TRAINING, **changes), population(np.float32)
    work = LocalClientWork(model, *data, training, threads=2).under(Conditions(source=seeded))
    weights = model.initial_vector(1)
    got, _ = run(work, weights, CLIENTS)
    for row, client in enumerate(CLIENTS):
        expected = twin(model, data, training, weights, client, seeded(client))
        np.testing.assert_allclose(got["deltas"][row], expected, rtol=2e-3, atol=2e-5)
    summed = work.clipped_sum(weights, CLIENTS, (0,), None)
    np.testing.assert_allclose(summed.total, got["deltas"].astype(np.float64).sum(0), rtol=1e-5, atol=1e-6)
    assert got["seen"] == pytest.approx([STEPS * RATE * SIZES[c] for c in CLIENTS])


def test_a_client_without_examples_cannot_be_told_by_its_silence():
    model = build_model("softmax", SHAPE, CLASSES)
    work = LocalClientWork(model, *population(np.float32), TRAINING).under(Conditions(source=seeded))
    (delta,) = run(work, model.initial_vector(1), [1])[0]["deltas"]
    assert SIZES[1] == 0
    stddev = 0.2 * Z * CLIP / BATCH * np.sqrt(STEPS)
    low, high = chi2.ppf([FALSE_ALARM, 1 - FALSE_ALARM], model.dimension)
    ratio = np.sum((delta / stddev) ** 2)
    assert low < ratio < high
    # The negative: noise of 80 % or 125 % of the scale is told from it.
    assert not low < ratio * 0.64 < high
    assert not low < ratio * 1.5625 < high


@pytest.mark.parametrize("model_name", ["mlp", "cnn"])
def test_no_example_moves_a_sum_by_more_than_the_clip_norm_and_spoilt_ones_move_nothing(model_name):
    model = build_model(model_name, SHAPE, CLASSES)
    features, labels, _ = population(np.float32)
    x, y = features[:7].copy(), labels[:7]
    x[2], x[3], x[4] = np.nan, np.inf, x[4] * 1e6
    weights = [tf.constant(w) for w in model.unflatten(model.initial_vector(1))]
    zero, training = [tf.zeros(w.shape) for w in weights], replace(TRAINING, batch_size=1)

    @tf.function(autograph=False)
    def summed(weights, x, y):
        return noised_gradients(model, training, weights, x, y, zero)[0]

    def vector(rows):
        return np.concatenate([np.reshape(part, -1) for part in summed(weights, x[rows], y[rows])]).astype(
            np.float64
        )

    whole = vector(list(range(7)))
    assert np.isfinite(whole).all()
    for row in range(7):
        moved = whole - vector([other for other in range(7) if other != row])
        assert np.linalg.norm(moved) <= CLIP * (1 + 1e-5)  # of two sums in float32
        assert np.any(vector([row])) == (row not in (2, 3))
        assert np.linalg.norm(vector([row])) <= CLIP
    assert not vector([]).any()


def test_batches_are_drawn_example_by_example():
    sources = [SeededSource(1, c) for c in range(len(SIZES))]
    training = replace(TRAINING, steps=400)
    work = drawn_schedule(OFFSETS, range(len(SIZES)), training, sources)
    counts = np.bincount(work.rows, minlength=OFFSETS[-1])
    spread = np.sqrt(400 * RATE * (1 - RATE))
    assert np.abs(counts - 400 * RATE).max() < 6 * spread
    assert np.abs(counts.sum() - 400 * RATE * OFFSETS[-1]) < 6 * spread * np.sqrt(OFFSETS[-1])
    for client, n in enumerate(SIZES):
        span = work.step_bounds[work.client_bounds[client] : work.client_bounds[client + 1] + 1]
        rows = work.rows[span[0] : span[-1]]
        assert ((rows >= OFFSETS[client]) & (rows < OFFSETS[client] + n)).all()
        assert len(span) == 401
        for first, last in itertools.pairwise(span[:20]):
            assert len(set(work.rows[first:last])) == last - first


def test_in_secure_mode_noised_sums_lie_on_the_grid_and_nothing_comes_from_a_seed():
    secure = replace(EXAMPLE, secure=True)
    model = build_model("softmax", SHAPE, CLASSES)
    data, weights = population(np.float32), model.initial_vector(1)
    training = replace(TRAINING, steps=1, learning_rate=float(BATCH), example=secure)
    work = LocalClientWork(model, *data, training)
    fresh = work.under(Conditions(source=lambda client: SystemSource()))
    deltas = [run(fresh, weights, [2])[0]["deltas"][0] for _ in range(2)]
    assert (deltas[0] != deltas[1]).mean() > 0.99
    noise = secure.noise(SystemSource(), 3, 500)
    np.testing.assert_array_equal(noise / secure.grid, np.rint(noise / secure.grid))
    low, high = chi2.ppf([FALSE_ALARM, 1 - FALSE_ALARM], noise.size)
    assert low < np.sum((noise / secure.stddev) ** 2) < high
    assert secure.clip_to(model.dimension) < CLIP
    with pytest.raises(PrivacyError, match="seed"):
        run(work.under(Conditions(source=seeded)), weights, [2])
    with pytest.raises(ValueError, match="source of randomness"):
        run(work, weights, [2])
