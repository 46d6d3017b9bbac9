"""Clipped sums by every path, against updates clipped and added one by one, and against an eager twin."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from test_executors_local import CLASSES, OFFSETS, SEED, SHAPE, SIZES, naive, population

from privfed.executors import ghost
from privfed.executors.accumulate import NORM_SLACK, squared_norm
from privfed.executors.compiled import Batches, CallShape
from privfed.executors.dense import dense_widths
from privfed.executors.local import LocalClientWork
from privfed.executors.sums import Data, choose_path
from privfed.federated.client_work import ClippedSum, LocalTraining, clip_and_sum, schedule
from privfed.models.build import build_model
from privfed.privacy.clipping import clip_by_l2

CLIENTS = [4, 0, 1, 2, 3]
ONE_STEP, MANY_STEPS = LocalTraining(0.1, 1, 64), LocalTraining(0.1, 2, 5)
CLIP = 0.1
"""Some of the updates below are longer, some are not."""

CASES = [
    ("softmax", "loop", MANY_STEPS),
    ("cnn", "loop", MANY_STEPS),
    ("softmax", "xla", MANY_STEPS),
    ("mlp", "xla", MANY_STEPS),
    ("softmax", "ghost", ONE_STEP),
    ("mlp", "ghost", ONE_STEP),
]


NAN, INF, HUGE = 6, 7, 8
"""Clients behind the six usual ones: spoilt examples, and one whose squares are beyond float32."""


def everybody():
    """The usual population and the clients above."""
    features, labels, offsets = population(np.float32)
    extra = features[:8].copy()
    extra[2], extra[5] = np.nan, np.inf
    extra[7] *= np.float32(1e21)
    return (
        np.concatenate([features, extra]),
        np.concatenate([labels, labels[:8]]),
        np.concatenate([offsets, offsets[-1] + [4, 7, 8]]),
    )


def make(model_name="mlp", path="auto", training=MANY_STEPS, *, threads=2, **options):
    model = build_model(model_name, SHAPE, CLASSES, **options)
    return model, LocalClientWork(model, *everybody(), training, threads=threads, path=path)


@functools.cache
def usual(model_name, path, training):
    """Compiled once for all tests."""
    return make(model_name, path, training)


@functools.cache
def clipped_twin(model_name, training, clip_norm):
    """Eager, in float64, one client after the other."""
    model = build_model(model_name, SHAPE, CLASSES)
    weights = model.initial_vector(1)
    total, norms, losses, corrects = np.zeros(model.dimension), [], [], []
    for delta, loss_sum, correct in naive(model, *population(np.float32), training, weights, CLIENTS, SEED):
        norms.append(np.linalg.norm(delta))
        total += delta * (1 if clip_norm is None else min(1, clip_norm / max(norms[-1], 1e-300)))
        losses.append(loss_sum)
        corrects.append(correct)
    return total, norms, losses, corrects


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("clip_norm", [None, CLIP])
@pytest.mark.parametrize(("model_name", "path", "training"), CASES)
def test_every_path_equals_an_eager_loop(model_name, path, training, clip_norm, exact):
    model, work = usual(model_name, path, training)
    weights = model.initial_vector(1)
    got = work.clipped_sum(weights, CLIENTS, SEED, clip_norm, exact=exact)
    total, norms, losses, corrects = clipped_twin(model_name, training, clip_norm)
    # What the clips give up to rounding is a matter of direction and length, not of single coordinates.
    assert np.linalg.norm(got.total - total) <= 2e-4 * np.linalg.norm(total)
    np.testing.assert_allclose(got.norms, norms, rtol=1e-4)
    np.testing.assert_allclose(got.loss_sum, losses, rtol=1e-4)
    np.testing.assert_array_equal(got.correct, corrects)
    assert (got.clients, got.total.dtype) == (tuple(CLIENTS), np.float64)
    assert got.finite.all()
    assert got.seen.tolist() == [training.epochs * SIZES[c] for c in CLIENTS]
    if clip_norm is not None and path != "ghost":
        assert 0 < (got.norms > clip_norm).sum() < len(CLIENTS)


@pytest.mark.parametrize(("model_name", "path", "training"), CASES)
def test_no_contribution_is_longer_than_the_bound(model_name, path, training):
    model, work = usual(model_name, path, training)
    weights = model.initial_vector(1)
    for client in (0, 2, 3, 4):
        for clip_norm in (1e-6, 0.01, CLIP, 3.0):
            alone = work.clipped_sum(weights, [client], SEED, clip_norm)
            length = float(np.linalg.norm(alone.total))
            assert length <= clip_norm
            # Nor is it much shorter, or the bound would be the work of a clip that is too low. Ghost clipping
            # allows for errors beside the sum before terms cancel, which here is up to 40 times the rest.
            assert length >= min(clip_norm, alone.norms[0]) * (1 - (1e-3 if path == "ghost" else 1e-4))


@pytest.mark.parametrize(("model_name", "path", "training"), CASES)
def test_a_client_that_is_not_finite_is_reported_and_spoils_nobody(model_name, path, training):
    model, work = usual(model_name, path, training)
    weights = model.initial_vector(1)
    spoilt = work.clipped_sum(weights, [0, NAN, 2, INF, 3], SEED, CLIP)
    assert spoilt.finite.tolist() == [True, False, True, False, True]
    assert not np.isfinite(spoilt.norms[[1, 3]]).any()
    rest = work.clipped_sum(weights, [0, 2, 3], SEED, CLIP)
    np.testing.assert_allclose(spoilt.total, rest.total, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(spoilt.norms[[0, 2, 4]], rest.norms, rtol=1e-5)
    np.testing.assert_allclose(spoilt.loss_sum[[0, 2, 4]], rest.loss_sum, rtol=1e-5)


@pytest.mark.parametrize(("model_name", "path", "training"), CASES)
def test_a_huge_update_is_not_taken_for_one_that_is_not_finite(model_name, path, training):
    model, work = usual(model_name, path, training)
    weights = np.full(model.dimension, 0 if model_name == "softmax" else 1e-22, np.float32)
    got = work.clipped_sum(weights, [0, HUGE], SEED, CLIP)
    expected = clip_and_sum(work(weights, [0, HUGE], SEED), CLIP, model.dimension)
    np.testing.assert_array_equal(got.finite, expected.finite)
    np.testing.assert_allclose(got.norms, expected.norms, rtol=1e-4)
    assert np.linalg.norm(got.total - expected.total) <= 1e-3 * CLIP


@pytest.mark.parametrize(("model_name", "path", "training"), CASES[1:4] + CASES[5:])
def test_threads_order_and_company_change_nothing_but_rounding(model_name, path, training):
    model, work = usual(model_name, path, training)
    weights = model.initial_vector(1)
    reference = work.clipped_sum(weights, range(6), SEED, CLIP)
    again = work.clipped_sum(weights, range(6), SEED, CLIP)
    np.testing.assert_array_equal(again.total, reference.total)
    order = [5, 3, 1, 0, 2, 4]
    alone = make(model_name, path, training, threads=1)[1]
    for got in (work.clipped_sum(weights, order, SEED, CLIP), alone.clipped_sum(weights, order, SEED, CLIP)):
        np.testing.assert_allclose(got.total, reference.total, rtol=1e-4, atol=1e-8)
        for key in ("norms", "loss_sum", "correct", "seen"):
            expected = getattr(reference, key)[order]
            np.testing.assert_allclose(getattr(got, key), expected, rtol=1e-5, err_msg=key)
    parts = [work.clipped_sum(weights, [c], SEED, CLIP).total for c in range(6)]
    np.testing.assert_allclose(np.sum(parts, 0), reference.total, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("path", ["xla", "ghost"])
def test_nobody_and_clients_without_examples_send_zeros(path):
    model, work = usual("mlp", path, ONE_STEP if path == "ghost" else MANY_STEPS)
    weights = model.initial_vector(0)
    nobody, empty = (work.clipped_sum(weights, clients, SEED, CLIP) for clients in ([], [1, 1]))
    for got in (nobody, empty):
        assert not got.total.any()
        assert got.total.shape == (model.dimension,)
    assert nobody.clients == ()
    assert (empty.norms.tolist(), empty.finite.tolist(), empty.seen.tolist()) == ([0, 0], [True, True], [0, 0])


@pytest.mark.parametrize(("path", "training"), [("loop", MANY_STEPS), ("xla", MANY_STEPS), ("ghost", ONE_STEP)])
def test_sums_are_compiled_once_whatever_the_cohort(path, training, monkeypatch):
    traced = []
    real = tf.nn.sparse_softmax_cross_entropy_with_logits
    monkeypatch.setattr(
        tf.nn, "sparse_softmax_cross_entropy_with_logits", lambda **k: traced.append(1) or real(**k)
    )
    model, work = make("mlp", path, training)
    weights = model.initial_vector(0)
    work.clipped_sum(weights, range(6), SEED, CLIP)
    first = len(traced)
    for clients in ([0], [5, 2, 3], [1], [0, 2, 4, 5, 3, 1]):
        work.clipped_sum(weights, clients, SEED, None)
    assert len(traced) == first <= 2


def test_the_path_follows_from_the_structure():
    sizes = np.array(SIZES)
    softmax, mlp, cnn = (build_model(name, (28, 28, 1), 10) for name in ("softmax", "mlp", "cnn"))
    one_step, many = LocalTraining(0.1, 1, 24), LocalTraining(0.1, 1, 4)
    assert choose_path(mlp, one_step, sizes, exact=False) == "ghost"
    assert choose_path(mlp, one_step, sizes, exact=True) != "ghost"
    assert choose_path(mlp, many, sizes, exact=False) == "xla"
    assert choose_path(cnn, one_step, sizes, exact=False) == "loop"
    # Gram matrices of 100 examples cost more than a layer of ten outputs.
    assert choose_path(softmax, LocalTraining(0.1, 1, 100), np.array([100]), exact=False) == "xla"
    # One client of a hundred examples among many of one: compiled steps would be padding.
    ragged = np.array([100] + [1] * 1000)
    assert choose_path(mlp, LocalTraining(0.1, 2, 100), ragged, exact=False) == "loop"


@pytest.mark.parametrize(
    ("activation", "use_bias"),
    [("gelu", True), pytest.param("swish", False, marks=pytest.mark.slow)]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in ("relu", "selu", "softsign", "exponential")],
)
def test_ghost_understands_a_keras_model_of_dense_layers(tmp_path, monkeypatch, activation, use_bias):
    monkeypatch.chdir(tmp_path)
    name = f"own_dense_{activation}_{use_bias}".lower()
    (tmp_path / f"{name}.py").write_text(
        "import tensorflow as tf\n"
        "def build(input_shape, classes):\n"
        "    return tf.keras.Sequential([tf.keras.Input(input_shape), tf.keras.layers.Flatten(),\n"
        f"        tf.keras.layers.Dense(131, {activation!r}, use_bias={use_bias}),\n"
        "        tf.keras.layers.Dense(classes)])\n"
    )
    model = build_model(f"{name}:build", SHAPE, CLASSES)
    assert dense_widths(model) == [(64, 131), (131, 10)]
    work = LocalClientWork(model, *population(), ONE_STEP, path="ghost")
    weights = model.initial_vector(1)
    got = work.clipped_sum(weights, CLIENTS, SEED, CLIP)
    expected = clip_and_sum(work(weights, CLIENTS, SEED), CLIP, model.dimension)
    assert np.linalg.norm(got.total - expected.total) <= 2e-4 * np.linalg.norm(expected.total)
    np.testing.assert_allclose(got.norms, expected.norms, rtol=1e-5)


@pytest.mark.parametrize(
    "logits",
    [
        lambda w, x: tf.matmul(tf.matmul(tf.reshape(x, [-1, 64]), w[0]), tf.matmul(w[0], w[0], transpose_a=True)),
        lambda w, x: tf.matmul(tf.reshape(x, [-1, 64]), w[0]) * tf.reduce_sum(w[1]),
        lambda w, x: tf.matmul(tf.reshape(x - tf.reduce_mean(x, 0), [-1, 64]), w[0]) + w[1],
        lambda w, x: tf.nn.softmax(tf.matmul(tf.reshape(x, [-1, 64]), w[0]) + w[1], axis=0),
        lambda w, x: tf.matmul(tf.reshape(tf.transpose(x), [-1, 64]), w[0]) + w[1],
        lambda w, x: tf.matmul(tf.reshape(x, [-1, 64]), w[0] * 2.0) + w[1],
    ],
)
def test_models_that_mix_examples_or_use_weights_otherwise_are_not_dense(logits):
    from dataclasses import replace

    assert dense_widths(build_model("softmax", SHAPE, CLASSES)) == [(64, 10)]
    assert dense_widths(replace(build_model("softmax", SHAPE, CLASSES), logits=logits)) is None


def test_paths_that_cannot_be_gone_are_refused():
    for path, training, model_name, reason in [
        ("fast", ONE_STEP, "mlp", "path must be one of auto, loop, xla, ghost, got 'fast'"),
        ("ghost", MANY_STEPS, "mlp", "one local step"),
        ("ghost", ONE_STEP, "cnn", "dense layers alone, cnn is not"),
    ]:
        with pytest.raises(ValueError, match=reason):
            make(model_name, path, training)
    model, work = usual("mlp", "xla", MANY_STEPS)
    for clip_norm in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip_norm must be positive"):
            work.clipped_sum(model.initial_vector(0), [0], SEED, clip_norm)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e15, 1e25])
@pytest.mark.parametrize("shape", [(7,), (257,), (784, 200), (3, 3, 32, 64)])
def test_squared_norms_are_as_exact_as_they_say(shape, scale):
    part = (np.random.default_rng(0).normal(size=shape) * scale).astype(np.float32)
    exact = np.sum(part.astype(np.float64) ** 2)
    got = float(squared_norm([tf.constant(part)]))
    # Below 2⁻⁶³ squares vanish, which clip_factor allows for.
    assert abs(math.sqrt(got) - math.sqrt(exact)) <= NORM_SLACK / 2 * math.sqrt(exact) + 2.0**-63 * part.size**0.5


def test_batches_repeat_no_row_of_another_client():
    training = LocalTraining(0.1, 2, 5)
    shape = CallShape.for_population(np.array(SIZES), training, fewest=4)
    assert (shape.batch, shape.full) == (5, False)
    clients = [0, 3, 2]
    steps = schedule(OFFSETS, clients, training, SEED)
    batches = Batches.of(steps, CallShape(40, 5, False))
    for i, client in enumerate(clients):
        for step in range(batches.client_bounds[i], batches.client_bounds[i + 1]):
            rows = batches.rows[step]
            assert ((rows >= OFFSETS[client]) & (rows < OFFSETS[client + 1])).all()
            real = rows[: batches.real[step]]
            np.testing.assert_array_equal(real, steps.rows[steps.step_bounds[step] : steps.step_bounds[step + 1]])
    assert batches.real.sum() == len(steps.rows)


@pytest.mark.parametrize("seed", range(5))
def test_ghost_blocks_hold_every_client_once_and_places_every_example(seed):
    sizes = np.random.default_rng(seed).integers(1, 90, 300)
    sizes[0] = 5000
    blocks = ghost.blocks(sizes)
    assert sorted(np.concatenate(blocks)) == list(range(300))
    for block in blocks:
        assert len(block) == 1 or len(block) * sizes[block].max() <= ghost.ROWS
        places = ghost.places(sizes[block])
        assert places.shape == (len(block), sizes[block].max())
        held = places[places < sizes[block].sum()]
        np.testing.assert_array_equal(held, np.arange(sizes[block].sum()))
        np.testing.assert_array_equal((places < sizes[block].sum()).sum(1), sizes[block])


def test_the_plain_sum_clips_as_mechanisms_do():
    model, work = usual("mlp", "xla", MANY_STEPS)
    weights = model.initial_vector(1)
    got: ClippedSum = clip_and_sum(work(weights, CLIENTS, SEED), CLIP, model.dimension)
    (updates,) = work(weights, CLIENTS, SEED)
    np.testing.assert_array_equal(got.total, sum(clip_by_l2(d, CLIP).vector.astype(float) for d in updates.deltas))
    assert clip_and_sum([], CLIP, 3).total.tolist() == [0, 0, 0]


@pytest.mark.parametrize("path", ["loop", "xla"])
@pytest.mark.parametrize("offset", [0, 1])
def test_mapped_arrays_are_used_where_they_lie_when_they_are_aligned(tmp_path, path, offset):
    model, training = build_model("mlp", SHAPE, CLASSES), LocalTraining(0.1, 1, 5)
    features, labels, offsets = population()
    with (tmp_path / "features.raw").open("wb") as file:
        file.write(bytes(offset) + features.tobytes())
    mapped = np.memmap(tmp_path / "features.raw", np.uint8, "r", offset, features.shape).view(np.ndarray)
    assert mapped.ctypes.data % 64 == offset
    data = Data(mapped, labels, offsets, "CPU:0")
    where = np.frombuffer(memoryview(data.features), np.uint8).ctypes.data
    assert (where == mapped.ctypes.data) == (offset == 0)
    weights = model.initial_vector(0)
    there, here = (
        LocalClientWork(model, each, labels, offsets, training, path=path).clipped_sum(
            weights, range(6), SEED, 0.1
        )
        for each in (mapped, features)
    )
    np.testing.assert_array_equal(there.total, here.total)


def test_mapped_data_are_read_in_parts_and_others_whole(tmp_path):
    features = np.zeros((64, 4), np.float32)
    np.save(tmp_path / "features.npy", features)
    labels, offsets = np.zeros(64, np.int32), np.arange(65)
    pieces = [np.arange(40), np.arange(0), np.arange(5)]
    mapped = Data(np.load(tmp_path / "features.npy", mmap_mode="r"), labels, offsets, "CPU:0")
    assert [len(part) for part in mapped.in_parts(iter(pieces))] == [16, 16, 8, 5]
    held = Data(features, labels, offsets, "CPU:0")
    assert [len(part) for part in held.in_parts(iter(pieces))] == [40, 5]
