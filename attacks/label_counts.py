"""How often each label occurs behind one gradient of known scale, from the last dense layer and made-up inputs.

For softmax cross-entropy the gradient of the last bias is ``p̄ − n/B``: mean probabilities less the labels' shares.
So the counts are exact once ``p̄`` is known to within half an example. iLRG (Ma et al., ICLR 2023, section
3) takes it from the features that the ratio of the layer's weight and bias gradients stands for, which
fails where a class is as frequent as it is probable and both gradients vanish; an attacker without data can also
take it from made-up inputs. Here the two are averaged by how far each is to be trusted, and each class gets
features of its own. A regression on the made-up inputs (``attacks.mean_probabilities``) corrects the result. All
of it happens in the space of the logits, so the model may be opaque but for its end.

What is left of an error lies along the few directions in which probabilities vary from input to input: counts are
whole, so errors beyond half an example are told from it (nearest point of a lattice, in the errors' own metric).

An attacker with labelled data of the same kind needs none of this but the regression, fitted on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from attacks.mean_probabilities import MOST_CLASSES, fit_mean_probabilities
from privfed.models.functional import Model

Array = NDArray[np.float64]

NOISE_LEVELS = (0.4, 0.6, 0.8, 1.0)
SHAPE_LEVELS = (0.2, 0.35, 0.5, 0.7, 0.9)
"""Brightness of the made-up inputs: even noise, and smooth shapes on black."""
OF_EACH = 32
"""Made-up inputs at one level."""
ROUNDS = 3
"""Times that probabilities and counts are taken from each other."""
DROPPED = 1e-3
"""Directions with less than this share of the largest singular value say nothing about a class's features."""
REGRESSED = 0.15
"""Weight of the regression on made-up inputs in the mean probabilities."""
LEAST = 1e-9
"""Relative decrease of a squared distance that is more than rounding."""
EVEN = 0.05
"""Standard deviation of a count's error beside that of the mean probabilities: whatever is not reckoned with."""


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Labelled examples of the same kind as the clients', which the attacker has from elsewhere.

    Attributes:
        inputs: ``[k, *input_shape]``; a few hundred for ten classes.
        labels: ``[k]``.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]

    def check(self, model: Model) -> None:
        """Raises ``ValueError`` unless they are examples for ``model``."""
        if self.inputs.shape[1:] != model.input_shape or not len(self.inputs):
            shape = ", ".join(str(n) for n in model.input_shape)
            raise ValueError(
                f"auxiliary inputs have shape {self.inputs.shape}: model {model.name} takes [k, {shape}]"
            )
        if not np.isfinite(self.inputs).all():
            raise ValueError("auxiliary inputs are not all finite: remove those that are not")
        if self.labels.shape != (len(self.inputs),) or not np.isin(self.labels, np.arange(model.classes)).all():
            raise ValueError(
                f"auxiliary labels: one from 0 to {model.classes - 1} is needed for each of the inputs"
            )


def infer_label_counts(
    model: Model,
    weights: NDArray[Any],
    gradient: NDArray[np.float64],
    count: int,
    auxiliary: Auxiliary | None = None,
) -> Array:
    """The number of examples of each class, ``[classes]`` whole numbers that add up to ``count``.

    Args:
        model: Whose last two variables are the kernel ``[features, classes]`` and bias of a dense layer.
        weights: At which the gradient was taken, ``[d]``.
        gradient: The mean gradient over the examples at its own scale, ``[d]``: of a single step.
        count: How many examples, at least 1.
        auxiliary: What the attacker has of such data; without, inputs are made up.

    Raises:
        ValueError: The count is below 1, the model has no dense layer at its end, or the auxiliary data do not fit
            the model.
    """
    if count < 1:
        raise ValueError(f"count is {count}: at least one label has to be asked for")
    if not ends_dense(model):
        raise ValueError(f"model {model.name} does not end with a dense layer and its bias: its labels are hidden")
    kernel, bias = (np.asarray(w, np.float64) for w in model.unflatten(np.asarray(weights))[-2:])
    kernel_gradient, error = (np.asarray(g, np.float64) for g in model.unflatten(gradient)[-2:])
    if not error.any():
        raise ValueError("the gradient of the last layer's bias is zero: it says nothing about labels")
    # [classes, classes]: column c is the mean over the examples of (logits − bias) · (p_c − y_c).
    product = kernel.T @ kernel_gradient
    if auxiliary is not None:
        auxiliary.check(model)
        theirs = _logits(model, weights, auxiliary.inputs)
        found = fit_mean_probabilities(theirs, bias, auxiliary.labels)(error, product)
        return _rounded((found - error) * count, count)
    made_up = _logits(model, weights, made_up_inputs(model.input_shape))
    logits = _mean_logits(product, error, bias, made_up)
    if model.classes <= MOST_CLASSES:
        share, regressed = REGRESSED, fit_mean_probabilities(made_up, bias, None)(error, product)
    else:
        share, regressed = 0.0, np.zeros(model.classes)

    def counted(mean: Array) -> Array:
        return ((1 - share) * mean + share * regressed - error) * count

    counts = _rounded(counted(_softmax(logits)), count)
    probabilities = np.tile(_softmax(logits), (model.classes, 1))
    rest = product - np.outer(logits - bias, error)
    for _ in range(ROUNDS):
        root = np.sqrt(counts / count)
        effect = root[:, None] * (probabilities - np.eye(model.classes))
        shift = np.linalg.pinv(effect, rcond=DROPPED).T @ rest.T
        own = np.where(counts[:, None] > 0, shift / np.maximum(root, 1e-9)[:, None], 0.0)
        probabilities = _softmax(logits + own)
        shares = counted((counts / count) @ probabilities)
        counts = _rounded(shares, count)
    return nearest_counts(shares, count, _softmax(made_up))


def ends_dense(model: Model) -> bool:
    """Whether the last two variables are the kernel and bias of a dense layer that gives the logits."""
    last = len(model.variables) - 1
    if model.output_bias != last or last < 1:
        return False
    shape = model.variables[last - 1].shape
    return len(shape) == 2 and shape[1] == model.classes


def _mean_logits(product: Array, error: Array, bias: Array, made_up: Array) -> Array:
    """The mean logits behind the gradient: its own estimate and that of made-up inputs, by their variances."""
    power = float(error @ error)
    own = product @ error / power
    variance = float(np.sum((product - np.outer(own, error)) ** 2)) / max(1, product.size - len(error)) / power
    own, prior = own + bias, made_up.mean(axis=0)
    apart = float(np.mean((own - prior) ** 2))
    prior_variance = max(apart - variance, 1e-3 * apart)
    share = prior_variance / max(prior_variance + variance, 1e-300)
    return np.asarray(share * own + (1 - share) * prior)


def _rounded(shares: Array, count: int) -> Array:
    """Whole numbers that add up to ``count``, as near to ``shares`` as can be."""
    counts = np.floor(np.maximum(shares, 0))
    while counts.sum() < count:
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > count:
        counts[np.argmin(np.where(counts > 0, shares - counts, np.inf))] -= 1
    return np.asarray(counts)


def nearest_counts(shares: Array, count: int, probabilities: Array) -> Array:
    """Whole numbers that add up to ``count``, nearest to ``shares`` where errors are as probabilities vary.

    From the rounded ones on, one example at a time goes to another class, until no such move comes nearer.

    Args:
        shares: Their estimate, ``[classes]``.
        count: Examples.
        probabilities: Of single inputs, ``[inputs, classes]``.
    """
    counts, classes = _rounded(shares, count), len(shares)
    # Of a batch's mean as of one input: inputs of a batch may all be off to the same side.
    metric = np.linalg.inv(count**2 * np.cov(probabilities.T) + EVEN**2 * np.eye(classes))
    while True:
        # Squared distance after a move from class a to class b, less that before: of the step e_b − e_a.
        slope, own = metric @ (counts - shares), np.diag(metric)
        change = 2 * (slope[None, :] - slope[:, None]) + own[:, None] + own[None, :] - 2 * metric
        change[counts < 1] = 0  # nobody is left to go
        taken, given = np.unravel_index(np.argmin(change), change.shape)
        if not change[taken, given] < -LEAST * own.max():
            return counts
        counts[taken] -= 1
        counts[given] += 1


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _logits(model: Model, weights: NDArray[Any], inputs: NDArray[Any]) -> Array:
    import tensorflow as tf

    variables = [tf.constant(np.asarray(part, np.float32)) for part in model.unflatten(np.asarray(weights))]
    return np.asarray(model.logits(variables, tf.constant(inputs, tf.float32)).numpy(), np.float64)


@lru_cache(maxsize=8)
def made_up_inputs(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Inputs ``[k, *shape]`` in [0, 1]: noise of several brightnesses, and for images smooth shapes on black."""
    rng = np.random.default_rng(0x11)
    noise = rng.random((OF_EACH, *shape))
    found = [level * noise for level in NOISE_LEVELS]
    if len(shape) >= 2:
        height, width = (np.abs(np.linspace(-1, 1, n)) for n in shape[:2])
        sizes = rng.uniform(0.3, 1, (OF_EACH, 2))
        tall, wide = (part[:, None, None] for part in sizes.T)
        inside = (height[None, :, None] < tall) & (width[None, None, :] < wide)
        inside = inside.reshape(*inside.shape, *[1] * (len(shape) - 2))
        blur = (0, shape[0] / 9, shape[1] / 9, *[0] * (len(shape) - 2))
        smooth = ndimage.gaussian_filter(rng.normal(size=(OF_EACH, *shape)), blur)
        texture = 1 + 0.3 * smooth / max(float(smooth.std()), 1e-12)
        found += [np.clip(level * inside * texture, 0, 1) for level in SHAPE_LEVELS]
    inputs: NDArray[np.float32] = np.concatenate(found).astype(np.float32)
    inputs.setflags(write=False)
    return inputs
