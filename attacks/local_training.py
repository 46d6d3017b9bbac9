"""Reconstruction from several local steps: search through the simulated local training.

Data Leakage in Federated Averaging (Dimitrov et al. 2022, arXiv:2206.12395, sections 4.1 to 4.3): each epoch has
images of its own, since the order in which it goes through the examples is not known; they are trained on as the
client did, and what the whole training changes is matched with the update seen. A prior ties the epochs together
by what no order changes, their mean image; at the end the epochs' images are matched with each other and averaged.

Beyond the paper, the first start is what gradient matching takes the whole training for, a single step; and the
matching tells an order, so the averaged images are searched for once more in that order, and in those that differ
from it by a swap and explain the update better.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from attacks.base import Guess, Images, NotInvertible, ThreatModel, attempt
from attacks.gradient import estimate_gradient, may_be_clipped
from attacks.gradient_matching import GradientMatching
from attacks.label_counts import DISTORTED, STRETCHED, ends_dense, infer_label_counts
from attacks.labels import infer_labels
from attacks.matching_loss import TINY, layer_weights
from privfed.models.functional import Model, cross_entropy
from privfed.transcript import Kind, Observation, Observer, Plan, View

Vector = NDArray[np.float64]
Order = NDArray[np.int64]
"""``[epochs, examples]``: which image comes when, in each epoch."""

MOST_STEPS = 64
"""Longer trainings are not unrolled."""
MEMORY = 30
"""Correction pairs of L-BFGS."""
SWAPPING = 3
"""Times that better orders are looked for, and the images searched for in them."""


@dataclass(frozen=True)
class LocalTraining:
    """Matches the update of a client's whole local training.

    Attributes:
        iterations: Of L-BFGS-B, for one start; as many again are shared by the searches in a known order.
        examples: How many the client trained on.
        starts: At most so many starting points, all but the first at random; the best one is taken.
        tie: Weight of the squared distance of the epochs' mean images.
        tolerance: Loss at which the images are taken to explain the update, and the search stops.
    """

    iterations: int = 300
    examples: int = 1
    starts: int = 2
    tie: float = 0.1
    tolerance: float = 1e-10

    name: ClassVar[str] = "local_training"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=(Observer.SERVER, Observer.SERVER_WITH_COLLUDERS, Observer.ACTIVE_SERVER),
        knowledge=(
            "the model and the weights the update started from",
            "the learning rate, the local epochs and the size of local batches",
            "how many examples the client has",
        ),
        assumptions=(
            "one client's plain local SGD on few examples, in few steps",
            "a model smooth enough for its gradient's gradient to guide a search",
            "no noise beyond that of rounding",
        ),
    )

    def __post_init__(self) -> None:
        for what in ("iterations", "examples", "starts"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}: simulated local training needs at least 1")

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` draws the starting points and the order of the labels."""
        observation, model, plan = view.observations[index], view.model, view.plan
        _check_simulable(observation, plan, self.examples)
        labels = _labels(model, observation, plan, self.examples)
        search = _Search(self, model, observation, plan)
        # Near the truth where the steps are small, and a start like any other where they are not.
        one_step = attempt(GradientMatching(self.iterations, self.examples, starts=1), view, index, rng)
        search.evaluations += one_step.evaluations
        for start in range(self.starts):
            if start == 0 and one_step.labels is not None:
                search.start(one_step.labels, one_step.images, rng)
            else:
                search.start(labels, None, rng)
            if search.best is not None and search.best[0] < self.tolerance:
                break
        if search.best is None:
            raise NotInvertible("the simulated training is not finite wherever the search started")
        angle, point, found = search.best
        images = np.clip(point, 0, 1).reshape(self.examples, *model.input_shape)
        return Guess(images, found, angle, search.evaluations)


def _check_simulable(observation: Observation, plan: Plan, examples: int) -> None:
    if observation.kind is not Kind.CLIENT_UPDATE:
        raise NotInvertible(
            f"the vector is a {observation.kind.value}: one client's training is what is simulated"
        )
    if plan.momentum or plan.proximal:
        raise NotInvertible("the clients' steps have momentum or a proximal term, which are not simulated")
    if plan.local_steps is not None:
        raise NotInvertible("the plan counts local steps, not epochs: which examples come twice is not known")
    if observation.rate_factor is None:
        raise NotInvertible("the learning rate behind the vector is not known")
    steps = plan.local_epochs * -(-examples // plan.batch_size)
    if steps > MOST_STEPS:
        raise NotInvertible(f"the client took {steps} steps: {MOST_STEPS} are the most that are simulated")


def _labels(model: Model, observation: Observation, plan: Plan, count: int) -> NDArray[np.int64]:
    """The examples' labels ``[count]``, by the mean gradient over the steps in the place of the first one."""
    if model.output_bias is None:
        raise NotInvertible(f"model {model.name} has no output bias whose gradient would tell the labels")
    gradient = estimate_gradient(observation, plan)
    error = model.unflatten(gradient.vector)[model.output_bias]
    if count > 1 and ends_dense(model) and error.any():
        assert observation.rate_factor is not None  # else the vector was turned away
        rate = plan.learning_rate * observation.rate_factor * max(observation.contributors, TINY)
        unit = rate * plan.local_epochs * -(-count // plan.batch_size)
        counts = infer_label_counts(
            model,
            observation.weights,
            -observation.vector / unit,
            count,
            scale=(0.0, STRETCHED),
            noise=observation.noise_stddev / unit,
            distorted=DISTORTED,
        )
        return np.repeat(np.arange(model.classes), counts.astype(np.int64))
    return infer_labels(error, count)


class _Solved(Exception):  # noqa: N818 - leaves scipy's optimizer from inside its objective
    """The images explain the update."""


class _Search:
    """The best images found so far, over several starts, and the update that each explains."""

    def __init__(self, settings: LocalTraining, model: Model, observation: Observation, plan: Plan) -> None:
        import tensorflow as tf

        self._settings, self._model, self._epochs = settings, model, plan.local_epochs
        self._pixels = int(np.prod(model.input_shape))
        target = np.asarray(observation.vector, np.float64) / max(observation.contributors, 1e-300)
        # Divided first: squares of tiny or huge vectors may leave float64. Clipping, and an update that is far
        # beyond what such a training can do, leave its direction alone to compare.
        largest = float(np.abs(target).max())
        update = observation.vector / max(observation.contributors, TINY)
        known = not may_be_clipped(update, plan) and 1e-100 < largest < 1e100
        target = target if known else target / largest
        self._arguments = [
            tf.constant(values, tf.float64)
            for values in (
                float(known),
                plan.learning_rate * float(observation.rate_factor or 0.0),
                np.asarray(observation.weights, np.float64),
                target,
                layer_weights(model, target),
            )
        ]
        self._batch = min(plan.batch_size, settings.examples)
        self._loss = training_loss(model, self._batch)
        self.best: tuple[float, Vector, NDArray[np.int64]] | None = None
        self.evaluations = 0

    def start(self, labels: NDArray[np.int64], images: Images | None, rng: np.random.Generator) -> None:
        """Search from ``images``, or random ones: epochs apart, then together in the order that came of it."""
        count, iterations = len(labels), self._settings.iterations
        orders = np.stack([rng.permutation(count) for _ in range(self._epochs)])
        shuffled = labels[orders]
        first = rng.uniform(0, 1, (orders.size, self._pixels))
        if images is not None:
            first = images.reshape(count, -1)[orders].reshape(first.shape)
        apart = np.arange(self._epochs * count).reshape(self._epochs, count)
        point = self._descend(first, apart, shuffled, iterations)
        if point is None:
            return
        order = _matched(point.reshape(self._epochs, count, -1), shuffled)
        epochs = point.reshape(self._epochs, count, -1)
        together = np.mean([epoch[np.argsort(o)] for epoch, o in zip(epochs, order, strict=True)], axis=0)
        own = shuffled[0]  # the first epoch's order is the images' own
        rounds = SWAPPING if self._batch < count else 1  # else the order does not matter
        for _ in range(rounds):
            found = self._descend(together, order, own[order], max(1, iterations // rounds))
            if found is None:
                return
            together = found
            if self.best is not None and self.best[0] < self._settings.tolerance:
                return
            order = self._swapped(together, order, own)

    def _swapped(self, images: Vector, order: Order, own: NDArray[np.int64]) -> Order:
        """The order with those swaps of two examples in an epoch that bring the loss down, one after another."""
        lowest = self._at(images, order, own[order])[0]
        for epoch, (i, j) in itertools.product(range(len(order)), itertools.combinations(range(len(own)), 2)):
            other = order.copy()
            other[epoch, [i, j]] = other[epoch, [j, i]]
            loss = self._at(images, other, own[other])[0]
            if loss < lowest:
                lowest, order = loss, other
        return order

    def _at(self, point: Vector, order: Order, labels: NDArray[np.int64]) -> tuple[float, float, Vector]:
        import tensorflow as tf

        self.evaluations += 1
        tie = tf.constant(self._settings.tie, tf.float64)
        arrangement = tf.constant(order), tf.constant(labels)
        loss, angle, slope = self._loss(tf.constant(point), *arrangement, tie, *self._arguments)
        return float(loss), float(angle), slope.numpy()

    def _descend(self, first: Vector, order: Order, labels: NDArray[np.int64], iterations: int) -> Vector | None:
        """Images ``[k, pixels]`` of the lowest loss, by L-BFGS-B; ``None`` when none was finite."""
        lowest, reached = np.inf, None
        together = len(first) == labels.shape[1]

        def objective(flat: Vector) -> tuple[float, Vector]:
            nonlocal lowest, reached
            point = flat.reshape(first.shape)
            loss, angle, slope = self._at(point, order, labels)
            if not (np.isfinite(loss) and np.isfinite(slope).all()):
                return 1e300, np.zeros(flat.size)
            if loss < lowest:
                lowest, reached = loss, point.copy()
            if together and (self.best is None or angle < self.best[0]):
                # Labels in the order of the images.
                self.best = (angle, point.copy(), labels[0][np.argsort(order[0])])
            if loss < self._settings.tolerance:
                raise _Solved
            return loss, slope.reshape(-1)

        with contextlib.suppress(_Solved):
            optimize.minimize(
                objective,
                first.reshape(-1),
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, 1.0)] * first.size,
                # The loss falls far below the machine's precision of its first value.
                options={
                    "maxiter": iterations,
                    "maxfun": 2 * iterations,
                    "maxcor": MEMORY,
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
        return reached


def _matched(epochs: NDArray[np.float64], labels: NDArray[np.int64]) -> Order:
    """Which of the first epoch's images each epoch has at each place; like with like, labels alike."""
    order = []
    for images, classes in zip(epochs, labels, strict=True):
        cost = np.mean((images[:, None] - epochs[0][None]) ** 2, axis=2)
        cost = cost + 1e3 * (classes[:, None] != labels[0][None])
        order.append(optimize.linear_sum_assignment(cost)[1])
    return np.asarray(order, np.int64)


@lru_cache(maxsize=8)
def training_loss(model: Model, batch: int) -> Callable[..., tuple[Any, Any, Any]]:
    """The distance of a simulated local training's update from the one observed, as one graph.

    Args:
        model: The attacked model.
        batch: Examples in a local step; the last one of an epoch may have fewer.

    Returns:
        ``(images [k, pixels], order [epochs, examples] of them, labels in that order, tie, scale known: 1.0 or
        0.0, learning rate, weights [d], update [d], importance [d]) -> (loss, 1 − cosine, slope of the loss)``.
    """
    import tensorflow as tf

    def gradient(variables: Any, x: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss = cross_entropy(model.logits(variables, x), labels)
        return tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def loss(
        point: Any, order: Any, labels: Any, tie: Any, known: Any, rate: Any, weights: Any, target: Any, cares: Any
    ) -> Any:
        epochs, examples = order.shape
        with tf.GradientTape() as outer:
            outer.watch(point)
            variables, means = model.unflatten(weights), []
            for epoch in range(epochs):
                images = tf.gather(point, order[epoch])
                means.append(tf.reduce_mean(images, 0))
                for first in range(0, examples, batch):
                    x = tf.reshape(images[first : first + batch], [-1, *model.input_shape])
                    parts = gradient(variables, x, labels[epoch, first : first + batch])
                    variables = [v - rate * part for v, part in zip(variables, parts, strict=True)]
            root = tf.sqrt(cares)
            ours = root * (tf.concat([tf.reshape(v, [-1]) for v in variables], 0) - weights)
            theirs = root * target
            length = tf.reduce_sum(theirs**2)
            distance = tf.reduce_sum((ours - theirs) ** 2) / length
            unit = ours * tf.math.rsqrt(tf.maximum(tf.reduce_sum(ours**2), TINY))
            angle = 0.5 * tf.reduce_sum((unit - theirs * tf.math.rsqrt(length)) ** 2)
            apart = tf.reduce_mean((tf.stack(means) - tf.reduce_mean(tf.stack(means), 0)) ** 2)
            total = tf.where(known > 0, distance, angle) + tie * apart
        # Of gathered images it is sparse otherwise.
        return total, angle, tf.convert_to_tensor(outer.gradient(total, point))

    compiled: Callable[..., tuple[Any, Any, Any]] = tf.function(loss)
    return compiled
