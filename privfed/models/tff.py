"""Models to ``tff.learning.models.FunctionalModel`` and back."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from numpy.typing import NDArray

from privfed.errors import SettingError
from privfed.models.functional import Model, VariableSpec, Vector, Weights, cross_entropy
from privfed.models.structure import find_dense_input, find_output_bias


def to_functional_model(model: Model, initial: Vector | None = None, *, seed: int = 0) -> Any:
    """The model as TFF's, with mean cross-entropy as its loss, and loss and accuracy as its metrics.

    Args:
        model: Any model.
        initial: Initial weights ``[d]``; ``model.initial_vector(seed)`` when not given.
        seed: Of the initial weights.
    """
    vector = model.initial_vector(seed) if initial is None else np.asarray(initial, np.float32)

    def predict_on_batch(model_weights: Any, x: Any, training: bool = True) -> Any:
        return model.logits(list(model_weights[0]), x)

    def loss(output: Any, label: Any, sample_weight: Any = None) -> Any:
        if sample_weight is None:
            return cross_entropy(output, label)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=output)
        return tf.reduce_sum(losses * sample_weight) / tf.reduce_sum(sample_weight)

    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(model.unflatten(vector)), ()),
        predict_on_batch_fn=tf.function(predict_on_batch),
        loss_fn=tf.function(loss),
        metrics_fns=(tf.function(_no_examples), tf.function(_count_batch), tf.function(_means)),
        input_spec=(
            tf.TensorSpec([None, *model.input_shape], tf.float32),
            tf.TensorSpec([None], tf.int32),
        ),
    )


# Sums and not means, so that TFF's `sum_then_finalize` gives means over examples and not over clients.
def _no_examples() -> Any:
    return collections.OrderedDict(loss=tf.zeros([]), accuracy=tf.zeros([]), num_examples=tf.zeros([]))


def _count_batch(state: Any, labels: Any, batch_output: Any, sample_weight: Any = None) -> Any:
    logits = batch_output.predictions
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    right = tf.cast(tf.equal(tf.argmax(logits, 1, labels.dtype), labels), tf.float32)
    return collections.OrderedDict(
        loss=state["loss"] + tf.reduce_sum(losses),
        accuracy=state["accuracy"] + tf.reduce_sum(right),
        num_examples=state["num_examples"] + tf.cast(tf.size(labels), tf.float32),
    )


def _means(state: Any) -> Any:
    seen = state["num_examples"]
    return collections.OrderedDict(
        loss=tf.math.divide_no_nan(state["loss"], seen),
        accuracy=tf.math.divide_no_nan(state["accuracy"], seen),
        num_examples=seen,
    )


def from_functional_model(functional: Any, name: str = "tff") -> Model:
    """A TFF model as ours; it starts from the initial weights that it carries, whatever the seed.

    Raises:
        SettingError: At ``model.name``: the model has non-trainable weights, its input is not ``(x, y)`` with
            one tensor each, its output is not ``[batch, classes]``, or its loss is not mean cross-entropy on
            logits.
    """

    def refuse(what: str, remedy: str = "") -> SettingError:
        return SettingError(what, where="model.name", value=name, remedy=remedy)

    trainable, fixed = functional.initial_weights
    if tf.nest.flatten(fixed):
        raise refuse("the TFF model has non-trainable weights, which clients would not send back")
    values = [np.asarray(w) for w in tf.nest.flatten(trainable)]
    if any(value.dtype != np.float32 for value in values):
        raise refuse("the TFF model's weights must be float32")
    spec = functional.input_spec
    if not (isinstance(spec, tuple | list) and len(spec) == 2 and all(isinstance(s, tf.TensorSpec) for s in spec)):
        raise refuse("the TFF model's input_spec must be a pair of TensorSpec (x, y)")
    input_shape = tuple(spec[0].shape[1:].as_list())
    if None in input_shape:
        raise refuse(f"the TFF model's examples must have a fixed shape, they have {input_shape}")

    def logits(weights: Weights, x: Any) -> Any:
        packed = tf.nest.pack_sequence_as(trainable, [tf.convert_to_tensor(w) for w in weights])
        return functional.predict_on_batch((packed, fixed), tf.convert_to_tensor(x), True)

    def initialize(rng: np.random.Generator) -> list[NDArray[np.float32]]:
        return [value.copy() for value in values]

    rng = np.random.default_rng(0xF0)
    x = tf.constant(rng.uniform(0, 1, (3, *input_shape)), spec[0].dtype)
    output = logits([value + rng.normal(0, 0.1, value.shape).astype(np.float32) for value in values], x)
    if not tf.is_tensor(output) or output.shape.rank != 2:
        raise refuse("the TFF model must give one tensor of logits [batch, classes]")
    classes = int(output.shape[1])
    labels = tf.constant(rng.integers(0, classes, [3, *spec[1].shape[1:].as_list()]), spec[1].dtype)
    loss, expected = (
        functional.loss(output, labels),
        cross_entropy(output, tf.reshape(tf.cast(labels, tf.int32), [-1])),
    )
    if not np.allclose(loss, expected, rtol=1e-4):
        raise refuse(
            f"its loss is not mean cross-entropy on logits: {float(loss):.6g}, not {float(expected):.6g}",
            "Let it give logits, and take SparseCategoricalCrossentropy(from_logits=True)",
        )
    specs = tuple(VariableSpec(f"weight{i}", value.shape) for i, value in enumerate(values))
    model = Model(name, input_shape, classes, specs, logits, initialize)
    return Model(
        name,
        input_shape,
        classes,
        specs,
        logits,
        initialize,
        dense_input=find_dense_input(model),
        output_bias=find_output_bias(model),
    )
