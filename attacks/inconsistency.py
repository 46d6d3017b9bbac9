"""Model inconsistency (Pasquini et al. 2022, arXiv:2111.07380): a sum of updates that is one client's.

The target gets the model as it is, all others one whose first layer is dead: its units are off for every input, so
that it has no gradient. In the sum that layer's gradient is the target's alone, however well the sum is masked;
what comes after (biases behind the dead layer) is a mixture and is not used. The layer is then inverted as an
honest-but-curious server would invert the target's own update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, Images, NotInvertible, ThreatModel
from attacks.crafting import Crafted
from attacks.dense_layer import DenseLayer
from attacks.first_layer import relu_follows
from attacks.sparse_decomposition import SparseDecomposition
from privfed.models.functional import Model, Vector
from privfed.transcript import Kind, Observer, View


@dataclass(frozen=True)
class ModelInconsistency:
    """Silences all clients but its target, and inverts the first dense layer."""

    name: ClassVar[str] = "model_inconsistency"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=(Observer.ACTIVE_SERVER,),
        knowledge=("the models, which it sends", "that pixels may have been bytes"),
        assumptions=(
            "clients do not compare the models that they were given",
            "the first layer is dense, with a bias, on the raw input, and followed by ReLU",
            "of the target as much as dense_layer and sparse_decomposition assume",
        ),
    )

    def craft(self, model: Model, weights: Vector, public: Images) -> Crafted:
        """The model as it is for the target; a dead first layer for the others."""
        kernel, _ = _dense_input(model)
        if not relu_follows(model):
            raise NotInvertible(f"no ReLU follows the first layer of model {model.name}: it cannot be silenced")
        parts = [np.array(part) for part in model.unflatten(np.asarray(weights))]
        columns = parts[kernel].reshape(-1, parts[kernel].shape[-1])
        # Inputs lie in [0, 1]: no unit can be on.
        parts[_dense_input(model)[1]] = -np.maximum(columns, 0).sum(axis=0) - 1
        return Crafted(model, np.asarray(weights), model.flatten(parts))

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` serves the sparse decomposition."""
        seen, layer = view.observations[index], _dense_input(view.model)
        start = view.model.unflatten(seen.vector)
        alone: list[NDArray[np.float64]] = [
            part if i in layer else np.zeros_like(part) for i, part in enumerate(start)
        ]
        vector = np.concatenate([part.reshape(-1) for part in alone])
        if not vector.any():
            raise NotInvertible("the first layer has no gradient: the target is not in the sum")
        # The rest is gone, so that the vector counts as one of unknown scale.
        target = replace(seen, kind=Kind.SUM, vector=vector, contributors=1.0)
        lone = replace(view, observations=(target,))
        try:
            return SparseDecomposition().invert(lone, 0, rng)
        except NotInvertible:
            guess = DenseLayer().invert(lone, 0, rng)
        # Labels were told by the output's bias, which is not the target's.
        return replace(guess, labels=None)


def _dense_input(model: Model) -> tuple[int, int]:
    if model.dense_input is None:
        raise NotInvertible(f"model {model.name} has no dense layer on its raw input")
    return model.dense_input
