"""Rows of ``benchmarks/attacks.py`` with a server that crafts the model, on held-out Fashion-MNIST images."""

from __future__ import annotations

import gzip
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.crafting import CraftingAttack


@dataclass(frozen=True)
class ActiveRow:
    """One setting.

    Attributes:
        attack: ``imprint`` or ``model_inconsistency``.
        model: A key of the zoo.
        batch: Images of a client.
        clients: In the sum.
        psnr: An image that reaches so many dB is recovered.
        rate: Mean share of the images (of the target client) that must be.
        targets: When nothing else is asked for.
    """

    attack: str
    model: str
    batch: int
    clients: int
    psnr: float
    rate: float
    targets: int = 50


ROWS = {
    "imprint-64": ActiveRow("imprint", "cnn", 64, 1, 60, 0.9, targets=20),
    "imprint-sum": ActiveRow("imprint", "cnn", 8, 8, 60, 0.9, targets=20),
    "model-inconsistency": ActiveRow("model_inconsistency", "mlp", 8, 16, 80, 0.95),
}


def public_images(folder: Path, count: int = 10_000) -> NDArray[np.float64]:
    """Images of the training split, which no target is from: ``[count, 28, 28, 1]``."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    return pixels.reshape(-1, 28, 28, 1) / 255


Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


def run(
    row: ActiveRow, targets: int, data: Path, held_out: Images, draws: int, learning_rate: float
) -> dict[str, Any]:
    """Craft, let the clients take a step each, sum, invert."""
    import tensorflow as tf

    from attacks import attempt, create
    from attacks.scoring import score
    from privfed.models.functional import cross_entropy
    from privfed.models.zoo import ZOO
    from privfed.transcript import Kind, Observation, Observer, Plan, View

    pixels, labels = held_out
    public, model = public_images(data), ZOO[row.model]((28, 28, 1), 10)
    plan = Plan(learning_rate, 1, row.batch, 1.0, None, 0.0, None, "protocol")
    attack: CraftingAttack = create(row.attack)  # type: ignore[assignment]  # both rows' attacks craft
    shares, levels, seconds, failures = [], [], [], {}
    for target in range(targets):
        rng = np.random.default_rng([0xAC71, target])
        picked = rng.choice(len(labels), (row.clients, row.batch), replace=False)
        crafted = attack.craft(model, model.initial_vector(target % draws), public)
        total = np.zeros(crafted.model.dimension)
        for client, mine in enumerate(picked):
            start = crafted.weights if client == 0 or crafted.others is None else crafted.others
            variables = [tf.constant(part) for part in crafted.model.unflatten(start)]
            x = tf.constant(pixels[mine].astype(np.float32) / np.float32(255))
            with tf.GradientTape() as tape:
                tape.watch(variables)
                loss = cross_entropy(crafted.model.logits(variables, x), tf.constant(labels[mine]))
            gradient = crafted.model.flatten([part.numpy() for part in tape.gradient(loss, variables)])
            total += (start - np.float32(learning_rate) * gradient) - start
        seen = Observation(1, Kind.SUM, crafted.weights, total, float(row.clients), ())
        view = View(Observer.ACTIVE_SERVER, plan, crafted.model, (seen,))
        found = attempt(attack, view, 0, np.random.default_rng(target))
        seconds.append(found.seconds)
        behind = picked[0] if crafted.others is not None else picked.reshape(-1)
        if found.failure:
            failures[found.failure] = failures.get(found.failure, 0) + 1
            shares.append(0.0)
            continue
        truth = pixels[behind] / 255
        # Each true image beside the reconstruction nearest to it.
        scores = score(truth, None, found.images, np.zeros(len(found.images), np.int64))
        shares.append(sum(s.psnr >= row.psnr for s in scores) / len(behind))
        levels += [s.psnr for s in scores]
    rate = statistics.fmean(shares)
    return {
        **asdict(row),
        "targets": targets,
        "draws": min(draws, targets),
        "success_rate": rate,
        "psnr_median": statistics.median(levels) if levels else None,
        "seconds_median": statistics.median(seconds),
        "seconds_longest": max(seconds),
        "failures": failures,
        "required": {"success_rate": row.rate},
        "reached": rate >= row.rate,
    }
