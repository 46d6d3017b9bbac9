"""Gradient matching: search for the images whose gradient is the one observed.

Deep Leakage from Gradients (Zhu et al. 2019, arXiv:1906.08935, algorithm 1), with the label taken from the bias
gradient (Zhao et al. 2020), pixels kept in [0, 1], double precision, and each layer given the same weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.gradient import GradientEstimate, estimate_gradient
from attacks.labels import infer_labels
from privfed.models.functional import Model, cross_entropy
from privfed.transcript import Observer, View

MEMORY = 30
"""Correction pairs of L-BFGS."""
PATIENCE, PROGRESS = 60, 0.7
"""A start is given up when this many evaluations have not brought the loss below this share of what it was."""
SMALLEST_LAYER = 1e-6
"""Layers with a smaller share of the gradient's norm than this are not scaled up any further."""
TINY = 1e-290
"""Stands in for a squared norm of zero, whose root has no slope."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class GradientMatching:
    """DLG by bounded L-BFGS, with restarts and a stop that it verifies itself.

    When the scale of the gradient is known the loss is the squared distance to it; else, and after a start in
    which the distance would not vanish, it is 1 − cosine, which no scale changes (Geiping et al. 2020, eq. 4).

    Attributes:
        iterations: Budget of L-BFGS iterations for one observation, over all starts.
        batch: How many images to search for; 1 looks for one that stands for all in the observation.
        starts: At most so many random starting points.
        tolerance: Loss at which the images are taken to explain the gradient, and the search stops.
    """

    iterations: int = 300
    batch: int = 1
    starts: int = 3
    tolerance: float = 1e-10

    name: ClassVar[str] = "gradient_matching"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("the model and the weights the update started from", "the learning rate, for one-step updates"),
        assumptions=(
            "one local step on few examples for an accurate answer",
            "a model smooth enough for its gradient's gradient to guide a search",
        ),
    )

    def __post_init__(self) -> None:
        for what in ("iterations", "batch", "starts"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}: gradient matching needs at least 1")

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` draws the starting points."""
        observation, model = view.observations[index], view.model
        estimate = estimate_gradient(observation, view.plan)
        labels = None
        if model.output_bias is not None:
            labels = infer_labels(model.unflatten(estimate.vector)[model.output_bias], self.batch)
        search = _Search(model, observation.weights, estimate, labels, self.batch, self.tolerance)
        scale_known, left = estimate.scale_known, self.iterations
        for _ in range(self.starts):
            left -= search.start(rng, scale_known, left)
            if search.solved or left <= 0:
                break
            scale_known = False
        return search.guess()


class _Stop(Exception):  # noqa: N818 - leaves scipy's optimizer from inside its callback
    """The search is over: solved, or not getting anywhere."""


class _Search:
    """The best images found so far for one gradient, over several starts."""

    def __init__(
        self,
        model: Model,
        weights: NDArray[Any],
        estimate: GradientEstimate,
        labels: NDArray[np.int64] | None,
        batch: int,
        tolerance: float,
    ) -> None:
        import tensorflow as tf

        self._model, self._labels, self._batch, self._tolerance = model, labels, batch, tolerance
        self._pixels = batch * int(np.prod(model.input_shape))
        self._loss = matching_loss(model, batch, labels is None)
        known = np.zeros((batch, model.classes)) if labels is None else np.eye(model.classes)[labels]
        importance = _layer_weights(model, estimate.vector)
        self._arguments = [
            tf.constant(values, tf.float64) for values in (weights, estimate.vector, importance, known)
        ]
        self._evaluations = 0
        self._best: tuple[float, Vector] | None = None
        self.solved = False

    def start(self, rng: np.random.Generator, scale_known: bool, iterations: int) -> int:
        """Search from a random point; returns the iterations used."""
        import tensorflow as tf

        free = self._batch * self._model.classes if self._labels is None else 0
        first = np.concatenate([rng.uniform(0, 1, self._pixels), rng.normal(0, 1, free)])
        bounds = [(0.0, 1.0)] * self._pixels + [(None, None)] * free
        known = tf.constant(float(scale_known), tf.float64)
        lowest, history, used = np.inf, [np.inf], 0

        def objective(point: Vector) -> tuple[float, Vector]:
            nonlocal lowest
            loss_, angle_, slope_ = self._loss(tf.constant(point), known, *self._arguments)
            loss, angle, slope = float(loss_), float(angle_), slope_.numpy()
            self._evaluations += 1
            if not (np.isfinite(loss) and np.isfinite(slope).all() and (slope.any() or loss < self._tolerance)):
                # A saturated or dead network: its gradient vanished, so there is no direction to compare.
                raise _Stop
            if self._best is None or angle < self._best[0]:
                self._best = (angle, point.copy())
            lowest = min(lowest, loss)
            history.append(lowest)
            if loss < self._tolerance:
                self.solved = True
                raise _Stop
            if len(history) > PATIENCE and lowest > PROGRESS * history[-PATIENCE]:
                raise _Stop
            return loss, slope

        def count(_: Vector) -> None:
            nonlocal used
            used += 1

        with contextlib.suppress(_Stop):
            optimize.minimize(
                objective,
                first,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                callback=count,
                options={
                    "maxiter": iterations,
                    "maxfun": 2 * iterations,
                    "maxcor": MEMORY,
                    "maxls": 30,
                    # Off: the loss falls far below the machine's precision of its first value.
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
        return max(used, 1)

    def guess(self) -> Guess:
        """The best images so far.

        Raises:
            NotInvertible: No point that was tried had a gradient.
        """
        if self._best is None:
            raise NotInvertible(
                "the model's gradient is zero or not finite wherever the search started: nothing to match"
            )
        angle, point = self._best
        labels = self._labels
        if labels is None:
            labels = point[self._pixels :].reshape(self._batch, -1).argmax(axis=1)
        images = np.clip(point[: self._pixels], 0, 1).reshape(self._batch, *self._model.input_shape)
        return Guess(images, labels, angle, self._evaluations)


def _layer_weights(model: Model, gradient: Vector) -> Vector:
    """One over each variable's squared norm, per coordinate ``[d]``: small layers count like large ones."""
    total = float(np.linalg.norm(gradient))
    weights = [
        np.full(spec.size, max(float(np.linalg.norm(part)), SMALLEST_LAYER * total) ** -2)
        for spec, part in zip(model.variables, model.unflatten(gradient), strict=True)
    ]
    return np.concatenate(weights)


@lru_cache(maxsize=8)
def matching_loss(model: Model, batch: int, joint: bool) -> Callable[..., tuple[Any, Any, Any]]:
    """The loss of gradient matching as one graph, traced once per model and batch.

    Args:
        model: The attacked model.
        batch: Images per point.
        joint: Whether labels are searched for too, as logits behind the pixels (DLG's own way).

    Returns:
        ``(point, scale known: 1.0 or 0.0, weights [d], target [d], importance [d], one-hot labels
        [batch, classes]) -> (loss, 1 − cosine, slope of the loss)``, all float64.
    """
    import tensorflow as tf

    pixels = batch * int(np.prod(model.input_shape))
    vector = tf.TensorSpec([model.dimension], tf.float64)
    size = pixels + (batch * model.classes if joint else 0)
    signature = [
        tf.TensorSpec([size], tf.float64),
        tf.TensorSpec([], tf.float64),
        vector,
        vector,
        vector,
        tf.TensorSpec([batch, model.classes], tf.float64),
    ]

    def loss(point: Any, known: Any, weights: Any, target: Any, importance: Any, labels: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(point)
            x = tf.reshape(point[:pixels], [batch, *model.input_shape])
            if joint:
                labels = tf.nn.softmax(tf.reshape(point[pixels:], [batch, model.classes]))
            variables = model.unflatten(weights)
            with tf.GradientTape() as inner:
                inner.watch(variables)
                value = cross_entropy(model.logits(variables, x), labels)
            parts = inner.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            root = tf.sqrt(importance)
            ours = root * tf.concat([tf.reshape(part, [-1]) for part in parts], 0)
            theirs = root * target
            length = tf.reduce_sum(theirs**2)
            distance = tf.reduce_sum((ours - theirs) ** 2) / length
            # Half the squared distance of the unit vectors: 1 − cosine without its cancellation.
            unit = ours * tf.math.rsqrt(tf.maximum(tf.reduce_sum(ours**2), TINY))
            angle = 0.5 * tf.reduce_sum((unit - theirs * tf.math.rsqrt(length)) ** 2)
            total = tf.where(known > 0, distance, angle)
        return total, angle, outer.gradient(total, point)

    compiled: Callable[..., tuple[Any, Any, Any]] = tf.function(loss, input_signature=signature)
    return compiled
