"""Both executors against TFF's own federated averaging, and the life of TFF's worker."""

from __future__ import annotations

import gzip
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from privfed.executors.local import LocalClientWork, configure_threads
from privfed.federated.client_work import LocalTraining
from privfed.models.build import build_model

pytestmark = pytest.mark.slow  # TFF takes 4 s to import

SHAPE, CLASSES = (8, 8, 1), 10
SIZES = (13, 0, 24, 1, 7, 12)
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])

configure_threads()


def population(seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (OFFSETS[-1], *SHAPE)).astype(np.uint8)
    return pixels, rng.integers(0, CLASSES, OFFSETS[-1]).astype(np.int32), OFFSETS


def digits():
    """Ten clients of consecutive real digits, in the article's setting but a tenth of its size."""
    from sklearn.datasets import load_digits

    data = load_digits()
    features = (data.images[:1790, ..., None] / 16).astype(np.float32)
    return features, data.target[:1790].astype(np.int32), np.arange(0, 1791, 179)


@pytest.fixture(scope="module")
def tff_work():
    """Make `TffClientWork`s that are closed when the tests of this file are done."""
    from privfed.executors.tff import TffClientWork

    made = []

    def make(*arguments, **options):
        made.append(TffClientWork(*arguments, **options))
        return made[-1]

    yield make
    for work in made:
        work.close()


@pytest.mark.parametrize(
    ("model_name", "epochs", "shuffle"),
    [("softmax", 1, False), ("mlp", 2, True), ("lenet", 1, True), ("cnn", 2, True)],
)
def test_tff_executor_equals_local(model_name, epochs, shuffle, tff_work):
    model = build_model(model_name, SHAPE, CLASSES)
    training = LocalTraining(0.1, epochs, 5, shuffle)
    weights, clients, seed = model.initial_vector(1), [4, 0, 1, 2, 3], (3, 1)
    (local,) = LocalClientWork(model, *population(), training)(weights, clients, seed)
    (tff,) = tff_work(model, *population(), training)(weights, clients, seed)
    assert tff.clients == local.clients
    assert tff.deltas.dtype == local.deltas.dtype
    np.testing.assert_allclose(tff.deltas, local.deltas, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tff.loss_sum, local.loss_sum, rtol=1e-5)
    for key in ("examples", "correct", "seen"):
        np.testing.assert_array_equal(getattr(tff, key), getattr(local, key))
        assert getattr(tff, key).dtype == getattr(local, key).dtype


def test_tff_executor_trains_a_keras_model(tmp_path, monkeypatch, tff_work):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_model_for_tff.py").write_text(
        "import tensorflow as tf\n"
        "L = tf.keras.layers\n"
        "def build(input_shape, classes):\n"
        "    return tf.keras.Sequential([tf.keras.Input(input_shape), L.Conv2D(2, 3, activation='relu'),\n"
        "        L.GroupNormalization(1), L.Flatten(), L.Dense(classes)])\n"
    )
    model = build_model("own_model_for_tff:build", SHAPE, CLASSES)
    training = LocalTraining(0.1, 1, 5)
    (local,) = LocalClientWork(model, *population(), training)(model.initial_vector(1), [0, 2], (1,))
    (tff,) = tff_work(model, *population(), training)(model.initial_vector(1), [0, 2], (1,))
    np.testing.assert_allclose(tff.deltas, local.deltas, rtol=1e-4, atol=1e-6)


def test_tff_executor_chunks_by_memory_and_keeps_a_diverging_client_to_itself(tff_work):
    model = build_model("softmax", SHAPE, CLASSES)
    features, labels, offsets = population()
    features = (features / 255).astype(np.float32)
    features[offsets[2] + 1] = np.nan
    work = tff_work(model, features, labels, offsets, LocalTraining(0.1, 1, 5), memory_budget_bytes=1)
    chunks = list(work(model.initial_vector(0), range(6), (0,)))
    assert [chunk.clients for chunk in chunks] == [(c,) for c in range(6)]
    assert [bool(np.isfinite(chunk.deltas).all()) for chunk in chunks] == [True, True, False, True, True, True]
    assert list(work(model.initial_vector(0), [], (0,))) == []


@pytest.mark.parametrize("weighted", [False, True])
def test_both_executors_are_federated_averaging_as_tff_has_it(weighted, tff_work):
    """Three rounds of the article's work: 10 sequential clients, batch 100, softmax from zeros, SGD 0.02."""
    import tensorflow_federated as tff

    from privfed.executors.tff_runtime import TffRuntime
    from privfed.models.tff import to_functional_model

    features, labels, offsets = digits()
    if weighted:  # uneven clients, so that the weights matter
        offsets = np.array([0, 10, 200, 250, 400, 700, 800, 1000, 1300, 1500, 1790])
    model = build_model("softmax", features.shape[1:], 10)
    build = tff.learning.algorithms.build_weighted_fed_avg
    if not weighted:
        build = tff.learning.algorithms.build_unweighted_fed_avg
    process = build(
        to_functional_model(model),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.02),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    clients = [
        tf.data.Dataset.from_tensor_slices((features[a:b], labels[a:b])).batch(100)
        for a, b in itertools.pairwise(offsets)
    ]
    expected = []
    with TffRuntime() as runtime, runtime.installed():
        state = process.initialize()
        for _ in range(3):
            output = process.next(state, clients)
            state = output.state
            trained = model.flatten(list(process.get_model_weights(state).trainable))
            expected.append((trained, output.metrics["client_work"]["train"]))

    training = LocalTraining(0.02, 1, 100, shuffle=False)
    for work in (
        LocalClientWork(model, features, labels, offsets, training),
        tff_work(model, features, labels, offsets, training),
    ):
        weights = model.initial_vector(0)
        for trained, metrics in expected:
            (updates,) = work(weights, range(10), (0,))
            share = updates.examples / updates.examples.sum() if weighted else np.full(10, 0.1)
            weights = (weights + share @ updates.deltas).astype(np.float32)
            np.testing.assert_allclose(weights, trained, rtol=1e-4, atol=1e-6)
            assert updates.seen.sum() == metrics["num_examples"] == 1790
            assert updates.correct.sum() / 1790 == pytest.approx(float(metrics["accuracy"]), abs=1e-7)
            assert updates.loss_sum.sum() / 1790 == pytest.approx(float(metrics["loss"]), rel=1e-5)


LIFE = """
import os, sys
import numpy as np
from privfed.executors.tff_runtime import TffRuntime
import tensorflow_federated as tff
runtime = TffRuntime()
@tff.federated_computation(tff.FederatedType(tff.TensorType(np.int32), tff.CLIENTS))
def total(values):
    return tff.federated_sum(values)
with runtime.installed():
    assert total([1, 2, 3]) == 6
guard = runtime._guard.pid
print(guard, open(f"/proc/{guard}/task/{guard}/children").read(), flush=True)
"""


def gone(pid, seconds=15.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("raise KeyError", 1), ("os.kill(os.getpid(), 9)", -9), ("runtime.close(); runtime.close()", 0)],
)
def test_tff_worker_is_gone_however_the_process_ends(end, code):
    # Were the pipes inherited by the worker, run() would wait for it and not return.
    done = subprocess.run(
        [sys.executable, "-c", LIFE + end],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == code, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def worker_of(work):
    guard = work._runtime._guard.pid
    return int(Path(f"/proc/{guard}/task/{guard}/children").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tff_worker_that_dies_is_reported_and_not_waited_for_for_ever(tff_work):
    from privfed.executors.tff_runtime import WorkerError

    model = build_model("softmax", SHAPE, CLASSES)
    work = tff_work(model, *population(), LocalTraining(0.1, 1, 5))
    next(work(model.initial_vector(0), [0], (0,)))
    worker = worker_of(work)
    os.kill(worker, signal.SIGKILL)
    assert gone(worker)
    with pytest.raises(WorkerError, match="ended while it was needed"):
        next(work(model.initial_vector(0), [0], (0,)))

    long_work = tff_work(model, *population(), LocalTraining(0.1, 100_000, 5, shuffle=False))
    next(long_work(model.initial_vector(0), [1], (0,)))
    began = time.monotonic()
    kill = threading.Timer(1.0, os.kill, (worker_of(long_work), signal.SIGKILL))
    kill.start()
    with pytest.raises(WorkerError, match="ended while it was needed"):
        next(long_work(model.initial_vector(0), [0, 2], (0,)))
    assert 1 < time.monotonic() - began < 30
    work.close()
    with pytest.raises(WorkerError, match="closed"):
        next(work(model.initial_vector(0), [2, 3], (0,)))


FASHION = os.environ.get("FASHION_MNIST", "")


@pytest.mark.skipif(not FASHION, reason="set FASHION_MNIST to the folder of its four gzip IDX files")
def test_article_workload_reaches_the_figures_of_tff_at_round_20():
    """Mean on-client training accuracy 0.8070 and test accuracy 0.7975, as TFF 0.87 gave for it."""
    from privfed.federated.evaluation import Evaluator

    def read(name):
        data = gzip.decompress((Path(FASHION) / name).read_bytes())
        shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, 4 + 4 * data[3], 4)]
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

    images, labels = read("train-images-idx3-ubyte.gz")[..., None], read("train-labels-idx1-ubyte.gz")
    model = build_model("softmax", (28, 28, 1), 10)
    work = LocalClientWork(
        model, images, labels.astype(np.int32), np.arange(0, 60001, 6000), LocalTraining(0.02, 1, 100, False)
    )
    weights = model.initial_vector(0)
    for _ in range(20):
        (updates,) = work(weights, range(10), (0,))
        weights = weights + updates.deltas.mean(0)
    test = (read("t10k-images-idx3-ubyte.gz")[..., None] / np.float32(255)).astype(np.float32)
    evaluation = Evaluator(model, test, read("t10k-labels-idx1-ubyte.gz").astype(np.int32))(weights)
    assert float((updates.correct / updates.seen).mean()) == pytest.approx(0.8070, abs=5e-4)
    assert evaluation.accuracy == pytest.approx(0.7975, abs=1e-3)
