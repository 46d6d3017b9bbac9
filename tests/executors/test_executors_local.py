from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.executors.local import LocalClientWork, available_cores, configure_threads
from privfed.federated.client_work import LocalTraining, schedule
from privfed.models.build import build_model
from privfed.models.functional import cross_entropy

SHAPE, CLASSES = (8, 8, 1), 10
SIZES = (13, 0, 24, 1, 7, 12)
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
SEED = (3, 1)

configure_threads()


def population(dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (OFFSETS[-1], *SHAPE)).astype(np.uint8)
    features = pixels if dtype == np.uint8 else pixels / np.float32(255)
    return features, rng.integers(0, CLASSES, OFFSETS[-1]).astype(np.int32), OFFSETS


def naive(model, features, labels, offsets, training, weights, clients, seed, factor=1.0, corrections=None):
    """The same work, one eager step after the other, in float64."""
    scaled = features / 255.0 if features.dtype == np.uint8 else features.astype(np.float64)
    for place, client in enumerate(clients):
        work = schedule(offsets, [client], training, seed)
        start = [w.astype(np.float64) for w in model.unflatten(weights)]
        now, loss_sum, correct = [tf.constant(w) for w in start], 0.0, 0
        velocity = [np.zeros_like(w) for w in start]
        shift = velocity if corrections is None else model.unflatten(corrections[place].astype(np.float64))
        for first, last in zip(work.step_bounds[:-1], work.step_bounds[1:], strict=True):
            rows = work.rows[first:last]
            with tf.GradientTape() as tape:
                tape.watch(now)
                logits = model.logits(now, tf.constant(scaled[rows]))
                loss = cross_entropy(logits, tf.constant(labels[rows]))
            loss_sum += float(loss) * len(rows)
            correct += int((logits.numpy().argmax(1) == labels[rows]).sum())
            gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, now)]
            pulled = [
                g + training.proximal * (w - s) + c
                for g, w, s, c in zip(gradients, now, start, shift, strict=True)
            ]
            velocity = [training.momentum * v + g for v, g in zip(velocity, pulled, strict=True)]
            now = [w - factor * training.learning_rate * v for w, v in zip(now, velocity, strict=True)]
        delta = np.concatenate([(b.numpy() - a).reshape(-1) for a, b in zip(start, now, strict=True)])
        yield delta, loss_sum, correct


def run(work, weights, clients, seed=SEED):
    """All chunks as one."""
    chunks = list(work(weights, clients, seed))
    joined = {
        key: np.concatenate([getattr(chunk, key) for chunk in chunks])
        for key in ("clients", "deltas", "examples", "loss_sum", "correct", "seen")
    }
    return joined, [len(chunk.clients) for chunk in chunks]


@pytest.mark.usefixtures("cnn_is_long")
@pytest.mark.parametrize("model_name", ["softmax", "mlp", "lenet", "cnn"])
@pytest.mark.parametrize(("epochs", "shuffle", "dtype"), [(1, False, np.uint8), (3, True, np.float32)])
def test_local_equals_an_eager_loop(model_name, epochs, shuffle, dtype):
    model = build_model(model_name, SHAPE, CLASSES)
    training = LocalTraining(0.1, epochs, 5, shuffle)
    features, labels, offsets = population(dtype)
    weights = model.initial_vector(1)
    clients = [4, 0, 1, 2, 3]
    got, _ = run(LocalClientWork(model, features, labels, offsets, training), weights, clients)
    expected = naive(model, features, labels, offsets, training, weights, clients, SEED)
    for row, (delta, loss_sum, correct) in enumerate(expected):
        np.testing.assert_allclose(got["deltas"][row], delta, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(got["loss_sum"][row], loss_sum, rtol=1e-4)
        assert got["correct"][row] == correct
    assert got["clients"].tolist() == clients
    assert got["examples"].tolist() == [SIZES[c] for c in clients]
    assert got["seen"].tolist() == [epochs * SIZES[c] for c in clients]
    assert got["deltas"].dtype == np.float32


def test_local_trains_a_keras_model_like_the_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_model_for_local.py").write_text(
        "import tensorflow as tf\n"
        "def build(input_shape, classes):\n"
        "    return tf.keras.Sequential([tf.keras.Input(input_shape), tf.keras.layers.Flatten(),\n"
        "        tf.keras.layers.Dense(7, 'relu'), tf.keras.layers.Dense(classes)])\n"
    )
    training = LocalTraining(0.1, 2, 5)
    own = build_model("own_model_for_local:build", SHAPE, CLASSES)
    zoo = build_model("mlp", SHAPE, CLASSES, hidden=[7])
    weights = zoo.initial_vector(1)
    results = [run(LocalClientWork(m, *population(), training), weights, [0, 2])[0] for m in (own, zoo)]
    np.testing.assert_allclose(results[0]["deltas"], results[1]["deltas"], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Converting sparse IndexedSlices:UserWarning")  # TensorFlow's, about memory
def test_local_trains_a_keras_model_with_an_embedding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_embedding.py").write_text(
        "import tensorflow as tf\n"
        "def build(input_shape, classes):\n"
        "    return tf.keras.Sequential([tf.keras.Input(input_shape), tf.keras.layers.Flatten(),\n"
        "        tf.keras.layers.Rescaling(255.0, offset=0.5), tf.keras.layers.Embedding(256, 3),\n"
        "        tf.keras.layers.Flatten(), tf.keras.layers.Dense(classes)])\n"
    )
    model = build_model("own_embedding:build", SHAPE, CLASSES)
    weights, data, training = model.initial_vector(1), population(), LocalTraining(0.1, 2, 5)
    (delta,) = run(LocalClientWork(model, *data, training), weights, [2])[0]["deltas"]
    ((expected, _, _),) = naive(model, *data, training, weights, [2], SEED)
    np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("cnn_is_long")
@pytest.mark.parametrize("model_name", ["mlp", "cnn"])
def test_local_result_of_a_client_depends_on_nothing_but_the_client(model_name):
    model = build_model(model_name, SHAPE, CLASSES)
    training = LocalTraining(0.1, 2, 5)
    weights = model.initial_vector(1)
    one_row = 3 * 4 * model.dimension
    reference, chunks = run(LocalClientWork(model, *population(), training, threads=1), weights, range(6))
    assert chunks == [6]
    for threads, budget, sizes in [(2, 1 << 30, [6]), (3, 4 * one_row, [3, 3]), (2, 1, [1] * 6)]:
        work = LocalClientWork(model, *population(), training, threads=threads, memory_budget_bytes=budget)
        for _ in range(2):
            got, chunks = run(work, weights, range(6))
            assert chunks == sizes
            for key, value in reference.items():
                np.testing.assert_array_equal(got[key], value, err_msg=key)
    alone, _ = run(work, weights, [4])
    np.testing.assert_array_equal(alone["deltas"][0], reference["deltas"][4])
    other, _ = run(work, weights, [4], seed=(3, 2))
    assert (other["deltas"] != alone["deltas"]).any()


@functools.cache
def small_work(threads, chunk):
    model = build_model("softmax", (3,), CLASSES)
    rng = np.random.default_rng(0)
    features = rng.uniform(0.1, 1, (OFFSETS[-1], 3)).astype(np.float32)
    return model.initial_vector(0), LocalClientWork(
        model,
        features,
        (np.arange(OFFSETS[-1]) % CLASSES).astype(np.int32),
        OFFSETS,
        LocalTraining(0.1, 1, 4),
        threads=threads,
        memory_budget_bytes=chunk * 3 * 4 * model.dimension,
    )


@given(
    clients=st.lists(st.integers(0, len(SIZES) - 1), max_size=20),
    threads=st.sampled_from([1, 2, 5]),
    chunk=st.sampled_from([1, 4, 20]),
)
@settings(max_examples=60, deadline=None)
def test_local_gives_every_client_in_the_order_asked(clients, threads, chunk):
    weights, work = small_work(threads, chunk)
    got = list(work(weights, clients, SEED))
    assert [c for part in got for c in part.clients] == clients
    for part in got:
        assert 1 <= len(part.clients) <= chunk
        assert part.deltas.shape == (len(part.clients), len(weights))
        np.testing.assert_array_equal(part.examples, [SIZES[c] for c in part.clients])
        np.testing.assert_array_equal(part.examples == 0, (part.deltas == 0).all(1))


def test_local_traces_once_for_each_thread():
    calls = []
    model = build_model("mlp", SHAPE, CLASSES)
    counted = replace(model, logits=lambda w, x: calls.append(1) or model.logits(w, x))
    training = LocalTraining(0.1, 1, 5)
    work = LocalClientWork(counted, *population(), training, threads=2)
    weights = model.initial_vector(0)
    run(work, weights, range(6))
    assert len(calls) == 2
    for clients in ([0], [5, 2, 3], [1], [0, 2]):
        run(work, weights, clients)
    assert len(calls) == 2


def test_local_diverging_client_is_not_finite_and_spoils_nobody_else():
    model = build_model("mlp", SHAPE, CLASSES)
    training = LocalTraining(0.1, 1, 5, False)
    features, labels, offsets = population(np.float32)
    weights = model.initial_vector(0)
    clean, _ = run(LocalClientWork(model, features, labels, offsets, training, threads=1), weights, range(6))
    features[offsets[2] + 1] = np.nan
    spoilt, _ = run(LocalClientWork(model, features, labels, offsets, training, threads=1), weights, range(6))
    assert not np.isfinite(spoilt["deltas"][2]).all()
    assert not np.isfinite(spoilt["loss_sum"][2])
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(spoilt["deltas"][others], clean["deltas"][others])


def test_local_without_clients_gives_nothing_and_empty_clients_give_zeros():
    model = build_model("softmax", SHAPE, CLASSES)
    work = LocalClientWork(model, *population(), LocalTraining(0.1, 2, 5))
    assert list(work(model.initial_vector(0), [], SEED)) == []
    (only,) = work(model.initial_vector(0), [1], SEED)
    assert not only.deltas.any()
    assert (only.examples, only.seen, only.loss_sum, only.correct) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": np.zeros((57, 8, 8, 1))}, "uint8 or float32"),
        ({"features": np.zeros((57, 8, 8), np.uint8)}, r"takes \(8, 8, 1\)"),
        ({"labels": np.zeros(57, np.float32)}, "integers"),
        ({"labels": np.zeros(56, np.int32)}, "integers"),
        ({"labels": np.full(57, 10, np.int32)}, r"lie in \[0, 10\), got values from 10 to 10"),
        ({"labels": np.full(57, -1, np.int64)}, "from -1 to -1"),
        ({"offsets": np.array([0, 5, 4])}, "rise"),
        ({"offsets": np.array([0, 58])}, r"within \[0, 57\]"),
        ({"offsets": np.array([-1, 5])}, "rise"),
        ({"offsets": np.array([], np.int64)}, "rise"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_local_refuses_arrays_that_do_not_fit(change, reason):
    features, labels, offsets = population()
    arguments = {"features": features, "labels": labels, "offsets": offsets} | change
    with pytest.raises(ValueError, match=reason):
        LocalClientWork(build_model("softmax", SHAPE, CLASSES), training=LocalTraining(0.1, 1, 5), **arguments)


def test_local_refuses_weights_of_another_model():
    work = LocalClientWork(build_model("softmax", SHAPE, CLASSES), *population(), LocalTraining(0.1, 1, 5))
    with pytest.raises(ValueError, match=r"the model has 650 weights, got shape \(3,\)"):
        next(work(np.zeros(3, np.float32), [0], SEED))


@pytest.mark.slow
def test_configure_threads_on_a_fresh_and_on_a_running_runtime():
    program = """
import tensorflow as tf
from privfed.executors.local import configure_threads
running = {running}
if running:
    tf.constant(1.0) + 1
print(configure_threads(), tf.config.optimizer.get_experimental_options()["arithmetic_optimization"])
"""
    for running, answer in [(False, "True False"), (True, "False False")]:
        done = subprocess.run(
            [sys.executable, "-c", program.format(running=running)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.split("\n")[0] == answer, done.stderr
    assert available_cores() >= 1
