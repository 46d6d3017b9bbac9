"""What a Keras model must not have to be trained federated, each refused with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from privfed.errors import SettingError
from privfed.models.functional import Model

_STATEFUL_BUT_HARMLESS = {"ReadVariableOp", "ResourceGather", "Placeholder", "While", "If", "Case", "Assert"} | {
    "PartitionedCall",
    "StatefulPartitionedCall",
}
"""Stateful operations whose result depends on nothing but weights and input."""


def check_model(model: Model, keras: Any) -> None:
    """Refuse a Keras model that is not a pure function of trainable weights that gives logits.

    Raises:
        SettingError: At ``model.name``, with the reason.
    """

    def refuse(what: str, remedy: str = "") -> SettingError:
        return SettingError(what, where="model.name", value=model.name, remedy=remedy)

    if not keras.trainable_variables:
        raise refuse("the model has no trainable weights")
    if keras.non_trainable_variables:
        names = ", ".join(v.name.partition(":")[0] for v in keras.non_trainable_variables[:3])
        raise refuse(
            f"the model has weights that training does not move by gradients: {names}",
            "Batch normalisation keeps statistics of the clients' data: use GroupNormalization or "
            "LayerNormalization; unfreeze frozen layers",
        )
    types = {v.dtype.name for v in keras.trainable_variables}
    if types != {"float32"}:
        raise refuse(f"the weights must be float32, they are {', '.join(sorted(types))}")

    rng = np.random.default_rng(0xC0)
    x = tf.constant(rng.uniform(0, 1, (4, *model.input_shape)).astype(np.float32))
    stateful, random = _impure_operations(keras, model.input_shape)
    if random:
        raise refuse(
            f"the model draws random numbers while it trains ({', '.join(random)}), so a training could not be "
            "repeated and updates of equal clients would differ",
            "Remove Dropout, noise and random augmentation layers",
        )
    if stateful:
        raise refuse(f"the model changes or reads state while it trains ({', '.join(stateful)})")

    logits = keras(x, training=False)
    if not tf.is_tensor(logits):
        raise refuse(f"the model must have one output, it gives a {type(logits).__name__}")
    if logits.shape.as_list() != [4, model.classes]:
        raise refuse(
            f"the model must give logits of shape [batch, {model.classes}], it gives "
            f"{['batch', *logits.shape.as_list()[1:]]}".replace("'", "")
        )
    if logits.dtype != tf.float32:
        raise refuse(f"the logits must be float32, they are {logits.dtype.name}")
    if keras.losses:
        raise refuse(
            "the model adds losses of its own (regularizers), which local training does not take",
            "Remove the regularizers",
        )
    _check_purity(model, keras, x, rng, refuse)


def _check_purity(model: Model, keras: Any, x: Any, rng: np.random.Generator, refuse: Any) -> None:
    original = [v.numpy() for v in keras.trainable_variables]
    moved = [w + rng.normal(0, 0.1, w.shape).astype(np.float32) for w in original]
    pure = model.logits(moved, x).numpy()
    try:
        for variable, value in zip(keras.trainable_variables, moved, strict=True):
            variable.assign(value)
        expected = keras(x, training=False).numpy()
        training = keras(x, training=True).numpy()
    finally:
        for variable, value in zip(keras.trainable_variables, original, strict=True):
            variable.assign(value)
    if not np.allclose(pure, expected, rtol=1e-4, atol=1e-5):
        raise refuse("some layer does not read its weights from its attributes, so they cannot be passed to it")
    if not np.allclose(training, expected, rtol=1e-4, atol=1e-5):
        raise refuse("the model computes something else in training than in use (training=True)")
    within = expected.min() >= 0 and expected.max() <= 1
    last = keras.layers[-1] if keras.layers else keras
    sigmoid = getattr(getattr(last, "activation", None), "__name__", "") == "sigmoid"
    if within and (sigmoid or np.allclose(expected.sum(1), 1, atol=1e-4)):
        raise refuse(
            f"the model ends in a {'sigmoid' if sigmoid else 'softmax'}: training takes logits and applies the "
            "softmax itself, a second squashing flattens every gradient",
            "Remove the activation of the last layer",
        )


def _impure_operations(keras: Any, input_shape: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Names of other stateful operations and of random ones in a training step's forward pass."""

    @tf.function(input_signature=[tf.TensorSpec([None, *input_shape], tf.float32)])
    def forward(x):  # type: ignore[no-untyped-def]  # traced
        return keras(x, training=True)

    graph = forward.get_concrete_function().graph
    nested = [node.op for function in graph.as_graph_def().library.function for node in function.node_def]
    names = {*nested, *(operation.type for operation in graph.get_operations())}
    random = {op for op in names if "Random" in op or "Rng" in op or op in ("Multinomial", "TruncatedNormal")}
    stateful = {operation.type for operation in graph.get_operations() if operation.op_def.is_stateful}
    # Only the outer graph knows which operations have state; inside functions the writers are told by name.
    stateful |= {op for op in nested if op.startswith("Assign") or "PyFunc" in op}
    return sorted(stateful - _STATEFUL_BUT_HARMLESS - random), sorted(random)
