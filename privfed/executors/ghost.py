"""Ghost clipping: the clipped sum of one-step updates of dense models, without any single update.

The gradient of a dense layer is ``Σ aᵢ dᵢᵀ`` over a client's examples, with the layer's inputs ``a`` and the
loss's derivatives ``d`` by its outputs. Its squared norm is ``Σᵢⱼ (aᵢ·aⱼ)(dᵢ·dⱼ)`` (Goodfellow 2015; with several
terms for each unit of privacy, Li et al. 2022, section 4), so that norms cost two small Gram matrices for each
client, and the sum over all clients one matrix product with ``d`` scaled by the clip factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.executors.accumulate import clip_factor
from privfed.executors.dense import DenseLayer, dense_layers
from privfed.executors.population import as_model_input
from privfed.federated.client_work import LocalTraining
from privfed.models.functional import Model

ROWS = 1024
"""Examples in a call, more when one client has more: enough for fast products, few enough for the cache."""

PIECE = 128
"""Most float32 products in a scalar product that are added up before float64 takes over."""

GRAM_ERROR = 2.0**-16 * 1.01
"""Error of a squared norm over ``(Σᵢ |aᵢ||dᵢ|)²``.

Each scalar product of pieces of 128 is off by less than 128 · 2⁻²⁴ of the product of lengths, in any order of
summation, and two of them are multiplied. The sum can cancel, so the error is not relative to it.
"""


def worth_it(sizes: NDArray[np.int64], training: LocalTraining, widths: Sequence[tuple[int, int]]) -> bool:
    """Whether clients take one step, and Gram matrices cost no more than the products of the training itself."""
    largest = int(sizes.max(initial=0))
    if not training.takes_one_step(largest):
        return False
    return largest * sum(a + b for a, b in widths) <= 2 * sum(a * b for a, b in widths)


def blocks(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions of clients that go into one call each, alike in size."""
    order = np.argsort(sizes, kind="stable")
    cuts, first = list[int](), 0
    for i in range(1, len(order)):
        if (i + 1 - first) * sizes[order[i]] > ROWS:
            cuts.append(i)
            first = i
    return np.split(order, cuts)


def places(sizes: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where the examples of clients are in a block, ``[clients, largest]``; one behind the last for none."""
    ends = np.cumsum(sizes)
    column = np.arange(sizes.max())
    return np.where(column < sizes[:, None], (ends - sizes)[:, None] + column, ends[-1]).astype(np.int32)


def ghost_graph(model: Model, feature_dtype: Any) -> Any:
    """``(weights, features, labels, rate, rows [n], sizes [k], places [k, m], clip norm)`` as ``loop.sum_graph``.

    The total is in float32: within a block, contributions are added up inside of a matrix product. Momentum and
    proximal term have no say in a first step.
    """

    def train(weights, features, labels, rate, rows, sizes, places, clip_norm):  # type: ignore[no-untyped-def]  # traced
        w = model.unflatten(weights)
        x, y = as_model_input(tf.gather(features, rows)), tf.gather(labels, rows)
        logits = model.logits(w, x)
        layers = dense_layers(w, x, logits)
        assert layers is not None  # asked before this path was chosen
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        right = tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), y), tf.float32)
        # Each client's step follows the mean over its own examples.
        mean = tf.reduce_sum(losses / tf.repeat(tf.cast(sizes, tf.float32), sizes))
        derivatives = tf.gradients(mean, [layer.outputs for layer in layers], unconnected_gradients="zero")

        def by_client(v: Any) -> Any:
            """``[n, width]`` to ``[k, m, width]``, filled up with zeros."""
            shape = [tf.shape(places)[0], tf.shape(places)[1], v.shape[1]]
            return tf.cond(
                tf.equal(tf.size(places), tf.size(rows)),
                lambda: tf.reshape(v, shape),
                lambda: tf.gather(tf.pad(v, [[0, 1], [0, 0]]), places),
            )

        pairs = [(by_client(layer.inputs), by_client(d)) for layer, d in zip(layers, derivatives, strict=True)]
        squared, at_most = _squared_norms(layers, pairs)
        wide = tf.cast(rate, tf.float64)
        factor = clip_factor(wide * tf.sqrt(at_most), clip_norm, model.dimension)
        finite = tf.math.is_finite(at_most)
        scale = tf.repeat(tf.cast(tf.where(finite, factor, tf.zeros_like(factor)), tf.float32), sizes)[:, None]
        spoilt = tf.repeat(~finite, sizes)[:, None]
        total = _total(model, layers, derivatives, scale, spoilt, rate)
        known = tf.cast(tf.reduce_sum(by_client(tf.stack([losses, right], 1)), 1), tf.float64)
        return total, tf.square(wide) * squared, known[:, 0], known[:, 1]

    return tf.function(
        train,
        input_signature=[
            tf.TensorSpec([model.dimension], tf.float32),
            tf.TensorSpec([None, *model.input_shape], feature_dtype),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([], tf.float64),
        ],
        autograph=False,
    ).get_concrete_function()


def _squared_norms(layers: Sequence[DenseLayer], pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Squared norms of the clients' gradients ``[k]``, and bounds on them; not finite where gradients are not."""

    def by(gram: Any) -> list[Any]:
        squared = at_most = tf.constant(0.0, tf.float64)
        for layer, (a, d) in zip(layers, pairs, strict=True):
            # A bias is a further input that is always one.
            inputs, outputs = gram(a) + (layer.bias is not None), gram(d)
            lengths = tf.sqrt(tf.linalg.diag_part(inputs) * tf.linalg.diag_part(outputs))
            here = tf.maximum(tf.reduce_sum(inputs * outputs, [1, 2]), 0.0)
            squared += here
            at_most += here + GRAM_ERROR * tf.square(tf.reduce_sum(lengths, 1))
        return [squared, at_most]

    fast = by(_gram_in_pieces)
    # Where float32 overflows, float64 tells a long update from one that is not finite.
    usual = tf.reduce_all(tf.math.is_finite(fast[1]))
    squared, at_most = tf.cond(usual, lambda: fast, lambda: by(_gram_in_float64))
    return squared, at_most


def _gram_in_pieces(v: Any) -> Any:
    """``[k, m, width]`` to scalar products of rows ``[k, m, m]``, float64."""
    width = v.shape[2]
    piece = max(divisor for divisor in range(1, PIECE + 1) if width % divisor == 0)
    if piece < min(width, PIECE // 2):  # a width without a good divisor: make it one
        v, piece = tf.pad(v, [[0, 0], [0, 0], [0, -width % PIECE]]), PIECE
    shape = tf.shape(v)
    pieces = tf.transpose(tf.reshape(v, [shape[0], shape[1], v.shape[2] // piece, piece]), [0, 2, 1, 3])
    return tf.reduce_sum(tf.cast(tf.matmul(pieces, pieces, transpose_b=True), tf.float64), 1)


def _gram_in_float64(v: Any) -> Any:
    v = tf.cast(v, tf.float64)
    return tf.matmul(v, v, transpose_b=True)


def _total(
    model: Model, layers: Sequence[DenseLayer], derivatives: Sequence[Any], scale: Any, spoilt: Any, rate: Any
) -> Any:
    def clean(v: Any) -> Any:
        return tf.cond(tf.reduce_any(spoilt), lambda: tf.where(spoilt, tf.zeros_like(v), v), lambda: v)

    total: list[Any] = [None] * len(model.variables)
    for layer, d in zip(layers, derivatives, strict=True):
        scaled = clean(d) * (-rate * scale)
        total[layer.kernel] = tf.matmul(clean(layer.inputs), scaled, transpose_a=True)
        if layer.bias is not None:
            total[layer.bias] = tf.reduce_sum(scaled, 0)
    return tf.concat([tf.reshape(t, [-1]) for t in total], 0)
