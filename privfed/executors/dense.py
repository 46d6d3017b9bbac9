"""Find the dense layers of a model that has nothing else, by the operations that its logits are made of.

It works on what a model does, not on how it was written, so a user's Keras model is understood like the zoo's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from privfed.models.functional import Model

_ELEMENTWISE = frozenset(
    {"Abs", "Add", "AddV2", "BiasAdd", "Cast", "Elu", "Erf", "Exp", "Expm1", "Identity", "IdentityN"}
    | {"LeakyRelu", "Log1p", "Maximum", "Minimum", "Mul", "Neg", "Pow", "RealDiv", "Relu", "Relu6"}
    | {"Rsqrt", "Select", "SelectV2", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Square"}
    | {"Sub", "Tanh"}
)
"""Operations that leave each example to itself, as long as no tensor holds anything but examples or constants."""

_SHAPES = frozenset({"Const", "Pack", "Prod", "Reshape", "Shape", "StridedSlice"})
"""What flattening is made of."""


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """``outputs = inputs · kernel + bias`` in a graph.

    Attributes:
        kernel: Index of the kernel among the model's variables.
        bias: Of the bias; ``None`` without.
        inputs: ``[batch, in]``.
        outputs: ``[batch, out]``, before the activation.
    """

    kernel: int
    bias: int | None
    inputs: Any
    outputs: Any


def dense_layers(weights: Sequence[Any], x: Any, logits: Any) -> list[DenseLayer] | None:
    """The layers, in no order, when ``logits`` are made of ``x`` by dense layers and activations alone.

    Call it while the graph is traced, before gradients use the weights as well. ``None`` when some variable is
    used in any other way or more than once, or when any operation could mix examples.
    """
    if not all(_leaves_examples_alone(op) for op in _operations_between(logits, [*weights, x])):
        return None
    index = {id(w): i for i, w in enumerate(weights)}
    layers, biased = [], set[int]()
    for k, kernel in enumerate(weights):
        product = _only_use(kernel, "MatMul")
        if product is None or product.get_attr("transpose_a") or product.get_attr("transpose_b"):
            if kernel.shape.rank == 1:
                continue  # a bias, which its layer must claim below
            return None
        if product.inputs[1] is not kernel:
            return None
        outputs, bias = product.outputs[0], None
        addition = _only_use(outputs, "BiasAdd", "AddV2")
        other = outputs if addition is None else next((t for t in addition.inputs if t is not outputs), outputs)
        if addition is not None and id(other) in index:
            bias = index[id(other)]
            if _only_use(other, "BiasAdd", "AddV2") is None or other.shape != outputs.shape[1:]:
                return None
            biased.add(bias)
            outputs = addition.outputs[0]
        layers.append(DenseLayer(k, bias, product.inputs[0], outputs))
    return layers if len(layers) + len(biased) == len(weights) else None


def dense_widths(model: Model) -> list[tuple[int, int]] | None:
    """Inputs and outputs of each dense layer of a model that has nothing else; ``None`` for other models."""
    with tf.Graph().as_default():
        # Symbolic inputs: no value is ever fed, only the operations between them and the logits are looked at.
        weights = [tf.compat.v1.placeholder(tf.float32, spec.shape) for spec in model.variables]
        x = tf.compat.v1.placeholder(tf.float32, (None, *model.input_shape))
        layers = dense_layers(weights, x, model.logits(weights, x))
    return None if layers is None else [model.variables[layer.kernel].shape for layer in layers]  # type: ignore[misc]  # kernels have two axes


def _operations_between(output: Any, inputs: Sequence[Any]) -> Iterator[Any]:
    ends, waiting, seen = {id(t) for t in inputs}, [output], set[int]()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in ends or id(tensor.op) in seen:
            continue
        seen.add(id(tensor.op))
        yield tensor.op
        waiting.extend(tensor.op.inputs)


def _leaves_examples_alone(op: Any) -> bool:
    if op.type == "Reshape":
        before, after = (t.shape.as_list() for t in (op.inputs[0], op.outputs[0]))
        # One axis of unknown length, the examples, and the same numbers behind it.
        return bool(before and after and None not in before[1:] + after[1:]) and bool(
            np.prod(before[1:]) == np.prod(after[1:])
        )
    return op.type == "MatMul" or op.type in _ELEMENTWISE or op.type in _SHAPES


def _only_use(tensor: Any, *types: str) -> Any:
    uses = tensor.consumers()
    return uses[0] if len(uses) == 1 and uses[0].type in types else None
