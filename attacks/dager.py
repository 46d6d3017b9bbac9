"""Exact sequences from a transformer's gradient: DAGER (Petrov et al. 2024, arXiv:2405.15586).

The gradient of a kernel is a sum of outer products with what the kernel was applied to, so its columns span those
inputs and nothing else, as long as there are fewer of them than the layer is wide (section 4). Inputs of the first
block depend on a token and its position, those of the second, in a causal model, on a token and all before it:
prefixes are grown token by token, and only those stay whose second input lies in the span (section 5.2). Query,
key and value are taken together. The output layer's gradient then gives each sequence its label and its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.gradient import estimate_gradient
from attacks.tokens import moved_rows
from privfed.models.functional import Model
from privfed.transcript import Observation, Observer, View

Matrix = NDArray[np.float64]

FIRST_BLOCK, SECOND_BLOCK = 0, 1
NEAR = 0.05
"""Relative distance from the span within which an input is in it: those of tokens that do not occur are tenths."""
ROUNDING = 5e-7
"""Singular values below this share of the largest are rounding of single-precision gradients."""
ABOVE_NOISE = 1.5
"""Times the expected largest singular value of the noise, above which a singular value counts."""
SPARE = 8
"""Dimensions that a span must leave free: within fewer, tokens that do not occur come near it too."""
FAINT = 1e-3
"""Sequences whose share of the output layer's gradient is this small beside the largest are not behind it."""
LEVELS = 255
"""Token ids are divided by it in examples."""


@dataclass(frozen=True)
class Dager:
    """Grows the sequences that the gradients of two attention layers allow.

    Attributes:
        most: Prefixes kept at once, those nearest to the span first.
    """

    most: int = 512

    name: ClassVar[str] = "dager"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("the model and the weights the update started from", "the noise in the vector"),
        assumptions=(
            "a causal transformer of three blocks or more, of which the first two see all positions' gradients",
            "fewer different prefixes behind the vector than the model is wide",
            "one local step, or steps so small that the weights hardly move",
            "no noise beyond that of rounding",
        ),
        inputs=("tokens",),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; it draws nothing from ``rng``."""
        seen, model = view.observations[index], view.model
        if model.attention is None or model.embedding is None:
            raise NotInvertible(f"model {model.name} is no transformer whose blocks are known")
        if len(model.attention.kernels) <= SECOND_BLOCK + 1:
            raise NotInvertible(
                f"model {model.name} has {len(model.attention.kernels)} blocks: in the last one only the last "
                "position has a gradient, so that three are needed"
            )
        gradient = estimate_gradient(seen, view.plan).vector
        scale = float(np.linalg.norm(gradient) / np.linalg.norm(seen.vector / np.abs(seen.vector).max()))
        scale /= float(np.abs(seen.vector).max())
        tokens, _ = moved_rows(seen, view, model.embedding)
        spans = [_span(seen, model, gradient, scale, block) for block in (FIRST_BLOCK, SECOND_BLOCK)]
        weights = model.unflatten(seen.weights)
        found = self._grow(model, weights, tokens, spans) / LEVELS
        found, labels, residual = _explain(model, weights, found, gradient)
        return Guess(found, labels, residual, evaluations=len(found) + 1, tokens=tokens)

    def _grow(
        self, model: Model, weights: list[Any], tokens: NDArray[np.int64], spans: list[Matrix]
    ) -> NDArray[np.int64]:
        """Sequences ``[k, length]`` all of whose prefixes lie in the spans, the nearest first."""
        prefixes = np.zeros((1, 0), np.int64)
        worst = np.zeros(1)
        for position in range(model.input_shape[0]):
            # The first block asks for a token at a position: what stands before it does not matter.
            alone = np.repeat(tokens[:, None], position + 1, axis=1)
            fits = _distance(model, weights, alone, FIRST_BLOCK, spans[0]) < NEAR
            grown = np.concatenate(
                [np.repeat(prefixes, fits.sum(), axis=0), np.tile(tokens[fits], len(prefixes))[:, None]], axis=1
            )
            if not len(grown):
                break
            distance = _distance(model, weights, grown, SECOND_BLOCK, spans[1])
            worst = np.maximum(np.repeat(worst, fits.sum()), distance)
            # Inputs of different prefixes are independent: there are no more of them than dimensions.
            stay = np.argsort(worst, kind="stable")[: min(self.most, spans[1].shape[1])]
            stay = stay[worst[stay] < NEAR]
            prefixes, worst = grown[stay], worst[stay]
            if not len(prefixes):
                break
        if not len(prefixes) or prefixes.shape[1] < model.input_shape[0]:
            raise NotInvertible(
                f"no sequence of the {len(tokens)} tokens that moved lies in the gradients' spans beyond "
                f"{prefixes.shape[1]} tokens: local steps moved the weights, or there is noise"
            )
        return prefixes


def _span(seen: Observation, model: Model, gradient: Matrix, scale: float, block: int) -> Matrix:
    """Orthonormal columns ``[width, rank]`` that span the inputs of a block's kernels.

    What rounding and known noise put into the gradient is told by the largest singular value that a random matrix
    of their size has (Davidson & Szarek 2001, theorem 2.13).
    """
    assert model.attention is not None  # the caller asked
    indices = model.attention.kernels[block]
    parts, start = model.unflatten(gradient), model.unflatten(seen.weights)
    together = np.concatenate([parts[i] for i in indices], axis=1)
    left, values, _ = np.linalg.svd(together, full_matrices=False)
    steps = np.concatenate([np.spacing(np.abs(start[i]).astype(np.float32)) for i in indices], axis=1)
    stddev = scale * float(np.sqrt(np.mean(steps.astype(np.float64) ** 2) / 12 + seen.noise_stddev**2))
    noise = ABOVE_NOISE * stddev * (np.sqrt(together.shape[0]) + np.sqrt(together.shape[1]))
    rank = int(np.sum(values > max(noise, ROUNDING * values[0])))
    if rank == 0:
        raise NotInvertible(f"the gradient of attention layer {block + 1} is below its noise")
    if rank > len(left) - SPARE:
        raise NotInvertible(
            f"the gradient of attention layer {block + 1} spans {rank} of {len(left)} dimensions: it excludes no "
            "token; there are too many behind it, or noise is in it"
        )
    return np.asarray(left[:, :rank])


def _distance(model: Model, weights: list[Any], ids: NDArray[np.int64], block: int, span: Matrix) -> Matrix:
    """Of the block's input at the last position of ``ids`` ``[n, t]``, relative to its length: ``[n]``."""
    import tensorflow as tf

    assert model.attention is not None  # the caller asked
    if not len(ids):
        return np.zeros(0)
    inputs = model.attention.inputs(
        [tf.constant(w, tf.float32) for w in weights], tf.constant(ids, tf.int32), block
    )
    vectors = inputs[:, -1].numpy().astype(np.float64)
    outside = vectors - vectors @ span @ span.T
    return np.asarray(np.linalg.norm(outside, axis=1) / np.linalg.norm(vectors, axis=1))


def _explain(
    model: Model, weights: list[Any], found: Matrix, gradient: Matrix
) -> tuple[Matrix, NDArray[np.int64] | None, float]:
    """The sequences that have a share in the gradient, their labels ``[k]``, and what is left unexplained.

    The output kernel's gradient is a sum of ``h ⊗ (probabilities − one_hot(label))``: with the features ``h`` of
    the sequences known, least squares gives each its second factor.
    """
    import tensorflow as tf

    if model.output_bias is None:
        return found, None, 1.0
    variables, x = [tf.constant(w, tf.float64) for w in weights], tf.constant(found)
    kernel = model.output_bias - 1
    features = _features(model, variables, x, kernel)
    probabilities = tf.nn.softmax(model.logits(variables, x)).numpy()
    errors = np.linalg.lstsq(features.T, model.unflatten(gradient)[kernel], rcond=None)[0]
    labels = errors.argmin(axis=1)
    chosen = np.arange(len(found)), labels
    shares = np.maximum(-errors[chosen] / np.maximum(1 - probabilities[chosen], 1e-12), 0.0)
    shares /= max(float(shares.sum()), 1e-300)
    behind = shares > FAINT * shares.max()
    found, labels, shares = found[behind], labels[behind], shares[behind]
    x = tf.constant(found)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model.logits(variables, x))
        loss = tf.reduce_sum(losses * tf.constant(shares))
    ours = np.concatenate([part.numpy().reshape(-1) for part in tape.gradient(loss, variables)])
    # The gradient may have lost its length: what counts is the direction.
    along = float(ours @ gradient) / (float(np.linalg.norm(ours) * np.linalg.norm(gradient)) or 1.0)
    return found, labels.astype(np.int64), float(np.sqrt(max(0.0, 1 - max(along, 0.0) ** 2)))


def _features(model: Model, variables: list[Any], x: Any, kernel: int) -> Matrix:
    """What the output layer is applied to ``[k, width]``: the gradient of a logit to its column of the kernel."""
    import tensorflow as tf

    rows = []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            tape.watch(variables[kernel])
            logit = model.logits(variables, x[i : i + 1])[0, 0]
        rows.append(tape.gradient(logit, variables[kernel]).numpy()[:, 0])
    return np.stack(rows)
