"""What every engine is given: the same examples of the same clients, cohorts, starting weights and arithmetic.

NumPy and the standard library only, because each engine imports it in an environment of its own.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

CLASSES = 10
SIDE = 28
PIXELS = SIDE * SIDE
FEATURES = 12 * 12 * 64
"""What the pooled second convolution of the CNN hands to its dense layers."""

SHAPES = {
    "softmax": ((PIXELS, CLASSES),),
    "mlp": ((PIXELS, 200), (200, CLASSES)),
    "cnn": ((3, 3, 1, 32), (3, 3, 32, 64), (FEATURES, 128), (128, CLASSES)),
}
"""Kernels in TensorFlow's layout: height, width, channels in, channels out; or inputs, outputs."""


@dataclass(frozen=True)
class Workload:
    """One setting of FedAvg.

    Attributes:
        name: ``W1``, ``W2`` or ``W3``.
        model: A key of ``SHAPES``.
        clients: In the population.
        examples: Of each client.
        cohort: Clients in a round.
        batch: Examples in a local step; every client makes one pass, in the order of its data.
        learning_rate: Of the clients' SGD. The server's is 1.
        clip: L2 bound on each client's update, ``None`` without privacy.
        noise_multiplier: Standard deviation of the Gaussian noise on the sum, over ``clip``. Small, so that the
            accuracies of the engines can be compared: drawing noise costs the same at any size.
        rounds: Trained when nothing else is asked for.
        shuffled: Whether clients hold a random share of the examples, or consecutive ones.
        gflop: Arithmetic of the local steps in one round, in 10⁹ additions and multiplications.
    """

    name: str
    model: str
    clients: int
    examples: int
    cohort: int
    batch: int
    learning_rate: float
    clip: float | None
    noise_multiplier: float
    rounds: int
    shuffled: bool
    gflop: float

    @property
    def steps(self) -> int:
        """Local steps of a client."""
        return -(-self.examples // self.batch)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "softmax", 10, 6000, 10, 100, 0.02, None, 0.0, 20, False, 1.88),
        Workload("W2", "cnn", 1000, 60, 100, 20, 0.05, 0.1, 0.01, 6, True, 429.0),
        Workload("W3", "mlp", 10_000, 6, 1000, 6, 0.05, 0.1, 0.1, 12, True, 3.83),
    )
}


@dataclass(frozen=True, eq=False)
class Data:
    """A workload and its data.

    Attributes:
        workload: Whose.
        pixels: ``[clients, examples, 784]``, uint8.
        labels: ``[clients, examples]``, int32.
        test_pixels: ``[10000, 784]``, uint8.
        test_labels: ``[10000]``, int32.
    """

    workload: Workload
    pixels: np.ndarray
    labels: np.ndarray
    test_pixels: np.ndarray
    test_labels: np.ndarray

    @cached_property
    def features(self) -> np.ndarray:
        """``pixels`` as float32 in [0, 1]."""
        return scaled(self.pixels)

    @cached_property
    def test_features(self) -> np.ndarray:
        """``test_pixels`` as float32 in [0, 1]."""
        return scaled(self.test_pixels)

    def cohort(self, number: int) -> list[int]:
        """Clients of round ``number``, ascending: of fixed size, without replacement."""
        w = self.workload
        if w.cohort == w.clients:
            return list(range(w.clients))
        drawn = np.random.default_rng([1, number]).choice(w.clients, w.cohort, replace=False)
        return sorted(int(client) for client in drawn)

    def cohorts(self, rounds: int) -> list[list[int]]:
        """Those of rounds 1 to ``rounds``."""
        return [self.cohort(number) for number in range(1, rounds + 1)]

    def initial_weights(self) -> list[np.ndarray]:
        """Kernel and bias of each layer in turn: zeros for softmax, else Glorot's uniform and zero biases."""
        rng = np.random.default_rng(0)
        weights = []
        for shape in SHAPES[self.workload.model]:
            field = int(np.prod(shape[:-2]))
            limit = 0.0 if self.workload.model == "softmax" else (6 / (field * (shape[-2] + shape[-1]))) ** 0.5
            weights += [rng.uniform(-limit, limit, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]
        return weights


def load(name: str, folder: Path, **changes: int) -> Data:
    """The workload ``name`` on the MNIST-like IDX files in ``folder``, with ``changes`` to its fields."""
    workload = replace(WORKLOADS[name], **changes)
    pixels, labels = _read(folder, "train")
    test_pixels, test_labels = _read(folder, "t10k")
    count = workload.clients * workload.examples
    order = np.random.default_rng(0).permutation(len(labels)) if workload.shuffled else np.arange(len(labels))
    rows = order[:count].reshape(workload.clients, workload.examples)
    return Data(workload, pixels[rows], labels[rows], test_pixels, test_labels)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def _read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, PIXELS)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int32)
