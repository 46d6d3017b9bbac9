"""Cut a model in two at its first dense layer: what comes before it, and a model that begins with it.

Behind convolutions a dense layer is to its own inputs what a first dense layer is to pixels: its gradient is made
of one product of input and unit gradient per example (Phong et al. 2018, section III). So attacks on a first dense
layer give the features that reached it. The layer is looked up in the graph that TensorFlow traces of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from privfed.models.functional import Model
from privfed.transcript import Observation


@dataclass(frozen=True, eq=False)
class InnerDense:
    """A model in two parts.

    Attributes:
        front: ``(weights of the whole model, x [batch, *input_shape]) -> features [batch, n]``, float64.
        tail: From features ``[batch, n]`` to logits; its ``dense_input`` is the layer.
        indices: Of the tail's variables among those of the whole model.
    """

    front: Callable[[Any, Any], Any]
    tail: Model
    indices: tuple[int, ...]

    @property
    def features(self) -> int:
        """How many numbers reach the layer for one example."""
        return self.tail.input_shape[0]

    def behind(self, model: Model, observation: Observation) -> Observation:
        """What an observer of ``model`` sees of the tail."""

        def parts(vector: Any) -> Any:
            whole = model.unflatten(np.asarray(vector))
            return np.concatenate([whole[i].reshape(-1) for i in self.indices])

        return replace(observation, weights=parts(observation.weights), vector=parts(observation.vector))


@lru_cache(maxsize=8)
def find_inner_dense(model: Model) -> InnerDense | None:
    """The cut at the first dense layer that has a kernel and bias of its own, and other layers before it.

    ``None`` where there is no such layer, or no graph of it, or where the layer is applied to the raw input.
    """
    import tensorflow as tf

    if model.dense_input is not None or model.embedding is not None:
        return None
    signature = [tf.TensorSpec([None, *model.input_shape], tf.float64)]
    signature += [tf.TensorSpec(spec.shape, tf.float64) for spec in model.variables]
    whole = tf.compat.v1.wrap_function(lambda x, *weights: model.logits(list(weights), x), signature)
    x, *weights = whole.inputs[: len(signature)]
    (logits,) = whole.outputs
    owners = {id(weight): i for i, weight in enumerate(weights)}
    for product in whole.graph.get_operations():
        layer = _layer(product, owners)
        if layer is None:
            continue
        features = product.inputs[0]
        front, tail = _needed(features, owners, None), _needed(logits, owners, features)
        if not front or front & tail or not set(layer) <= tail or features.shape[-1] is None:
            continue
        indices = tuple(sorted(tail))
        before = whole.prune([x, *weights], features)
        behind = whole.prune([features, *(weights[i] for i in indices)], logits)
        return InnerDense(
            _reversed(before),
            _tail(model, int(features.shape[-1]), layer, indices, _reversed(behind)),
            indices,
        )
    return None


def _reversed(function: Any) -> Callable[[Any, Any], Any]:
    """The function of inputs and weights as one of weights and inputs."""
    return lambda weights, inputs: function(inputs, *weights)


def _tail(model: Model, features: int, layer: tuple[int, int], indices: tuple[int, ...], logits: Any) -> Model:
    last = model.output_bias
    return Model(
        f"{model.name} behind its features",
        (features,),
        model.classes,
        tuple(model.variables[i] for i in indices),
        logits,
        lambda rng: [value for i, value in enumerate(model.initialize(rng)) if i in indices],
        dense_input=(indices.index(layer[0]), indices.index(layer[1])),
        output_bias=indices.index(last) if last is not None and last in indices else None,
    )


def _layer(product: Any, owners: dict[int, int]) -> tuple[int, int] | None:
    """Kernel and bias, if the operation is the product of a dense layer and nothing else has these two."""
    if product.type != "MatMul" or product.get_attr("transpose_a") or product.get_attr("transpose_b"):
        return None
    kernel = _owner(product.inputs[1], owners)
    consumers = product.outputs[0].consumers()
    if kernel is None or len(consumers) != 1 or consumers[0].type not in ("BiasAdd", "AddV2", "Add"):
        return None
    others = [tensor for tensor in consumers[0].inputs if tensor is not product.outputs[0]]
    bias = _owner(others[0], owners) if len(others) == 1 else None
    if bias is None or others[0].shape != product.outputs[0].shape[-1:]:
        return None
    return kernel, bias


def _owner(tensor: Any, owners: dict[int, int]) -> int | None:
    """Index of the variable that a tensor is, unless it is used elsewhere too."""
    while len(tensor.consumers()) == 1:
        if id(tensor) in owners:
            return owners[id(tensor)]
        if tensor.op.type != "Identity":
            return None
        tensor = tensor.op.inputs[0]
    return None


def _needed(tensor: Any, owners: dict[int, int], known: Any) -> set[int]:
    """Indices of the variables that a tensor is computed from, once ``known`` is."""
    found, seen, waiting = set(), set(), [tensor]
    while waiting:
        here = waiting.pop()
        if here is known or id(here) in seen:
            continue
        seen.add(id(here))
        if id(here) in owners:
            found.add(owners[id(here)])
        waiting += list(here.op.inputs)
    return found
