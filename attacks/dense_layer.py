"""Exact inversion of a dense first layer: its gradient is the input times the gradient of its bias.

For one example, ``dW = x δᵀ`` and ``db = δ``, so each column of ``dW`` over its entry of ``db`` is ``x``: Phong et
al. 2018 (IEEE TIFS 13(5), section III), Geiping et al. 2020 (arXiv:2003.14053, proposition 3.1). Neither the
gradient's scale nor its sign matters, so clipping and an unknown learning rate do not hinder it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, Images, NotInvertible, ThreatModel
from attacks.gradient import estimate_gradient
from attacks.labels import infer_labels
from attacks.pixels import snap
from privfed.transcript import Observer, View

RANK_ONE = 1e-3
"""Below this relative residual the layer's gradient counts as that of one example."""
FAINT = 1e-3
"""Units whose bias gradient is below this share of the largest are left out: their ratios are rounding."""
SAME = 1e-6
"""Candidates whose mean squared difference is below this are the same image."""


@dataclass(frozen=True)
class DenseLayer:
    """Inverts the first dense layer; for a mixture of examples it offers a handful of candidates.

    Attributes:
        candidates: At most so many images for an observation that holds more than one example.
    """

    candidates: int = 8

    name: ClassVar[str] = "dense_layer"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("the model's structure", "that pixels may have been bytes"),
        assumptions=(
            "the first layer is dense, with a bias, on the raw input",
            "one example for an exact answer; of more, those that have a unit of the layer to themselves",
        ),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; it draws nothing from ``rng``."""
        model = view.model
        if model.dense_input is None:
            raise NotInvertible(f"model {model.name} has no dense layer on its raw input")
        gradient = model.unflatten(estimate_gradient(view.observations[index], view.plan).vector)
        kernel, bias = (np.asarray(gradient[i], np.float64) for i in model.dense_input)
        kernel = kernel.reshape(-1, bias.size)
        if not bias.any():
            raise NotInvertible("the gradient of the first layer's bias is zero: there is nothing to divide by")
        image, residual = _rank_one(kernel, bias)
        labels = None
        if image is not None and residual < RANK_ONE:
            found = image[None]
            if model.output_bias is not None:
                labels = infer_labels(gradient[model.output_bias], 1)
        else:
            found = _plausible(_ratios(kernel, bias, image), self.candidates)
        images = snap(found).reshape(-1, *model.input_shape)
        return Guess(images, labels, residual, evaluations=0)


def _rank_one(kernel: NDArray[np.float64], bias: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, float]:
    """The input of the best rank-one fit ``[x; 1] δᵀ`` to ``[dW; db]``, and the share of its norm left over.

    The singular vector averages the ratios of all units with the right weights, where a single ratio would
    carry one unit's rounding or noise.
    """
    left, values, _ = np.linalg.svd(np.vstack([kernel, bias]), full_matrices=False)
    residual = float(np.sqrt(np.sum(values[1:] ** 2) / np.sum(values**2)))
    x, one = left[:-1, 0], left[-1, 0]
    # [x; 1] is of length below sqrt(inputs + 1), so its last entry, normalised, cannot be smaller than this.
    if abs(one) < 0.1 / np.sqrt(len(x) + 1):
        return None, residual
    return x / one, residual


def _ratios(kernel: NDArray[np.float64], bias: NDArray[np.float64], image: NDArray[np.float64] | None) -> Images:
    """Candidates ``[m, inputs]`` from a mixture of examples.

    A unit that only one example moves gives that example as the ratio of its column and bias. Where all
    examples move a pair of units alike, except one, the difference of the columns gives that one: so it is
    for the output layer of a softmax regression at zero weights, with an absent class as the reference.
    """
    found = [] if image is None else [image]
    reference = int(np.argmax(bias))
    pairs = (
        (kernel, bias),
        (kernel - kernel[:, [reference]], bias - bias[reference]),
    )
    for columns, entries in pairs:
        strong = np.abs(entries) > FAINT * np.abs(bias).max()
        found += list((columns[:, strong] / entries[strong]).T)
    return np.stack(found)


def _plausible(images: Images, count: int) -> Images:
    """The ``count`` most image-like of ``images`` ``[m, inputs]``, without repetitions.

    First those within [0, 1]; among these, those that several units agree on, since mixtures differ from unit
    to unit; then those of high contrast, since averaging flattens.
    """
    excess = np.sqrt(np.mean((images - np.clip(images, 0, 1)) ** 2, axis=1))
    squares = np.mean(images**2, axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * (images @ images.T) / images.shape[1]
    same = distance < SAME
    order = np.lexsort((-images.std(axis=1), -same.sum(axis=1), np.round(excess, 3)))
    chosen: list[int] = []
    for i in order:
        if len(chosen) < count and not same[i, chosen].any():
            chosen.append(int(i))
    return images[chosen]
