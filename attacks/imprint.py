"""Robbing the Fed (Fowl et al. 2022, arXiv:2110.13057): a layer that sorts a batch's images into bins.

Every unit of the imprint layer measures the same brightness ``h(x)`` and is on above a bias of its own; the biases
are quantiles of brightness in public images. Behind it all units count alike, so that the gradients of two
neighbours differ by those images alone whose brightness lies between their biases; of one image the quotient with
the bias gradient is the image (section 4.1). Sums over clients are to it as one large batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from attacks.base import Guess, Images, NotInvertible, ThreatModel
from attacks.crafting import Crafted
from attacks.pixels import snap
from privfed.models.functional import Model, VariableSpec, Vector, Weights
from privfed.transcript import Observer, View

IMPRINT = "imprint"
SMALL = 1e-4
"""Scale of the measured brightness: the smaller weights are, the less of their change single precision rounds off.
The way back makes up for it."""
PASSED = 0.1
"""About what the way back adds to an input, in units of the brightness of white."""
FAINT = 1e-4
"""Bins whose bias gradient is this small beside the largest hold rounding."""
OUTSIDE = 0.05
"""Root mean square excess over [0, 1] above which a quotient is no image, but rounding or a mixture."""


@dataclass(frozen=True)
class Imprint:
    """Puts an imprint layer in front of the model, and reads the images from its gradient.

    Attributes:
        bins: Units of the layer: with ``n`` images behind the vector, one is alone in its bin with a chance of
            about ``(1 − 1/bins)^(n − 1)``.
    """

    bins: int = 2048

    name: ClassVar[str] = "imprint"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=(Observer.ACTIVE_SERVER,),
        knowledge=("the model, which it makes", "how bright such images are, from public ones"),
        assumptions=(
            "clients train whatever model the server sends",
            "one local step; images of different brightness, far fewer than bins",
            "noise far below the share of a single image",
        ),
    )

    def craft(self, model: Model, weights: Vector, public: Images) -> Crafted:
        """The model behind an imprint layer ``inputs → bins`` and a layer back to the inputs.

        The way back adds to every input the same small number, so that the images pass almost as they are.
        """
        inputs = int(np.prod(model.input_shape, dtype=np.int64))
        brightness = np.asarray(public, np.float64).reshape(len(public), -1).mean(axis=1)
        edges = np.quantile(brightness, np.arange(self.bins) / self.bins)
        if np.unique(edges).size < self.bins // 2:
            raise NotInvertible(
                f"{len(public)} public images have too few levels of brightness for {self.bins} bins"
            )
        edges[0] = 0.0
        kernel = np.full((inputs, self.bins), SMALL / inputs)
        # With equal numbers for all inputs their gradients might cancel.
        back = PASSED / SMALL / self.bins * np.random.default_rng(0x13).uniform(0.5, 1.5, inputs)
        crafted = imprinted(model, self.bins)
        start = [kernel, -SMALL * edges, np.tile(back, (self.bins, 1)), *model.unflatten(np.asarray(weights))]
        return Crafted(crafted, crafted.flatten(start))

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; it draws nothing from ``rng``."""
        model = view.model
        if not model.variables[0].name.startswith(IMPRINT):
            raise NotInvertible(f"model {model.name} has no imprint layer: it was not crafted")
        kernel, bias = (np.asarray(p, np.float64) for p in model.unflatten(view.observations[index].vector)[:2])
        scale = np.abs(kernel).max() or 1.0
        kernel, bias = kernel / scale, bias / scale
        steps = np.concatenate([np.diff(-kernel, axis=1), kernel[:, -1:]], axis=1)
        heights = np.concatenate([np.diff(-bias), bias[-1:]])
        strong = np.abs(heights) > FAINT * np.abs(heights).max()
        if not bias.any() or not strong.any():
            raise NotInvertible("the imprint layer has no gradient: every image was darker than its first bin")
        found = (steps[:, strong] / heights[strong]).T
        excess = np.sqrt(np.mean((found - np.clip(found, 0, 1)) ** 2, axis=1))
        if excess.min() >= OUTSIDE:
            raise NotInvertible(
                f"none of {len(found)} bins holds an image: noise is in the gradient, or several steps bent it"
            )
        fits = excess < OUTSIDE
        order = np.argsort(-np.abs(heights[strong][fits]), kind="stable")
        images = snap(found[fits][order]).reshape(-1, *model.input_shape)
        lost = np.sum(heights[strong][~fits] ** 2) / np.sum(heights[strong] ** 2)
        residual = float(np.sqrt(lost + np.mean(excess[fits] ** 2)))
        return Guess(images, None, residual, evaluations=0)


def imprinted(model: Model, bins: int) -> Model:
    """``model`` behind an imprint layer: three variables more, in front."""
    inputs = int(np.prod(model.input_shape, dtype=np.int64))
    front = (
        VariableSpec(f"{IMPRINT}/kernel", (inputs, bins)),
        VariableSpec(f"{IMPRINT}/bias", (bins,)),
        VariableSpec(f"{IMPRINT}/back", (bins, inputs)),
    )

    def logits(weights: Weights, x: Any) -> Any:
        flat = tf.reshape(x, [tf.shape(x)[0], inputs])
        bright = tf.nn.relu(tf.matmul(flat, weights[0]) + weights[1])
        return model.logits(weights[3:], tf.reshape(flat + tf.matmul(bright, weights[2]), tf.shape(x)))

    def initialize(rng: np.random.Generator) -> list[NDArray[np.float32]]:
        return [np.zeros(spec.shape, np.float32) for spec in front] + model.initialize(rng)

    return Model(
        f"{model.name} behind an imprint layer",
        model.input_shape,
        model.classes,
        front + model.variables,
        logits,
        initialize,
        output_bias=None if model.output_bias is None else model.output_bias + len(front),
    )
