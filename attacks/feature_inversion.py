"""Inversion of the features that reach a dense layer behind convolutions: whole batches, pooling and ReLU or not.

A dense layer gives its inputs away whatever comes before it (``attacks.inner_dense``): those of one example by the
rank-one factor of its gradient, those of a batch by the zeros that ReLU leaves (``attacks.sparse_decomposition``).
Each example's features are then inverted for themselves: as in the Cocktail Party Attack's feature inversion
(Kariyappa et al. 2023, arXiv:2209.05578) the image is searched for that has them. There are more features than
pixels, and the convolutions before them are few, so the search mostly ends at the image itself, where a search for
the whole gradient's image is lost among the kinks of pooling and ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.fading_prior import draw
from attacks.inner_dense import InnerDense, find_inner_dense
from attacks.pixels import snap
from attacks.sparse_decomposition import SparseDecomposition
from privfed.models.functional import Model
from privfed.transcript import Observer, View

Vector = NDArray[np.float64]

SOLVED = 1e-8
"""Squared distance, as a share of the features' own square, at which an image has them."""
INEXACT, SAME = 1e-5, 1e-5
"""Features of an example with a small gradient are inexact, and no image has them. Where a start comes this near,
and its image's mean squared difference to the last best is as small, a further one would end there too."""
PATCH, STEP = 4, 0.25
"""Pixels along a side of a patch, and by how much it is made brighter or darker."""
SHOWN, MOST_OPEN = 10 * SOLVED, 0.2
"""Change of the features from which on it shows there, and the share of patches where it may not."""
MEMORY = 30
"""Correction pairs of L-BFGS."""
FAINT = 0.3
"""Every other start is of noise up to this brightness; the rest are smooth."""


@dataclass(frozen=True)
class FeatureInversion:
    """Finds what reached the first dense layer of a convolutional network, and the images that it comes from.

    Attributes:
        iterations: Budget of iterations for one start.
        starts: At most so many for one image; the one whose features are nearest is taken.
    """

    iterations: int = 400
    starts: int = 8

    name: ClassVar[str] = "feature_inversion"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("the model and the weights the update started from", "that pixels may have been bytes"),
        assumptions=(
            "a dense layer with a bias behind others, which more features reach than an image has pixels",
            "one example, or a ReLU behind that layer and fewer examples than a third of its units",
            "one local step; none of the layers before it looks at several examples at once",
            "no noise beyond that of rounding",
        ),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` draws guesses and starting points."""
        model, seen = view.model, view.observations[index]
        cut, pixels = find_inner_dense(model), int(np.prod(model.input_shape))
        if cut is None:
            raise NotInvertible(f"model {model.name} has no dense layer with a bias behind other layers")
        if cut.features < pixels:
            raise NotInvertible(
                f"{cut.features} features reach the first dense layer of model {model.name}: too few to tell "
                f"images of {pixels} pixels apart"
            )
        found = SparseDecomposition().split(cut.behind(model, seen), view.plan, cut.tail, rng, pixels=False)
        weights, evaluations = np.asarray(seen.weights, np.float64), found.evaluations
        images, distances = np.zeros((len(found.inputs), *model.input_shape)), np.full(len(found.inputs), np.inf)
        for i, features in enumerate(found.inputs):
            if features.any():
                images[i], distances[i], taken = self._image(model, weights, features, rng)
                evaluations += taken
                if _open(cut, model, weights, images[i]) > MOST_OPEN:
                    distances[i] = np.inf
        # Features after a step have no image at the weights before it: those that have one come first.
        order = np.argsort(distances, kind="stable")[: np.count_nonzero(np.isfinite(distances))]
        if not len(order):
            raise NotInvertible("too little reaches the first dense layer: other images would look the same to it")
        labels = None if found.labels is None else found.labels[order]
        residual = max(found.residual, float(distances[order].max()) ** 0.5)
        return Guess(snap(images[order]), labels, residual, evaluations)

    def _image(
        self, model: Model, weights: Vector, features: Vector, rng: np.random.Generator
    ) -> tuple[Vector, float, int]:
        """The image ``[*input_shape]`` that has such features, their distance, and evaluations."""
        import tensorflow as tf

        size, evaluations = int(np.prod(model.input_shape)), 0
        given = tf.constant(weights), tf.constant(features)
        distance = _distance(model)
        best, lowest = np.zeros(size), np.inf

        def objective(point: Vector) -> tuple[float, Vector]:
            nonlocal evaluations
            evaluations += 1
            value, slope = distance(tf.constant(point), *given)
            return float(value), slope.numpy()

        options = {"maxiter": self.iterations, "maxcor": MEMORY, "ftol": 1e-14, "gtol": 1e-12}
        for number in range(self.starts):
            start = rng.uniform(0, FAINT, size) if number % 2 else draw(model.input_shape, 1, rng)
            result = optimize.minimize(
                objective, start, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * size, options=options
            )
            image = np.clip(result.x, 0, 1)
            again = result.fun < INEXACT and float(np.mean((image - best) ** 2)) < SAME
            if result.fun < lowest:
                best, lowest = image, float(result.fun)
            if lowest < SOLVED or again:
                break
        return best.reshape(model.input_shape), lowest, evaluations


def _open(cut: InnerDense, model: Model, weights: Vector, image: NDArray[np.float64]) -> float:
    """The share of an image's patches that might well be brighter or darker and have the same features.

    So it is where units are off; an image that has such parts is made up there, and no gradient would tell.
    """
    import tensorflow as tf

    shape = (*model.input_shape, 1)[:2]
    rows, columns = (np.arange(n) // PATCH for n in shape)
    patch = (rows[:, None] * (columns[-1] + 1) + columns).reshape(*shape, *[1] * (image.ndim - 2))
    changed = np.arange(patch.max() + 1).reshape(-1, *[1] * patch.ndim) == patch
    step = STEP * np.where(image < 0.5, 1, -1)
    others = image + changed.reshape(len(changed), *patch.shape[: image.ndim]) * step
    values = [tf.constant(part) for part in model.unflatten(weights)]
    features, *theirs = cut.front(values, tf.constant(np.concatenate([image[None], others]))).numpy()
    change = np.sum((np.stack(theirs) - features) ** 2, axis=1)
    return float(np.mean(change <= SHOWN * np.sum(features**2)))


@lru_cache(maxsize=8)
def _distance(model: Model) -> Callable[..., tuple[Any, Any]]:
    """``(pixels, weights [d], features [n]) -> (relative squared distance, its slope)``, traced once per model."""
    import tensorflow as tf

    cut = find_inner_dense(model)
    assert cut is not None
    front, size = cut.front, int(np.prod(model.input_shape))
    signature = [tf.TensorSpec([n], tf.float64) for n in (size, model.dimension, cut.features)]

    def distance(point: Any, weights: Any, features: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(point)
            ours = front(model.unflatten(weights), tf.reshape(point, [1, *model.input_shape]))[0]
            value = tf.reduce_sum((ours - features) ** 2) / tf.reduce_sum(features**2)
        return value, tape.gradient(value, point)

    compiled: Callable[..., tuple[Any, Any]] = tf.function(distance, input_signature=signature)
    return compiled
