"""Bounded Gauss-Newton steps on the gradient's own equations, where they are few enough to be written down.

The gradient of a batch is the mean of its examples' gradients, so its Jacobian by the pixels is made of one block
per example, each from forward-mode derivatives. With more equations than pixels the problem is one of nonlinear
least squares: Levenberg (1944) and Marquardt (1963), as in Nocedal & Wright (2006), section 10.3. A Jacobian costs
hundreds of gradients and serves several steps. Pixels that lie at a bound and are pushed against it cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from attacks.chain_jacobian import ChainJacobian
from attacks.conv_chain import find_smooth_chain
from privfed.models.functional import Model, cross_entropy

Vector = NDArray[np.float64]

MOST_ENTRIES = 150_000_000
"""Of a Jacobian in single precision: 600 MB."""
DAMPING = (1e-3, 1e-6, 1e2)
"""At the start, least and most, relative to the mean of the normal matrix's diagonal."""
SERVES = 0.3
"""A Jacobian is kept while a step brings the loss below this share of what it was."""
STALLED = 0.9
"""So is the search given up when two new Jacobians in a row have not brought it below this share."""
REFITS = 8
"""Times that pixels which leave [0, 1] are held at its ends and the others are solved for again."""
TRIES = 6
"""Dampings tried for one step."""


@dataclass(frozen=True, eq=False)
class Matching:
    """The equations: gradient at ``images`` = observed gradient, ``[d]``, up to a factor if its scale is unknown.

    Attributes:
        model: The attacked model.
        weights: ``[d]`` at which the gradient was taken.
        target: ``[d]``, not zero.
        labels: One-hot or probabilities, ``[batch, classes]``.
        scale_known: Whether lengths are compared, or directions alone.
    """

    model: Model
    weights: Vector
    target: Vector
    labels: NDArray[np.float64]
    scale_known: bool


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the steps ended.

    Attributes:
        images: ``[batch · pixels]`` in [0, 1].
        loss: Half the squared distance of the gradients over that of the target from zero.
        evaluations: Gradients taken, one for each column of a Jacobian among them.
        jacobians: How many were taken.
    """

    images: Vector
    loss: float
    evaluations: int
    jacobians: int


def affordable(model: Model, batch: int) -> bool:
    """Whether the equations determine the pixels and a Jacobian fits into memory."""
    pixels = batch * int(np.prod(model.input_shape))
    return pixels <= model.dimension and pixels * model.dimension <= MOST_ENTRIES and separable(model)


@lru_cache(maxsize=32)
def separable(model: Model) -> bool:
    """Whether each example's logits are its own: not so where a batch is normalised by its own statistics."""
    import tensorflow as tf

    rng = np.random.default_rng(0x5E)
    variables = [tf.constant(part, tf.float64) for part in model.initialize(rng)]
    x = tf.constant(rng.uniform(0, 1, (2, *model.input_shape)))
    both = model.logits(variables, x).numpy()
    alone = np.concatenate([model.logits(variables, x[i : i + 1]).numpy() for i in range(2)])
    return bool(np.allclose(both, alone, rtol=1e-9, atol=1e-9))


def solve(matching: Matching, start: Vector, *, enough: float, jacobians: int) -> Solution:
    """Steps from ``start`` ``[batch · pixels]`` until the loss is ``enough``, or they get nowhere.

    Args:
        matching: The equations.
        start: In [0, 1].
        enough: Loss at which the equations are met to within their noise.
        jacobians: At most so many.
    """
    equations = Equations(matching)
    x, at = start, equations.at(start)
    damping, stalls, taken = DAMPING[0], 0, 0
    while taken < jacobians:
        if at.loss <= enough or not np.isfinite(at.loss):
            break
        free = np.flatnonzero(~(((x <= 0) & (at.slope >= 0)) | ((x >= 1) & (at.slope <= 0))))
        if not len(free):
            break
        normal, before, taken = equations.normal(x, free), at.loss, taken + 1
        while at.loss > enough:
            stepped = _step(equations, normal, free, x, at, damping)
            if stepped is None:
                damping = min(10 * damping, DAMPING[2])
                break
            share = stepped[1].loss / at.loss
            x, at, damping = stepped[0], stepped[1], max(stepped[2] / 5, DAMPING[1])
            if share > SERVES:
                break
        stalls = stalls + 1 if at.loss > STALLED * before else 0
        if stalls == 2:
            break
    return Solution(x, at.loss, equations.evaluations, taken)


@dataclass(frozen=True, eq=False)
class Point:
    """Loss, and its slope ``[batch · pixels]``, at some images."""

    loss: float
    slope: Vector


class Equations:
    """Loss, slope and normal matrix of one matching problem; counts the gradients taken."""

    def __init__(self, matching: Matching) -> None:
        import tensorflow as tf

        self._model, self._batch = matching.model, len(matching.labels)
        self._known = matching.scale_known
        length = float(np.linalg.norm(matching.target))
        self._length = length
        self._weights = tf.constant(matching.weights, tf.float64)
        self._target = tf.constant(matching.target / length)
        self._labels, self._one_hot = tf.constant(matching.labels, tf.float64), matching.labels
        self._slope = slope_graph(self._model, self._batch)
        chain = find_smooth_chain(self._model)
        self._columns = (
            differentiated(self._model, matching.weights)
            if chain is None
            else ChainJacobian(chain, self._model, matching.weights)
        )
        self.evaluations = 0

    def at(self, x: Vector) -> Point:
        """At images ``[batch · pixels]``."""
        import tensorflow as tf

        self.evaluations += 1
        scale = tf.constant(1 / self._length if self._known else 0.0, tf.float64)
        loss, slope = self._slope(tf.constant(x), scale, self._weights, self._target, self._labels)
        return Point(float(loss), slope.numpy())

    def normal(self, x: Vector, free: NDArray[np.int64]) -> NDArray[np.float32]:
        """``JᵀJ`` of the free pixels, ``[free, free]``."""
        pixels = len(x) // self._batch
        parts, total = [], np.zeros(self._model.dimension)
        for i in range(self._batch):
            mine = free[(free >= i * pixels) & (free < (i + 1) * pixels)] - i * pixels
            gradient, columns = self._columns(x[i * pixels : (i + 1) * pixels], mine, self._one_hot[i])
            parts.append(columns)
            total += gradient
            self.evaluations += len(mine) + 1
        rows = np.concatenate(parts)
        length = self._length * self._batch if self._known else float(np.linalg.norm(total))
        rows /= np.float32(max(length, 1e-300))
        normal = np.asarray(rows @ rows.T)
        if not self._known:
            # A change of length alone changes nothing.
            along = rows @ (total / max(length, 1e-300)).astype(np.float32)
            normal -= np.outer(along, along)
        return normal


Columns = Callable[[Vector, NDArray[np.int64], Vector], tuple[NDArray[Any], NDArray[Any]]]
"""``(pixels [n], which of them [k], label [classes]) -> (gradient [d], its derivatives [k, d])``."""


def differentiated(model: Model, weights: Vector) -> Columns:
    """For any model: forward-mode differentiation, one pixel after another."""
    import tensorflow as tf

    graph, at = jacobian_graph(model), tf.constant(weights, tf.float64)

    def columns(point: Vector, which: NDArray[np.int64], label: Vector) -> tuple[NDArray[Any], NDArray[Any]]:
        gradient, rows = graph(tf.constant(point), tf.constant(which), at, tf.constant(label[None]))
        return gradient.numpy(), rows.numpy()

    return columns


def _step(
    equations: Equations,
    normal: NDArray[np.float32],
    free: NDArray[np.int64],
    x: Vector,
    at: Point,
    damping: float,
) -> tuple[Vector, Point, float] | None:
    """A step that lowers the loss, with the damping that it took; ``None`` when none of those tried does."""
    for _ in range(TRIES):
        moved = x.copy()
        moved[free] = bounded(normal, at.slope[free], x[free], damping)
        there = equations.at(moved)
        if there.loss < at.loss:
            return moved, there, damping
        damping = 5 * max(damping, 1e-4)
        if damping > DAMPING[2]:
            break
    return None


def bounded(normal: NDArray[Any], slope: Vector, x: Vector, damping: float, *, refits: int = REFITS) -> Vector:
    """About where the damped quadratic model is least in [0, 1], ``[free]``."""
    ridge = normal.dtype.type(damping * float(normal.diagonal().mean()))
    moved, held = x.copy(), np.zeros(len(x), np.bool_)
    for _ in range(refits):
        open_ = np.flatnonzero(~held)
        if not len(open_):
            break
        matrix = normal[np.ix_(open_, open_)]
        matrix[np.diag_indices_from(matrix)] += ridge
        right = -slope[open_]
        if held.any():
            right = right - normal[np.ix_(open_, np.flatnonzero(held))] @ (moved - x)[held]
        try:
            factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            # Not positive in single precision: as good as no model at all.
            return x
        moved[open_] = x[open_] + scipy.linalg.cho_solve(factor, right.astype(normal.dtype), check_finite=False)
        outside = ~held & ((moved < 0) | (moved > 1))
        if not outside.any():
            break
        moved = np.clip(moved, 0, 1)
        held |= outside
    return np.asarray(np.clip(moved, 0, 1))


def _gradient(model: Model, weights: Any, x: Any, labels: Any) -> Any:
    """Of the mean loss, flat ``[d]``, inside a graph."""
    import tensorflow as tf

    variables = model.unflatten(weights)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss = cross_entropy(model.logits(variables, x), labels)
    parts = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)


@lru_cache(maxsize=8)
def slope_graph(model: Model, batch: int) -> Callable[..., tuple[Any, Any]]:
    """``(pixels, 1 / length or 0 if unknown, weights, unit target, labels) -> (loss, slope)``, traced once."""
    import tensorflow as tf

    def both(point: Any, scale: Any, weights: Any, target: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(point)
            ours = _gradient(model, weights, tf.reshape(point, [batch, *model.input_shape]), labels)
            inverse = tf.math.rsqrt(tf.maximum(tf.reduce_sum(ours**2), 1e-290))
            loss = 0.5 * tf.reduce_sum((ours * tf.where(scale > 0, scale, inverse) - target) ** 2)
        return loss, tape.gradient(loss, point)

    compiled: Callable[..., tuple[Any, Any]] = tf.function(both)
    return compiled


@lru_cache(maxsize=8)
def jacobian_graph(model: Model) -> Callable[..., tuple[Any, Any]]:
    """``(one example's pixels [n], which of them [k], weights, label [1, classes]) -> (gradient, [k, d])``.

    The second result, the gradient's derivative by each of these pixels, is rounded to single precision.
    """
    import tensorflow as tf

    size, shape = int(np.prod(model.input_shape)), [1, *model.input_shape]
    vector = tf.TensorSpec([model.dimension], tf.float64)
    signature = [
        tf.TensorSpec([size], tf.float64),
        tf.TensorSpec([None], tf.int64),
        vector,
        tf.TensorSpec([1, model.classes], tf.float64),
    ]

    def columns(point: Any, which: Any, weights: Any, labels: Any) -> Any:
        x = tf.reshape(point, shape)

        def column(pixel: Any) -> Any:
            tangent = tf.reshape(tf.one_hot(pixel, size, dtype=tf.float64), shape)
            with tf.autodiff.ForwardAccumulator(x, tangent) as forward:
                gradient = _gradient(model, weights, x, labels)
            return tf.cast(forward.jvp(gradient, tf.UnconnectedGradients.ZERO), tf.float32)

        rows = tf.map_fn(column, which, fn_output_signature=tf.TensorSpec([model.dimension], tf.float32))
        return _gradient(model, weights, x, labels), rows

    compiled: Callable[..., tuple[Any, Any]] = tf.function(columns, input_signature=signature)
    return compiled
