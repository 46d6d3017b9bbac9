"""What an attacker has from elsewhere: labelled examples of the same kind as the clients'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from privfed.models.functional import Model


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Labelled examples that are no client's.

    Attributes:
        inputs: ``[k, *input_shape]`` in [0, 1]; a few hundred for ten classes.
        labels: ``[k]``.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]

    def check(self, model: Model) -> None:
        """Raises ``ValueError`` unless they are examples for ``model``."""
        if self.inputs.shape[1:] != model.input_shape or not len(self.inputs):
            shape = ", ".join(str(n) for n in model.input_shape)
            raise ValueError(
                f"auxiliary inputs have shape {self.inputs.shape}: model {model.name} takes [k, {shape}]"
            )
        if not np.isfinite(self.inputs).all():
            raise ValueError("auxiliary inputs are not all finite: remove those that are not")
        if self.labels.shape != (len(self.inputs),) or not np.isin(self.labels, np.arange(model.classes)).all():
            raise ValueError(
                f"auxiliary labels: one from 0 to {model.classes - 1} is needed for each of the inputs"
            )
