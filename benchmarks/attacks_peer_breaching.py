# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["breaching==0.1.2", "torch==2.13.0", "setuptools<81"]
#
# [tool.uv.sources]
# torch = { index = "pytorch-cpu" }
#
# [[tool.uv.index]]
# name = "pytorch-cpu"
# url = "https://download.pytorch.org/whl/cpu"
# explicit = true
# ///
"""breaching (Geiping et al.) on exported LeNets: the attacks with the settings that it ships.

Pixels are its model's inputs as they are (mean 0, deviation 1), so that its box is [0, 1]. The truth is used by
the clock alone, to tell when the search first came below the threshold; the attack runs on as if nobody looked.
Each target may take its share of the time that is left; then the search is interrupted, as by its user's Ctrl-C,
gives the best that it has by its own objective, and the outcome says so.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
"""Before the imports that take several of the seconds which this process is given."""

import numpy as np  # noqa: E402
import torch  # noqa: E402

# torchvision from PyPI is compiled for PyTorch's CUDA build, and importing it beside the CPU build asks for these
# two operators; no attack here calls them.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import breaching  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

warnings.filterwarnings("ignore")

THRESHOLD = 1e-3
CONFIGURATIONS = {
    "deepleakage": ("deepleakage", []),
    "deepleakage-idlg": ("deepleakage", ["attack_type=optimization", "label_strategy=iDLG"]),
    # Its total variation is written for three channels and fails on one.
    "invertinggradients": ("invertinggradients", ["regularization.total_variation.scale=0"]),
}
"""Of breaching: its file, and what is set differently."""


def lenet(weights: np.ndarray) -> torch.nn.Sequential:
    """The LeNet of Zhu et al. (2019) at PrivFed's flat ``weights``, in PyTorch's layout."""
    layers = []
    for channels, stride in ((1, 2), (12, 2), (12, 1)):
        layers += [torch.nn.Conv2d(channels, 12, 5, stride, padding=2), torch.nn.Sigmoid()]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(588, 10))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), in_torch_layout(weights), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model


def in_torch_layout(vector: np.ndarray) -> list[np.ndarray]:
    """Kernels and biases of a flat vector of weights, or of their gradient."""
    shapes = [(5, 5, 1, 12), (12,), (5, 5, 12, 12), (12,), (5, 5, 12, 12), (12,), (588, 10), (10,)]
    parts = np.split(vector, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    arrays = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    for i in (0, 2, 4):
        arrays[i] = arrays[i].transpose(3, 2, 0, 1)
    # Flattened there: height, width, channels; here channels first.
    arrays[6] = arrays[6].reshape(7, 7, 12, 10).transpose(3, 2, 0, 1).reshape(10, 588)
    return [np.ascontiguousarray(array, np.float32) for array in arrays]


class Watch:
    """Counts an attacker's evaluations, notes the CPU time at which one image first is near enough, and ends it.

    ``until`` is the time by ``perf_counter`` from which the search is cut short.
    """

    def __init__(self, attacker: Any, truth: np.ndarray, until: float) -> None:
        self._attacker, self._build = attacker, attacker._compute_objective
        self._truth = torch.from_numpy(truth)
        self.evaluations, self.cpu_to_threshold = 0, None
        self._until, self.cut = until, False
        attacker._compute_objective = self._watched
        self._started = time.process_time()

    def _watched(self, candidate: torch.Tensor, *arguments: Any) -> Any:
        closure = self._build(candidate, *arguments)
        if self.cpu_to_threshold is None and len(candidate) == 1:
            error = float(((candidate.detach().clamp(0, 1) - self._truth) ** 2).mean())
            if error < THRESHOLD:
                self.cpu_to_threshold = time.process_time() - self._started

        def counted() -> Any:
            if time.perf_counter() > self._until and not self.cut:
                self.cut = True
                raise KeyboardInterrupt
            self.evaluations += 1
            return closure()

        return counted


def attack(
    name: str, weights: np.ndarray, gradient: np.ndarray, truth: np.ndarray, seconds: float
) -> dict[str, Any]:
    """One target, for so many seconds; ``truth`` ``[batch, 1, 28, 28]`` is for the clock."""
    file, changes = CONFIGURATIONS[name]
    settings = breaching.get_attack_config(file, overrides=changes)
    attacker = breaching.attacks.prepare_attack(lenet(weights), torch.nn.CrossEntropyLoss(), settings)
    image = {"shape": [1, 28, 28], "mean": [0.0], "std": [1.0], "modality": "vision", "classes": 10}
    metadata = OmegaConf.create({**image, "task": "classification"})
    payload = [{"parameters": list(lenet(weights).parameters()), "buffers": None, "metadata": metadata}]
    shared = {
        "gradients": [torch.from_numpy(part) for part in in_torch_layout(gradient)],
        "buffers": None,
        "metadata": {"num_data_points": len(truth), "labels": None, "local_hyperparams": None},
    }
    started, cpu = time.perf_counter(), time.process_time()
    watch = Watch(attacker, truth, started + seconds)
    found, _ = attacker.reconstruct(payload, [shared], {})
    return {
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - started,
        "cpu_to_threshold": watch.cpu_to_threshold,
        "evaluations": watch.evaluations,
        "cut": watch.cut,
        "images": found["data"].detach().clamp(0, 1).permute(0, 2, 3, 1).tolist(),
    }


def leave(out: Path, outcomes: list[dict[str, Any]], versions: dict[str, str]) -> None:
    """Put the outcomes so far into ``out``: whoever ends this process in between finds them whole."""
    unfinished = out.with_suffix(".new")
    unfinished.write_text(json.dumps({"outcomes": outcomes, "versions": versions}))
    unfinished.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--attack", choices=list(CONFIGURATIONS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Of all targets together.")
    arguments = parser.parse_args()
    until = STARTED + arguments.seconds
    torch.set_num_threads(1)
    versions = {package: version(package) for package in ("breaching", "torch", "torchvision", "numpy")}
    data, outcomes = np.load(arguments.exported), []
    for i, (gradient, images) in enumerate(zip(data["gradients"], data["images"], strict=True)):
        torch.manual_seed(i)
        truth = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
        seconds = (until - time.perf_counter()) / (len(data["images"]) - i)
        outcomes.append(attack(arguments.attack, data["weights"][data["draws"][i]], gradient, truth, seconds))
        leave(arguments.out, outcomes, versions)


if __name__ == "__main__":
    main()
