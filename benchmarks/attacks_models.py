"""Models that the attacks are measured on and nobody trains here."""

from __future__ import annotations

from typing import Any

import numpy as np

from privfed.models.functional import Model, VariableSpec, Weights

EPSILON = 1e-5
"""Added to variances, as usual."""


def resnet(input_shape: tuple[int, ...], classes: int, *, width: int = 16) -> Model:
    """A small residual network (He et al. 2016): a convolution, two blocks of two, batch statistics, mean pooling.

    Batches are normalised by their own mean and variance, as in training, each channel with a trained scale and
    shift. The second block halves height and width, and doubles the channels.
    """
    import tensorflow as tf

    channels = input_shape[-1]
    # (name, kernel shape), each followed by scale and shift; the shortcut of a block comes last in it.
    layers = [
        ("stem", (3, 3, channels, width)),
        ("block1/a", (3, 3, width, width)),
        ("block1/b", (3, 3, width, width)),
        ("block2/a", (3, 3, width, 2 * width)),
        ("block2/b", (3, 3, 2 * width, 2 * width)),
        ("block2/shortcut", (1, 1, width, 2 * width)),
    ]
    specs = []
    for name, shape in layers:
        specs += [VariableSpec(f"{name}/kernel", shape)]
        specs += [VariableSpec(f"{name}/{part}", shape[-1:]) for part in ("scale", "shift")]
    specs += [VariableSpec("dense/kernel", (2 * width, classes)), VariableSpec("dense/bias", (classes,))]

    def layer(weights: Weights, index: int, x: Any, stride: int = 1) -> Any:
        kernel, scale, shift = weights[3 * index : 3 * index + 3]
        z = tf.nn.conv2d(x, kernel, stride, "SAME")
        mean, variance = tf.nn.moments(z, [0, 1, 2])
        return (z - mean) * tf.math.rsqrt(variance + EPSILON) * scale + shift

    def logits(weights: Weights, x: Any) -> Any:
        h = tf.nn.relu(layer(weights, 0, x))
        h = tf.nn.relu(h + layer(weights, 2, tf.nn.relu(layer(weights, 1, h))))
        inner = tf.nn.relu(layer(weights, 3, h, 2))
        h = tf.nn.relu(layer(weights, 5, h, 2) + layer(weights, 4, inner))
        return tf.matmul(tf.reduce_mean(h, [1, 2]), weights[-2]) + weights[-1]

    def initialize(rng: np.random.Generator) -> list[Any]:
        values = []
        for spec in specs:
            if spec.name.endswith("scale"):
                value = np.ones(spec.shape)
            elif len(spec.shape) == 1:
                value = np.zeros(spec.shape)
            else:
                value = rng.normal(0, np.sqrt(2 / np.prod(spec.shape[:-1])), spec.shape)
            values.append(value.astype(np.float32))
        return values

    return Model("resnet", input_shape, classes, tuple(specs), logits, initialize, output_bias=len(specs) - 1)
