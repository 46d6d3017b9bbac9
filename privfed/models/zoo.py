"""The models that come with the package, each a few lines of pure TensorFlow.

A new model is one builder here and one line in ``ZOO``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from privfed.errors import SettingError
from privfed.models.functional import Model, VariableSpec, Weights
from privfed.models.initializers import INITIALIZERS
from privfed.models.transformer import transformer

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": tf.nn.relu,
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
}


def _specs(prefixes: Sequence[str], kernels: Sequence[tuple[int, ...]]) -> tuple[VariableSpec, ...]:
    pairs = []
    for prefix, kernel in zip(prefixes, kernels, strict=True):
        pairs += [VariableSpec(f"{prefix}/kernel", kernel), VariableSpec(f"{prefix}/bias", kernel[-1:])]
    return tuple(pairs)


def _flat(x: Any) -> Any:
    return tf.reshape(x, [tf.shape(x)[0], int(np.prod(x.shape[1:]))])


def _dense_stack(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    hidden: Sequence[int],
    activation: str,
    initializer: str,
) -> Model:
    widths = [int(np.prod(input_shape)), *hidden, classes]
    kernels = list(itertools.pairwise(widths))
    specs = _specs([f"dense{i + 1}" for i in range(len(kernels))], kernels)
    act = ACTIVATIONS[activation]

    def logits(weights: Weights, x: Any) -> Any:
        h = _flat(x)
        for i in range(0, len(weights) - 2, 2):
            h = act(tf.matmul(h, weights[i]) + weights[i + 1])
        return tf.matmul(h, weights[-2]) + weights[-1]

    return Model(
        name,
        input_shape,
        classes,
        specs,
        logits,
        lambda rng: INITIALIZERS[initializer](specs, rng),
        dense_input=(0, 1),
        output_bias=len(specs) - 1,
    )


def softmax(input_shape: tuple[int, ...], classes: int, *, initializer: str = "zeros") -> Model:
    """Softmax regression on the pixels: one dense layer."""
    return _dense_stack("softmax", input_shape, classes, (), "relu", initializer)


def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    hidden: Sequence[int] = (200,),
    activation: str = "relu",
    initializer: str = "glorot",
) -> Model:
    """Dense layers of the given widths, then a dense layer to the classes."""
    return _dense_stack("mlp", input_shape, classes, hidden, activation, initializer)


def lenet(
    input_shape: tuple[int, ...], classes: int, *, activation: str = "sigmoid", initializer: str = "uniform"
) -> Model:
    """The LeNet of Zhu et al. (2019), section 4: three 5×5 convolutions of 12 channels, strides 2, 2, 1."""
    height, width, channels = image_shape("lenet", input_shape)
    strides = (2, 2, 1)
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    kernels = [(5, 5, channels, 12), (5, 5, 12, 12), (5, 5, 12, 12), (height * width * 12, classes)]
    specs = _specs(["conv1", "conv2", "conv3", "dense"], kernels)
    act = ACTIVATIONS[activation]

    def logits(weights: Weights, x: Any) -> Any:
        h = x
        for i, stride in enumerate(strides):
            # Zero padding of 2 on every side as in PyTorch; TensorFlow's "SAME" is asymmetric at stride 2.
            h = tf.nn.conv2d(h, weights[2 * i], stride, [[0, 0], [2, 2], [2, 2], [0, 0]])
            h = act(tf.nn.bias_add(h, weights[2 * i + 1]))
        return tf.matmul(_flat(h), weights[-2]) + weights[-1]

    return Model(
        "lenet",
        input_shape,
        classes,
        specs,
        logits,
        lambda rng: INITIALIZERS[initializer](specs, rng),
        output_bias=len(specs) - 1,
    )


def cnn(
    input_shape: tuple[int, ...], classes: int, *, activation: str = "relu", initializer: str = "glorot"
) -> Model:
    """Two 3×3 convolutions (32, 64 channels), 2×2 maximum pooling, dense 128, dense to the classes."""
    height, width, channels = image_shape("cnn", input_shape)
    if min(height, width) < 6:
        raise SettingError(
            "the cnn needs images of at least 6×6 pixels",
            where="model.name",
            value=f"{height}×{width}",
            remedy="Use softmax or mlp",
        )
    features = ((height - 4) // 2) * ((width - 4) // 2) * 64
    kernels = [(3, 3, channels, 32), (3, 3, 32, 64), (features, 128), (128, classes)]
    specs = _specs(["conv1", "conv2", "dense1", "dense2"], kernels)
    act = ACTIVATIONS[activation]

    def logits(weights: Weights, x: Any) -> Any:
        h = act(tf.nn.bias_add(tf.nn.conv2d(x, weights[0], 1, "VALID"), weights[1]))
        # The maximum first: bias and activation, which never fall, change no maximum, and so meet a quarter of it.
        h = tf.nn.max_pool2d(tf.nn.conv2d(h, weights[2], 1, "VALID"), 2, 2, "VALID")
        h = _flat(act(tf.nn.bias_add(h, weights[3])))
        h = act(tf.nn.bias_add(tf.matmul(h, weights[4]), weights[5]))
        return tf.nn.bias_add(tf.matmul(h, weights[6]), weights[7])

    return Model(
        "cnn",
        input_shape,
        classes,
        specs,
        logits,
        lambda rng: INITIALIZERS[initializer](specs, rng),
        output_bias=len(specs) - 1,
    )


ZOO: dict[str, Callable[..., Model]] = {
    "softmax": softmax,
    "mlp": mlp,
    "lenet": lenet,
    "cnn": cnn,
    "transformer": transformer,
}


def image_shape(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of the input, or a refusal by name for data that are no images."""
    if len(input_shape) != 3:
        raise SettingError(
            f"{model} needs images of height, width and channels",
            where="model.name",
            value=input_shape,
            remedy="Use softmax or mlp for flat features",
        )
    return input_shape[0], input_shape[1], input_shape[2]
