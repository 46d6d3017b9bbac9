"""Rows of ``benchmarks/attacks.py`` on Fashion-MNIST: which attack on what, and what it has to reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import attacks_models


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        attack: A key of ``attacks.ATTACKS``, or ``labels``.
        model: A key of the zoo, or of ``MODELS``.
        options: Of the model's builder.
        batch: Examples behind an observation.
        psnr: Every image of a batch must reach so many dB for a success.
        rate: Share of targets that must succeed.
        seconds: Median that must not be exceeded; ``None`` when only the rate counts.
        epochs: Local, each of one pass over the client's examples.
        step: Examples in a local step; all of the client's by default.
        clients: In the sum; the batch is divided among them.
        partial: Of labels: whether the share of labels that are right counts, and not only whole multisets.
        targets: When nothing else is asked for.
        each: Whether the share of images that are right counts, and not only whole batches.
        settings: Of the attack; of labels, how many ``auxiliary`` training images the attacker has, or whose
            ``rule`` it goes by instead of ours.
        trained: Steps of SGD (batches of 64, rate 0.1) on the training images before the attack.
        clip: L2 bound of the update, known to the attacker.
        white: The byte that is one; above 255 pixels are no bytes, as far as an attacker knows them.
        halved: Whether images are 14×14, means of four pixels each.
        warmed: Whether a target that does not count comes first, so that no time has TensorFlow's tracing in it.
            Searches of minutes do without.
    """

    attack: str
    model: str
    options: dict[str, Any]
    batch: int
    psnr: float
    rate: float
    seconds: float | None
    epochs: int = 1
    step: int | None = None
    clients: int = 1
    partial: bool = False
    targets: int = 100
    each: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    trained: int = 0
    clip: float | None = None
    white: int = 255
    halved: bool = False
    warmed: bool = True


def matching(batch: int, rate: float, seconds: float | None = None, **options: Any) -> Row:
    """A row of gradient matching; 30 dB is an MSE of 1e-3, the rule of Zhu et al. (2019)."""
    settings = {"batch": batch, "iterations": 3000 if batch > 1 else 1000, "starts": 6}
    return Row(
        **{
            "attack": "gradient_matching",
            "model": "lenet",
            "options": {},
            "batch": batch,
            "psnr": 30,
            "rate": rate,
            "seconds": seconds,
            "each": True,
            "settings": settings,
            "warmed": batch == 1,
            **options,
        }
    )


MODELS = {"resnet": attacks_models.resnet}
MLP, WIDE = {"hidden": (200,)}, {"hidden": (1000,)}
GLOROT = {"activation": "relu", "initializer": "glorot"}
ROWS = {
    "dense-layer": Row("dense_layer", "mlp", MLP, 1, 140, 1.0, 0.05),
    "sparse-decomposition-1": Row("sparse_decomposition", "mlp", MLP, 1, 140, 1.0, 0.5),
    "sparse-decomposition-2": Row("sparse_decomposition", "mlp", MLP, 2, 140, 1.0, 0.5),
    "sparse-decomposition-4": Row("sparse_decomposition", "mlp", MLP, 4, 140, 1.0, 0.5),
    "sparse-decomposition-8": Row("sparse_decomposition", "mlp", MLP, 8, 140, 1.0, 0.5),
    "sparse-decomposition-16": Row("sparse_decomposition", "mlp", WIDE, 16, 80, 0.95, 5.0, targets=50),
    "sparse-decomposition-24": Row("sparse_decomposition", "mlp", WIDE, 24, 80, 0.0, None, targets=50),
    "sparse-decomposition-32": Row("sparse_decomposition", "mlp", WIDE, 32, 80, 0.0, None, targets=20),
    "sparse-decomposition-epochs": Row("sparse_decomposition", "mlp", MLP, 8, 80, 0.95, None, epochs=10),
    "sparse-decomposition-steps": Row("sparse_decomposition", "mlp", MLP, 8, 80, 0.95, None, epochs=10, step=2),
    "sparse-decomposition-steps-float": Row(
        "sparse_decomposition", "mlp", MLP, 8, 80, 0.0, None, epochs=10, step=2, white=300
    ),
    "sparse-decomposition-sum": Row("sparse_decomposition", "mlp", MLP, 8, 80, 0.95, None, clients=4),
    "sparse-decomposition-sum-8": Row("sparse_decomposition", "mlp", MLP, 8, 80, 0.95, None, clients=8),
    "recursive-analytic": Row("recursive_analytic", "lenet", {}, 1, 100, 1.0, 0.1),
    "feature-inversion-1": Row("feature_inversion", "cnn", {}, 1, 80, 0.95, None, each=True),
    "feature-inversion-8": Row("feature_inversion", "cnn", {}, 8, 80, 0.95, None, each=True, targets=50),
    "feature-inversion-trained": Row(
        "feature_inversion", "cnn", {}, 8, 40, 0.0, None, each=True, trained=300, targets=20
    ),
    "feature-inversion-sum": Row(
        "feature_inversion", "cnn", {}, 8, 80, 0.95, None, each=True, clients=4, targets=20
    ),
    "recursive-analytic-relu": Row("recursive_analytic", "lenet", {"activation": "relu"}, 1, 100, 0.95, 0.1),
    "recursive-analytic-relu-glorot": Row("recursive_analytic", "lenet", GLOROT, 1, 100, 0.9, 0.5),
    "recursive-analytic-relu-trained": Row("recursive_analytic", "lenet", GLOROT, 1, 100, 0.9, 0.5, trained=300),
    "gradient-matching-1": matching(1, 0.98, 2.0),
    "gradient-matching-2": matching(2, 0.95, targets=25),
    "gradient-matching-4": matching(4, 0.90, targets=15),
    "gradient-matching-8": matching(8, 0.85, targets=10),
    "gradient-matching-8-halved": matching(8, 0.85, targets=10, halved=True),
    "gradient-matching-clipped": matching(1, 0.0, clip=0.01, targets=50),
    "gradient-matching-relu": matching(1, 0.0, options={"activation": "relu"}, targets=25),
    "gradient-matching-cnn": matching(1, 0.0, model="cnn", settings={"batch": 1, "iterations": 300}, targets=10),
    "gradient-matching-resnet": matching(
        1, 0.0, model="resnet", settings={"batch": 1, "iterations": 1500, "starts": 1}, targets=10
    ),
    "gradient-matching-trained": matching(1, 0.0, trained=300, targets=50),
    "local-training": matching(
        2, 0.0, attack="local_training", settings={"examples": 2, "iterations": 1500}, epochs=3, step=1, targets=20
    ),
    "local-training-one-step": matching(2, 0.0, epochs=3, step=1, targets=20),
    "dlg": matching(1, 0.0, attack="dlg", settings={"iterations": 300}, targets=50),
    "idlg": matching(1, 0.0, attack="idlg", settings={"iterations": 300}, targets=50),
    "labels-lenet-1": Row("labels", "lenet", {}, 1, 0, 1.0, None),
    "labels-lenet-8": Row("labels", "lenet", {}, 8, 0, 1.0, None),
    "labels-lenet-32": Row("labels", "lenet", {}, 32, 0, 1.0, None),
    "labels-lenet-32-auxiliary": Row("labels", "lenet", {}, 32, 0, 1.0, None, settings={"auxiliary": 2048}),
    "labels-lenet-8-clipped": Row("labels", "lenet", {}, 8, 0, 0.95, None, clip=1e-3),
    "labels-lenet-32-clipped": Row("labels", "lenet", {}, 32, 0, 0.0, None, clip=1e-3),
    "labels-lenet-8-llg": Row("labels", "lenet", {}, 8, 0, 0.0, None, clip=1e-3, settings={"rule": "llg"}),
    "labels-lenet-32-llg": Row("labels", "lenet", {}, 32, 0, 0.0, None, clip=1e-3, settings={"rule": "llg"}),
    "labels-mlp-8": Row("labels", "mlp", MLP, 8, 0, 0.95, None, partial=True),
    "labels-mlp-32": Row("labels", "mlp", MLP, 32, 0, 0.95, None, partial=True),
}
