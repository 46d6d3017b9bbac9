"""A model as pure functions of its weights, so that it can be trained for many clients inside one graph.

After ``tff.learning.models.FunctionalModel``; ``privfed.models.tff`` converts to and from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""All trainable weights of a model, or a change of them, flat: ``[dimension]``."""

Weights = Sequence[Any]
"""The trainable weights as one tensor (or array) per variable, in the model's order."""


@dataclass(frozen=True)
class VariableSpec:
    """Name and shape of one trainable variable."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers the variable holds."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Attention:
    """Where a text model attends: what inversion of its gradients builds on.

    Attributes:
        kernels: By block, the indices of the kernels ``[width, ...]`` that its input is multiplied with.
        inputs: ``(weights, ids [n, t], block) -> [n, t, width]``: that input, of prefixes of any length ``t``. At
            position ``i`` it depends on tokens ``0…i``, and in block 0 on token ``i`` alone.
    """

    kernels: tuple[tuple[int, ...], ...]
    inputs: Callable[[Weights, Any, int], Any]


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier without state: everything it knows is in the weights it is given.

    Attributes:
        name: As in the settings: a name of the zoo or ``module:function``.
        input_shape: Shape of one example, without the batch axis.
        classes: How many classes the logits tell apart.
        variables: The trainable variables, in the order of the flat vector.
        logits: ``(weights, x [batch, *input_shape] float) -> [batch, classes]``, in the weights' dtype.
        initialize: ``generator -> arrays``, one float32 array per variable.
        dense_input: Indices of kernel and bias of a dense layer applied to the raw input, when the first
            layer is one: the layer whose gradient gives the input away exactly.
        output_bias: Index of the last layer's bias ``[classes]``, when there is one.
        embedding: Of a text model, the index of the table ``[tokens, width]`` of which each token takes its row.
        attention: Of a text model whose blocks are known.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    variables: tuple[VariableSpec, ...]
    logits: Callable[[Weights, Any], Any]
    initialize: Callable[[np.random.Generator], list[NDArray[np.float32]]]
    dense_input: tuple[int, int] | None = None
    output_bias: int | None = None
    embedding: int | None = None
    attention: Attention | None = None

    @property
    def dimension(self) -> int:
        """Length of the flat weight vector."""
        return sum(spec.size for spec in self.variables)

    def initial_vector(self, seed: int) -> Vector:
        """The public starting point of a training: ``[dimension]``, the same for the same seed."""
        return self.flatten(self.initialize(np.random.default_rng([seed, 0x1417])))

    def flatten(self, weights: Sequence[NDArray[Any]]) -> Vector:
        """One array per variable to the flat vector ``[dimension]``."""
        return np.concatenate([np.asarray(w, np.float32).reshape(-1) for w in weights])

    def unflatten(self, vector: Any) -> list[Any]:
        """The flat vector, as an array or a tensor, to one array (tensor) per variable."""
        if isinstance(vector, np.ndarray):
            if vector.shape != (self.dimension,):
                raise ValueError(
                    f"model {self.name} has {self.dimension} weights, the vector has shape {vector.shape}"
                )
            offsets = np.cumsum([spec.size for spec in self.variables])[:-1]
            return [
                part.reshape(s.shape) for part, s in zip(np.split(vector, offsets), self.variables, strict=True)
            ]
        import tensorflow as tf

        parts = tf.split(vector, [spec.size for spec in self.variables])
        return [tf.reshape(part, s.shape) for part, s in zip(parts, self.variables, strict=True)]


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean softmax cross-entropy of a batch.

    Args:
        logits: ``[batch, classes]``.
        labels: Class numbers ``[batch]`` (integers), or probabilities ``[batch, classes]`` (floats).
    """
    import tensorflow as tf

    if labels.dtype.is_integer:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    return -tf.reduce_mean(tf.reduce_sum(labels * tf.nn.log_softmax(logits), -1))
