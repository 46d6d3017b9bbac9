# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["pfl[pytorch]==0.6.0", "torch==2.13.0"]
#
# [tool.uv.sources]
# torch = { index = "pytorch-cpu" }
#
# [[tool.uv.index]]
# name = "pytorch-cpu"
# url = "https://download.pytorch.org/whl/cpu"
# explicit = true
# ///
"""Apple's pfl on PyTorch: ``FederatedAveraging`` on ``SimulatedBackend``, central Gaussian noise.

Users' tensors are made before the clock starts, batches are cached by pfl, and metrics are not printed. The
simulator trains one user after another; PyTorch has one thread, or all cores in the variant ``threads``. The
variant ``processes`` is pfl's distributed simulation: under ``torchrun``, one process for each core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import measure
import numpy as np
import torch
import workloads
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from torch import nn


class Classifier(nn.Module):
    """Layers, and what pfl asks of a model; counts right answers on the way, as every engine here does."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        self.right, self.seen = torch.zeros((), dtype=torch.int64), 0

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = self.layers(x)
        self.right += (logits.detach().argmax(1) == y).sum()
        self.seen += len(y)
        return nn.functional.cross_entropy(logits, y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"accuracy": Weighted((self.layers(x).argmax(1) == y).sum().item(), len(y))}


class Clock(TrainingProcessCallback):
    """Times central iterations."""

    def __init__(self, model: Classifier) -> None:
        self.rounds, self.model, self.train_accuracy = measure.Rounds(), model, 0.0

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.rounds.__enter__()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.rounds.__exit__(None, None, None)
        seen = torch.tensor(self.model.seen)
        self.train_accuracy = float(_over_ranks(self.model.right) / _over_ranks(seen))
        self.model.right.zero_()
        self.model.seen = 0
        self.rounds.__enter__()
        return False, Metrics()


def build_layers(data: workloads.Data) -> nn.Sequential:
    """The workload's model with its initial weights, in PyTorch's layout."""
    pixels, classes, features = workloads.PIXELS, workloads.CLASSES, workloads.FEATURES
    layers = {
        "softmax": lambda: (nn.Linear(pixels, classes),),
        "mlp": lambda: (nn.Linear(pixels, 200), nn.ReLU(), nn.Linear(200, classes)),
        "cnn": lambda: (
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(features, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        ),
    }[data.workload.model]()
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), data.initial_weights(), strict=True):
            parameter.copy_(torch.from_numpy(_torch_layout(value)))
    return model


def _over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum over pfl's processes; ``value`` itself when there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value


def _figures(rounds: measure.Rounds) -> dict[str, Any]:
    """Seconds of this process, CPU and memory of all."""
    rounds.cpu = _over_ranks(torch.tensor(rounds.cpu)).tolist()
    figures = rounds.figures()
    return {**figures, "peak_rss_mb": float(_over_ranks(torch.tensor(figures["peak_rss_mb"])))}


def _torch_layout(value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1).copy()
    if value.shape[0] == workloads.FEATURES:
        # Flattened after pooling: height, width, channels there, channels first here.
        value = value.reshape(12, 12, 64, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return value.T.copy()


def main() -> None:
    args = measure.arguments()
    if args.variant == "processes" and "TORCHELASTIC_RUN_ID" not in os.environ:
        ranks = ["--standalone", "--nproc-per-node", str(len(os.sched_getaffinity(0)))]
        sys.exit(subprocess.run([sys.executable, "-m", "torch.distributed.run", *ranks, *sys.argv]).returncode)
    if args.variant != "threads":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    data = workloads.load(args.workload, args.data)
    w = data.workload
    classifier = Classifier(build_layers(data))
    model = PyTorchModel(classifier, torch.optim.SGD, torch.optim.SGD(classifier.parameters(), lr=1.0))
    features, labels = torch.from_numpy(data.features), torch.from_numpy(data.labels.astype(np.int64))
    users = [
        PyTorchTensorDataset((x, y), user_id=str(i)) for i, (x, y) in enumerate(zip(features, labels, strict=True))
    ]
    turn = iter([client for cohort in data.cohorts(args.rounds) for client in cohort])
    mechanisms = []
    if w.clip is not None:
        mechanisms = [CentrallyAppliedPrivacyMechanism(GaussianMechanism(w.clip, w.noise_multiplier))]
    training = FederatedDataset(lambda user: users[user], lambda: next(turn))
    clock = Clock(classifier)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=args.rounds,
            evaluation_frequency=10**9,  # the first round, which is not counted, evaluates all the same
            train_cohort_size=w.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training, training, postprocessors=mechanisms),
        model,
        NNTrainHyperParams(local_batch_size=w.batch, local_num_epochs=1, local_learning_rate=w.learning_rate),
        NNEvalHyperParams(local_batch_size=1000),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    figures = _figures(clock.rounds)
    if os.environ.get("RANK", "0") != "0":
        return
    held_out = PyTorchTensorDataset(
        (torch.from_numpy(data.test_features), torch.from_numpy(data.test_labels.astype(np.int64)))
    )
    accuracy = model.evaluate(held_out, eval_params=NNEvalHyperParams(local_batch_size=1000))
    measure.write(
        args.out,
        figures,
        ("pfl", "torch", "numpy"),
        train_accuracy=clock.train_accuracy,
        test_accuracy=float(next(iter(accuracy))[1].overall_value),
    )


if __name__ == "__main__":
    main()
