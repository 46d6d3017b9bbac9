"""A small causal transformer that predicts the token after a window of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from privfed.errors import SettingError
from privfed.models.functional import Attention, Model, VariableSpec, Weights
from privfed.models.initializers import INITIALIZERS

TOKEN_SCALE = 255
"""Examples hold token ids divided by this (``privfed.data.text``)."""
EPSILON = 1e-5
PER_BLOCK = 12
"""Variables of a block."""


def transformer(
    input_shape: tuple[int, ...], classes: int, *, width: int = 128, blocks: int = 3, heads: int = 4
) -> Model:
    """Token and position embeddings, pre-norm blocks of causal self-attention, logits of the last position.

    After GPT-2 (Radford et al. 2019), without biases in the attention. The labels are the next tokens, so the
    vocabulary is as large as there are classes. Weights start as Glorot's, scales of normalisations as ones
    (kept as differences from one) and biases as zeros.

    Args:
        input_shape: ``(length,)`` of a window.
        classes: Tokens of the vocabulary.
        width: Of embeddings and blocks, a multiple of ``heads``.
        blocks: Attention and feed-forward layers.
        heads: Of each attention.

    Raises:
        SettingError: The examples are no windows of tokens.
    """
    if len(input_shape) != 1:
        raise SettingError(
            "transformer needs windows of token ids",
            where="model.name",
            value=input_shape,
            remedy="Use lenet or cnn for images",
        )
    if width % heads:
        raise ValueError(f"a width of {width} cannot be divided among {heads} heads")
    length = input_shape[0]
    specs = _specs(length, classes, width, blocks)

    def logits(weights: Weights, x: Any) -> Any:
        ids = tf.cast(tf.round(x * TOKEN_SCALE), tf.int32)
        h = _run(weights, ids, blocks, heads)
        last = _normalise(h[:, -1], weights[-4], weights[-3])
        return tf.matmul(last, weights[-2]) + weights[-1]

    def inputs(weights: Weights, ids: Any, block: int) -> Any:
        first = 2 + PER_BLOCK * block
        return _normalise(_run(weights, ids, block, heads), weights[first], weights[first + 1])

    firsts = [2 + PER_BLOCK * block for block in range(blocks)]
    return Model(
        "transformer",
        input_shape,
        classes,
        specs,
        logits,
        lambda rng: INITIALIZERS["glorot"](specs, rng),
        output_bias=len(specs) - 1,
        embedding=0,
        attention=Attention(tuple((first + 2, first + 3, first + 4) for first in firsts), inputs),
    )


def _specs(length: int, tokens: int, width: int, blocks: int) -> tuple[VariableSpec, ...]:
    specs = [VariableSpec("token/embedding", (tokens, width)), VariableSpec("position/embedding", (length, width))]
    for block in range(blocks):
        shapes: Sequence[tuple[str, tuple[int, ...]]] = (
            ("norm1/scale", (width,)),
            ("norm1/bias", (width,)),
            ("query/kernel", (width, width)),
            ("key/kernel", (width, width)),
            ("value/kernel", (width, width)),
            ("attended/kernel", (width, width)),
            ("norm2/scale", (width,)),
            ("norm2/bias", (width,)),
            ("dense1/kernel", (width, 4 * width)),
            ("dense1/bias", (4 * width,)),
            ("dense2/kernel", (4 * width, width)),
            ("dense2/bias", (width,)),
        )
        specs += [VariableSpec(f"block{block + 1}/{name}", shape) for name, shape in shapes]
    specs += [VariableSpec("norm/scale", (width,)), VariableSpec("norm/bias", (width,))]
    return (*specs, VariableSpec("dense/kernel", (width, tokens)), VariableSpec("dense/bias", (tokens,)))


def _run(weights: Weights, ids: Any, blocks: int, heads: int) -> Any:
    """What the first ``blocks`` blocks make of ``ids`` ``[n, t]``: ``[n, t, width]``."""
    embedding = weights[0]
    # A product instead of a look-up: its gradient is a tensor like those of all other variables.
    h = tf.tensordot(tf.one_hot(ids, embedding.shape[0], dtype=embedding.dtype), embedding, 1)
    h += weights[1][: tf.shape(ids)[1]]
    for block in range(blocks):
        part = weights[2 + PER_BLOCK * block : 2 + PER_BLOCK * (block + 1)]
        h += _attend(_normalise(h, part[0], part[1]), part[2:6], heads)
        inner = tf.nn.gelu(tf.tensordot(_normalise(h, part[6], part[7]), part[8], 1) + part[9])
        h += tf.tensordot(inner, part[10], 1) + part[11]
    return h


def _normalise(h: Any, scale: Any, bias: Any) -> Any:
    """Layer normalisation (Ba et al. 2016); ``scale`` is kept as its difference from one."""
    mean, variance = tf.nn.moments(h, -1, keepdims=True)
    return (h - mean) * tf.math.rsqrt(variance + EPSILON) * (1 + scale) + bias


def _attend(h: Any, kernels: Weights, heads: int) -> Any:
    """Causal self-attention (Vaswani et al. 2017, section 3.2)."""
    shape = tf.shape(h)
    n, t, width = shape[0], shape[1], h.shape[-1]
    query, key, value = (
        tf.transpose(tf.reshape(tf.tensordot(h, kernel, 1), [n, t, heads, width // heads]), [0, 2, 1, 3])
        for kernel in kernels[:3]
    )
    scores = tf.matmul(query, key, transpose_b=True) / np.sqrt(width // heads)
    seen = tf.linalg.band_part(tf.ones([t, t], h.dtype), -1, 0)
    attended = tf.matmul(tf.nn.softmax(scores + (seen - 1) * 1e9), value)
    return tf.tensordot(tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [n, t, width]), kernels[3], 1)
