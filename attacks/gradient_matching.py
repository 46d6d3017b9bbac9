"""Gradient matching: search for the images whose gradient is the one observed.

Deep Leakage from Gradients (Zhu et al. 2019, arXiv:1906.08935, algorithm 1), with the labels taken from the last
layer, pixels kept in [0, 1] and double precision. Where the equations determine the pixels and are few,
Gauss-Newton steps (``attacks.gauss_newton``) win batches, as the loss is far flatter in some directions than in
others. On a chain of convolutions, which is smooth, they start anywhere, under a prior that fades
(``attacks.fading_prior``). On other models, whose kinks would stop that at one place again and again, a start is
first brought near by L-BFGS-B with each layer given the same weight; of a small batch every other one begins with
each image for itself, by its features (``attacks.batch_features``). Where the observer knows of noise, the loss is
that of a maximum a posteriori estimate: all coordinates alike, and total variation as the prior (Geiping et al.
2020, arXiv:2003.14053, eq. 4). Where a batch is normalised by its own statistics, neither search gets anywhere:
what is left of the budget goes to theirs, 1 − cosine and total variation by signed descent
(``attacks.signed_descent``).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from attacks import fading_prior, gauss_newton
from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.batch_features import BatchFeatures, split_features
from attacks.conv_chain import find_smooth_chain
from attacks.counting import ANY
from attacks.gradient import GradientEstimate, estimate_gradient, noise_variance
from attacks.label_counts import ends_dense, infer_label_counts
from attacks.labels import infer_labels
from attacks.matching_loss import layer_weights, matching_loss
from attacks.signed_descent import descend
from privfed.models.functional import Model
from privfed.transcript import Observation, Observer, View

MEMORY = 30
"""Correction pairs of L-BFGS."""
PATIENCE, PROGRESS = 60, 0.7
"""A start is given up when this many evaluations have not brought the loss below this share of what it was."""
APPROACH = 100
"""Iterations of L-BFGS before Gauss-Newton steps, times the root of the batch."""
NOISE_SLACK = 1.1
"""A loss of so many times that of the noise is explained by it."""
ROUNDED = 8.0
"""So is one of so many times that of the noise, over the root of the batch, where noise is rounding alone: not all
of it is reckoned with, and its mean over a batch is smaller."""
JACOBIAN = 25
"""A Jacobian counts as so many iterations."""
NOISY = 1e-3
"""Share of noise in the vector's squared length from which the prior is needed."""
SMOOTHNESS = 1e-4
"""Weight of the total variation in signed descent, as in Geiping et al. (2020)."""
STEEPNESS = 0.05
"""Of the prior: the mean difference of neighbouring pixels."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class GradientMatching:
    """DLG by bounded L-BFGS and Gauss-Newton, with restarts and a stop that it verifies itself.

    When the scale of the gradient is known the loss is the squared distance to it; else, and after a start in
    which the distance would not vanish, it is 1 − cosine, which no scale changes (Geiping et al. 2020, eq. 4).

    Attributes:
        iterations: Budget of iterations for one observation, over all starts.
        batch: How many images to search for; 1 looks for one that stands for all in the observation.
        starts: At most so many random starting points; the one whose gradient matches best is taken.
        tolerance: Loss at which the images are taken to explain the gradient, and the search stops.
        total_variation: Weight of the total variation, beside what the known noise asks for.
    """

    iterations: int = 300
    batch: int = 1
    starts: int = 3
    tolerance: float = 1e-10
    total_variation: float = 0.0

    name: ClassVar[str] = "gradient_matching"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=(
            "the model and the weights the update started from",
            "the learning rate, for one-step updates",
            "how much noise is in the vector",
        ),
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
        labels = _labels(model, observation, estimate, self.batch)
        search = _Search(self, model, observation, estimate, labels)
        scale_known, left = estimate.scale_known, self.iterations
        for number in range(self.starts):
            left -= search.start(rng, scale_known, left, apart=number % 2 == 0)
            if search.solved or left <= 0:
                break
            # One example's gradient that no image has is perhaps not of the length it is taken for.
            scale_known = scale_known and self.batch > 1
        return search.guess()


def _labels(
    model: Model, observation: Observation, estimate: GradientEstimate, count: int
) -> NDArray[np.int64] | None:
    """The batch's labels ``[count]``, or ``None`` if the model's end does not tell."""
    if model.output_bias is None:
        return None
    error = model.unflatten(estimate.vector)[model.output_bias]
    if count > 1 and ends_dense(model) and error.any():
        scale, noise = (1.0, 1.0), 0.0
        if not estimate.scale_known:
            scale, noise = ANY, observation.noise_stddev / float(np.linalg.norm(observation.vector))
        counts = infer_label_counts(model, observation.weights, estimate.vector, count, scale=scale, noise=noise)
        return np.repeat(np.arange(model.classes), counts.astype(np.int64))
    return infer_labels(error, count)


class _Stop(Exception):  # noqa: N818 - leaves scipy's optimizer from inside its callback
    """The search is over: solved, or not getting anywhere."""


class _Search:
    """The best images found so far for one gradient, over several starts."""

    def __init__(
        self,
        settings: GradientMatching,
        model: Model,
        observation: Observation,
        estimate: GradientEstimate,
        labels: NDArray[np.int64] | None,
    ) -> None:
        import tensorflow as tf

        self._model, self._labels, self._batch = model, labels, settings.batch
        self._tolerance, self._estimate = settings.tolerance, estimate
        self._pixels = self._batch * int(np.prod(model.input_shape))
        self._loss = matching_loss(model, self._batch, labels is None)
        self._known = np.zeros((self._batch, model.classes)) if labels is None else np.eye(model.classes)[labels]
        self._weights = np.asarray(observation.weights, np.float64)
        # Half the expected squared distance of the truth, relative to the vector's squared length.
        self._floor = 0.5 * noise_variance(observation)
        noisy = self._floor > NOISY
        importance = np.ones(model.dimension) if noisy else layer_weights(model, estimate.vector)
        prior = settings.total_variation
        if noisy:
            prior += 2 * self._floor / model.dimension / STEEPNESS
        self._noisy = noisy or prior > 0
        self._arguments = [
            tf.constant(values, tf.float64)
            for values in (prior, self._weights, estimate.vector, importance, self._known)
        ]
        self._evaluations = 0
        self._best: tuple[float, Vector] | None = None
        self.solved = False

    def start(self, rng: np.random.Generator, scale_known: bool, iterations: int, *, apart: bool) -> int:
        """Search from a random point; returns the iterations used.

        ``apart``: each image of a batch first by its own features, where the last layer tells them and no prior
        holds the search.
        """
        free = self._batch * self._model.classes if self._labels is None else 0
        affordable = not self._noisy and not free and gauss_newton.affordable(self._model, self._batch)
        if affordable and iterations >= JACOBIAN and find_smooth_chain(self._model) is not None:
            start = fading_prior.draw(self._model.input_shape, self._batch, rng)
            return self._by_equations(start, scale_known, iterations, faded=True)
        first = np.concatenate([rng.uniform(0, 1, self._pixels), rng.normal(0, 1, free)])
        near = int(APPROACH * self._batch**0.5)
        affordable = affordable and iterations >= near + JACOBIAN
        features = self._features(rng) if apart and scale_known and affordable else None
        if features is None:
            reached, used = self._approach(first, scale_known, near if affordable else iterations)
        else:
            reached, used = self._one_by_one(first, features), near
        if self.solved or reached is None:
            return used
        if affordable:
            return used + self._by_equations(reached, scale_known, iterations - used)
        if not (self._noisy or free or gauss_newton.separable(self._model)):
            return used + self._signed(first, iterations - used)
        return used

    def _by_equations(self, start: Vector, scale_known: bool, iterations: int, *, faded: bool = False) -> int:
        """By Gauss-Newton steps, ``faded`` ones first; returns the iterations that their Jacobians count."""
        taken, enough = 0, max(NOISE_SLACK * self._floor, 1e-15)
        explained = max(enough, self._tolerance)
        if self._labels is not None and len(set(self._labels.tolist())) < self._batch:
            # Images of one label, mixed, may come as near as the tolerance.
            explained = max(enough, min(ROUNDED / self._batch**0.5 * self._floor, self._tolerance))
        matching = gauss_newton.Matching(
            self._model, self._weights, self._estimate.vector, self._known, scale_known
        )
        searches = [(gauss_newton.solve, enough)]
        if faded:
            searches.insert(0, (fading_prior.search, explained))
        for search, until in searches:
            found = search(matching, start, enough=until, jacobians=iterations // JACOBIAN - taken)
            self._evaluations += found.evaluations
            start, taken = found.images, taken + found.jacobians
            _, angle, _ = self._at(start, scale_known)
            self._consider(angle, start)
            self.solved = min(found.loss, angle) <= explained
            if self.solved:
                break
        return JACOBIAN * taken

    def _signed(self, first: Vector, steps: int) -> int:
        """By signed descent, with all coordinates alike; returns the steps taken."""
        import tensorflow as tf

        _, weights, target, importance, labels = self._arguments
        prior, unknown = tf.constant(SMOOTHNESS, tf.float64), tf.constant(0.0, tf.float64)
        alike = tf.ones_like(importance)

        def objective(point: Vector) -> tuple[float, Vector]:
            loss, _, slope = self._loss(tf.constant(point), unknown, prior, weights, target, alike, labels)
            return float(loss), slope.numpy()

        reached, taken = descend(objective, first, steps)
        self._evaluations += taken
        _, angle, _ = self._at(reached, False)
        self._consider(angle, reached)
        return taken

    def _features(self, rng: np.random.Generator) -> BatchFeatures | None:
        if self._labels is None:
            return None
        return split_features(self._model, self._weights, self._estimate.vector, self._labels, rng)

    def _one_by_one(self, first: Vector, found: BatchFeatures) -> Vector:
        """Images whose features are those of the batch: many searches for one image in the place of one for many.

        That leaves room for other images with the same features, which the other layers then tell apart.
        """
        import tensorflow as tf

        model, size = self._model, self._pixels // self._batch
        loss = matching_loss(model, 1, False)
        zeros, reached = np.zeros(model.dimension), first.copy()
        kernel = model.dimension - model.classes * (len(found.features[0]) + 1)
        last = np.zeros(model.dimension)
        last[kernel : -model.classes] = 1.0
        for i, (features, errors) in enumerate(zip(found.features, found.errors, strict=True)):
            target = zeros.copy()
            target[kernel : -model.classes] = np.outer(features, errors).reshape(-1)
            arguments = [
                tf.constant(values, tf.float64)
                for values in (1.0, 0.0, self._weights, target, last, self._known[i : i + 1])
            ]

            def objective(point: Vector, given: list[Any] = arguments) -> tuple[float, Vector]:
                self._evaluations += 1
                value, _, slope = loss(tf.constant(point), *given)
                return float(value), slope.numpy()

            part = slice(i * size, (i + 1) * size)
            options = {"maxiter": APPROACH, "maxcor": MEMORY, "ftol": 1e-12}
            result = optimize.minimize(
                objective, first[part], jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * size, options=options
            )
            reached[part] = np.clip(result.x, 0, 1)
        return reached

    def _at(self, point: Vector, scale_known: bool) -> tuple[float, float, Vector]:
        import tensorflow as tf

        self._evaluations += 1
        known = tf.constant(float(scale_known), tf.float64)
        loss, angle, slope = self._loss(tf.constant(point), known, *self._arguments)
        return float(loss), float(angle), slope.numpy()

    def _consider(self, angle: float, point: Vector) -> None:
        if np.isfinite(angle) and (self._best is None or angle < self._best[0]):
            self._best = (angle, point.copy())

    def _approach(self, first: Vector, scale_known: bool, iterations: int) -> tuple[Vector | None, int]:
        """By L-BFGS-B: the point of the lowest loss, if there is any, and the iterations used."""
        bounds = [(0.0, 1.0)] * self._pixels + [(None, None)] * (len(first) - self._pixels)
        lowest, reached, history, used = np.inf, None, [np.inf], 0

        def objective(point: Vector) -> tuple[float, Vector]:
            nonlocal lowest, reached
            loss, angle, slope = self._at(point, scale_known)
            if not (np.isfinite(loss) and np.isfinite(slope).all() and (slope.any() or loss < self._tolerance)):
                # A saturated or dead network: its gradient vanished, so there is no direction to compare.
                raise _Stop
            self._consider(angle, point)
            if loss < lowest:
                lowest, reached = loss, point.copy()
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
        return reached, max(used, 1)

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
