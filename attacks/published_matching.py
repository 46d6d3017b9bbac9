"""The baselines that gradient matching is compared with: DLG and iDLG as published.

Deep Leakage from Gradients (Zhu et al. 2019, arXiv:1906.08935, algorithm 1): dummy images and dummy labels from
standard normal numbers, and L-BFGS with steps of length one, no line search, a history of 100 and no bounds, on
the squared distance of the gradients. iDLG (Zhao et al. 2020, arXiv:2001.02610, algorithm 1) takes the label from
the bias gradient and searches for the image alone. Neither stops before its iterations are up, nor restarts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.gradient import estimate_gradient
from attacks.labels import infer_labels
from attacks.matching_loss import matching_loss
from privfed.transcript import Observer, View

HISTORY = 100
"""Correction pairs, as in section 4.1 of the first paper."""
CURVATURE = 1e-10
"""Pairs whose product is not above this say nothing about curvature, and are dropped."""
GONE = 1e150
"""Points farther out than this have diverged."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class DLG:
    """Deep Leakage from Gradients.

    Attributes:
        iterations: Steps of L-BFGS.
        batch: How many images to search for.
    """

    iterations: int = 300
    batch: int = 1

    name: ClassVar[str] = "dlg"
    label_known: ClassVar[bool] = False
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("the model and the weights the update started from", "the learning rate"),
        assumptions=("one local step on few examples", "a twice differentiable model", "no noise and no clipping"),
    )

    def __post_init__(self) -> None:
        for what in ("iterations", "batch"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}: {self.name} needs at least 1")

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` draws the dummy images and labels."""
        import tensorflow as tf

        observation, model = view.observations[index], view.model
        target = estimate_gradient(observation, view.plan).vector
        labels: NDArray[np.int64] | None = None
        if self.label_known:
            if model.output_bias is None:
                raise NotInvertible(f"model {model.name} has no output bias whose gradient would tell the labels")
            labels = infer_labels(model.unflatten(target)[model.output_bias], self.batch)
        loss = matching_loss(model, self.batch, labels is None)
        one_hot = np.zeros((self.batch, model.classes)) if labels is None else np.eye(model.classes)[labels]
        length = float(target @ target)
        known, none, weights, aim, alike, classes = (
            tf.constant(values, tf.float64)
            for values in (1.0, 0.0, observation.weights, target, np.ones(model.dimension), one_hot)
        )

        def slope(point: Vector) -> tuple[float, float, Vector]:
            relative, angle, direction = loss(tf.constant(point), known, none, weights, aim, alike, classes)
            return float(relative) * length, float(angle), direction.numpy() * length

        pixels = self.batch * int(np.prod(model.input_shape))
        free = 0 if self.label_known else self.batch * model.classes
        point, angle = _descend(slope, rng.normal(size=pixels + free), self.iterations)
        if labels is None:
            labels = point[pixels:].reshape(self.batch, -1).argmax(axis=1)
        images = np.clip(point[:pixels], 0, 1).reshape(self.batch, *model.input_shape)
        return Guess(images, labels, angle, self.iterations)


@dataclass(frozen=True)
class IDLG(DLG):
    """Improved DLG: the label is known from the bias gradient."""

    name: ClassVar[str] = "idlg"
    label_known: ClassVar[bool] = True


def _descend(
    slope: Callable[[Vector], tuple[float, float, Vector]], point: Vector, iterations: int
) -> tuple[Vector, float]:
    """L-BFGS with unit steps (Nocedal & Wright 2006, algorithms 7.4 and 7.5 without the line search).

    Returns:
        The last point that was finite, and the loss there by angle.
    """
    pairs: deque[tuple[Vector, Vector]] = deque(maxlen=HISTORY)
    _, angle, gradient = slope(point)
    if not (np.isfinite(angle) and np.isfinite(gradient).all()):
        raise NotInvertible("the model's gradient is not finite where the search started: nothing to match")
    for _ in range(iterations):
        step = -_times_inverse(pairs, gradient)
        if not pairs:
            step *= min(1.0, 1 / max(float(np.abs(gradient).sum()), 1e-300))
        moved = point + step
        if not np.abs(moved).max() < GONE:
            break
        _, there, new = slope(moved)
        if not (np.isfinite(there) and np.isfinite(new).all()):
            break
        change = new - gradient
        if float(change @ step) > CURVATURE:
            pairs.append((step, change))
        point, gradient, angle = moved, new, there
    return point, angle


def _times_inverse(pairs: deque[tuple[Vector, Vector]], gradient: Vector) -> Vector:
    """The inverse Hessian that ``pairs`` of steps and changes stand for, times ``gradient``."""
    rest, shares = gradient.copy(), []
    for step, change in reversed(pairs):
        share = float(step @ rest) / float(step @ change)
        shares.append(share)
        rest -= share * change
    if pairs:
        step, change = pairs[-1]
        rest *= float(step @ change) / float(change @ change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        rest += (share - float(change @ rest) / float(step @ change)) * step
    return rest
