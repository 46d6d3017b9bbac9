"""How often each label occurs behind one gradient, from the last dense layer and made-up inputs.

For softmax cross-entropy the gradient of the last bias is ``p̄ − n/B``: mean probabilities less the labels' shares.
So the counts are exact once ``p̄`` is known to within half an example. iLRG (Ma et al., ICLR 2023, section
3) takes it from the features that the ratio of the layer's weight and bias gradients stands for, which
fails where a class is as frequent as it is probable and both gradients vanish; an attacker without data can also
take it from made-up inputs. Here the two are averaged by how far each is to be trusted, and each class gets
features of its own. A regression on the made-up inputs (``attacks.mean_probabilities``) corrects the result. All
of it happens in the space of the logits, so the model may be opaque but for its end.

The steps are those of ``attacks.counting``. Of a gradient whose length is lost, each length is tried, and the one
taken at which whole counts explain it best.

An attacker with labelled data of the same kind needs none of this but the regression, fitted on them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from attacks.counting import Counting
from attacks.labels import infer_labels
from attacks.mean_probabilities import MOST_CLASSES
from privfed.auxiliary import Auxiliary
from privfed.models.functional import Model

Array = NDArray[np.float64]

NOISE_LEVELS = (0.4, 0.6, 0.8, 1.0)
SHAPE_LEVELS = (0.2, 0.35, 0.5, 0.7, 0.9)
"""Brightness of the made-up inputs: even noise, and smooth shapes on black."""
STRETCHED = 1.1
"""How long gradients of several steps may be in the mean, beside the first; they shrink as the model learns."""
DISTORTED = 0.03
"""Standard deviation of a share of labels after several steps, of which all but the first are at other weights."""
OF_EACH = 32
"""Made-up inputs at one level."""


def infer_label_counts(
    model: Model,
    weights: NDArray[Any],
    gradient: NDArray[np.float64],
    count: int,
    auxiliary: Auxiliary | None = None,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    noise: float = 0.0,
    clients: int = 1,
    distorted: float = 0.0,
) -> Array:
    """The number of examples of each class, ``[classes]`` whole numbers that add up to ``count``.

    Args:
        model: Whose last two variables are the kernel ``[features, classes]`` and bias of a dense layer.
        weights: At which the gradient was taken, ``[d]``.
        gradient: The mean gradient over the examples, ``[d]``: of a single step.
        count: How many examples, at least 1.
        auxiliary: What the attacker has of such data; without, inputs are made up.
        scale: How many times too long ``gradient`` is, at least and at most: ``(0, 1)`` after clipping. The number
            is searched for.
        noise: Standard deviation of the noise in each entry of ``gradient``.
        clients: Whose examples they are: labels of many are nearer to even than those of one.
        distorted: Standard deviation of each share of labels, of whatever a single step does not explain.

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
    if auxiliary is None:
        inputs, labels = made_up_inputs(model.input_shape), None
    else:
        auxiliary.check(model)
        inputs, labels = auxiliary.inputs, auxiliary.labels
    counting = Counting.of(_logits(model, weights, inputs), labels, kernel, bias, count, clients, distorted)
    if scale[0] == scale[1]:
        return counting(error / scale[0], product / scale[0], noise / scale[0])[0]
    if model.classes > MOST_CLASSES or count == 1:
        # One example's own label is the only negative entry; with many classes the search would take minutes.
        return np.bincount(infer_labels(error, count), minlength=model.classes).astype(np.float64)
    return counting.of_any_scale(error, product, noise, scale)


def ends_dense(model: Model) -> bool:
    """Whether the last two variables are the kernel and bias of a dense layer that gives the logits."""
    last = len(model.variables) - 1
    if model.output_bias != last or last < 1:
        return False
    shape = model.variables[last - 1].shape
    return len(shape) == 2 and shape[1] == model.classes


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
