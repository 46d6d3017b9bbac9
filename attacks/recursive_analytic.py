"""Exact inversion of one example through convolutions, layer by layer from the last: recursive analytic attack.

R-GAP (Zhu & Blaschko 2021, arXiv:2010.07733, section 3): where activations are invertible, the output of a layer
is known from the input of the next, so the layer's own input solves linear equations of two kinds: the layer's
weights applied to it give that output, and its product with the back-propagated gradient is the gradient of the
weights. Strided convolutions, which have too few of the first kind, have enough of the second.

ReLU has an inverse only where it is on. The equations that hold there are enough: where it is off, it adds nothing
to the gradients either, and its output is known to be zero.

Equal weights come first (``attacks.equal_errors``), those by the equations' covariances where that leaves doubts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.conv_chain import Chain, find_chain
from attacks.equal_errors import VAGUE, equal_errors
from attacks.example_gradient import example_gradient
from attacks.gradient import estimate_gradient
from attacks.layer_equations import Precision, layer_equations, solve
from attacks.pixels import LEVELS, on_grid, snap
from privfed.models.functional import Model
from privfed.transcript import Observer, View

Matrix = NDArray[np.float64]

ONE_EXAMPLE = 1e-2
"""Above this share of the last layer's gradient left over by rank one, more than one example is behind it."""
FINEST = 1e-13
"""No gradient or activation is taken to be more precise than this."""
DOUBTFUL = 30
"""At most so many levels beside those of pixels are tried."""
LIKELY = 3
"""Standard deviations of its error that a pixel has to be within to have come from there."""
SWEEPS = 3
"""At most so often they are tried in turn."""
DOUBT = 0.2
"""Distance from a level, or standard deviation of that, from which on equal weights are not enough."""
OPEN = 0.5
"""Share of the ridge's standard deviation from which on the equations say nothing of a pixel."""
BELIEVED = 0.05
"""Residual below which an answer might be taken for the truth: it must not have undetermined pixels."""
TRIALS = 40
"""Gradients by which pixels that the equations leave open are found to be black, at most."""
SHOWS = 3
"""Times that another image's residual is larger where the difference shows."""
NOISE = 3
"""So many times the noise's length the observed gradient may be away from that of bytes which it verifies."""
ROUNDING = 3e-6
"""Share of the gradient's length by which rounding inside of a single-precision client may add to that."""


@dataclass(frozen=True)
class RecursiveAnalytic:
    """Inverts a chain of convolutions, with invertible activations or ReLU, and a dense layer at its end."""

    name: ClassVar[str] = "recursive_analytic"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=(
            "the model and the weights the update started from",
            "that pixels may have been bytes",
        ),
        assumptions=(
            "one example and one local step",
            "enough units that are on, where they are ReLU",
            "convolutions and a dense layer, with biases and sigmoid, tanh or ReLU between them, and no pooling",
            "no noise beyond that of rounding",
        ),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` draws the probes by which errors are estimated."""
        observation, model = view.observations[index], view.model
        chain = find_chain(model)
        if chain is None:
            raise NotInvertible(
                f"model {model.name} is no chain of convolutions and a dense layer, with sigmoid, tanh or ReLU"
            )
        start = np.asarray(observation.weights, np.float64)
        weights, vector = model.unflatten(start), estimate_gradient(observation, view.plan).vector
        gradient = [np.asarray(part, np.float64) for part in model.unflatten(vector)]
        features, error, noise = _last_layer(gradient)
        label = int(error.argmin())
        noise = max(noise, FINEST * max(float(np.abs(part).max()) for part in gradient))
        known = (chain, weights, gradient, features, error, noise, rng)

        def residual(image: Matrix) -> float:
            return _residual(model, start, image, label, vector)

        first, before, evaluations = equal_errors(*known), np.inf, 0
        if first is not None:
            image = snap(first[0][None])[0]
            before, evaluations = residual(image), 1
            explained = ROUNDING + NOISE * noise * float(np.sqrt(len(vector)) / np.linalg.norm(vector))
            if before < explained and _no_doubt(*first):
                return Guess(image[None], np.array([label], np.int64), before, evaluations)
        try:
            x, uncertain, prior = _invert_chain(*known)
        except np.linalg.LinAlgError as reason:
            raise NotInvertible(f"the layers' equations are far from determining their inputs: {reason}") from None
        if not np.isfinite(x).all():
            raise NotInvertible("the layers' equations have no finite solution")
        image, left, more = _settled(x, uncertain, residual)
        if first is not None and before < left:
            evaluations += more
            image, left, more = _settled(*first, residual)
        else:
            # Many images have the gradient that was observed where the equations leave some pixels open.
            still_open = uncertain > (VAGUE if left < BELIEVED else OPEN) * prior
            evaluations += TRIALS * bool(still_open.any())
            if still_open.any() and not _black(image, still_open, residual, rng):
                raise NotInvertible(
                    f"the equations leave {np.count_nonzero(still_open)} of {x.size} pixels open: "
                    "too few units have a slope, or the gradient is too small beside its rounding"
                )
        return Guess(image[None], np.array([label], np.int64), left, evaluations + more)


def _no_doubt(x: Matrix, uncertain: Matrix) -> bool:
    """Whether each pixel lies by the level of a byte and cannot well have come from another."""
    away = np.maximum(np.abs(x - snap(x[None])[0]), uncertain)
    return bool(on_grid(x[None])[0] and away.max() * LEVELS < DOUBT)


def _settled(x: Matrix, uncertain: Matrix, residual: Callable[[Matrix], float]) -> tuple[Matrix, float, int]:
    """The image of bytes, if it is one, its residual, and how many were taken.

    A pixel that may have gone to the wrong one of two levels has perhaps done so: the gradient decides.
    """
    image = snap(x[None])[0]
    lowest, evaluations = residual(image), 1
    if not on_grid(x[None])[0]:
        return image, lowest, evaluations
    # Standard deviations from each pixel to the middle between its level and the one above, and the one below.
    away = (np.clip(x, 0, 1) - image) * LEVELS
    errors = (0.5 - np.stack([away, -away])) / (np.maximum(uncertain, FINEST) * LEVELS)
    likely = [flat for flat in np.argsort(errors, axis=None)[:DOUBTFUL] if errors.flat[flat] < LIKELY]
    first = image
    for _ in range(SWEEPS):
        before = lowest
        for flat in likely:
            side, *pixel = np.unravel_index(flat, errors.shape)
            here, other = tuple(pixel), image.copy()
            beside = np.clip(first[here] + (1 - 2 * side) / LEVELS, 0, 1)
            other[here] = beside if image[here] == first[here] else first[here]
            there = residual(other)
            evaluations += 1
            if there < lowest:
                image, lowest = other, there
        if lowest == before:
            break
    return image, lowest, evaluations


def _black(
    image: Matrix, still_open: NDArray[np.bool_], residual: Callable[[Matrix], float], rng: np.random.Generator
) -> bool:
    """Whether pixels that the equations leave open are black, as any light there would show.

    Units without a bias are at zero where all is black: they have no slope, but light switches some of them on.
    Pixels one by one, some together, and all are tried one level brighter.
    """
    if image[still_open].any():
        return False
    places = np.flatnonzero(still_open)
    trials = [places, *(rng.choice(places, 1) for _ in range(TRIALS // 2))]
    trials += [places[rng.random(len(places)) < 0.5] for _ in range(TRIALS - len(trials) - 1)]
    least = SHOWS * max(residual(image), ROUNDING)
    for brighter in trials:
        other = image.copy()
        other.flat[brighter] = 1 / LEVELS
        if len(brighter) and residual(other) < least:
            return False
    return True


def _last_layer(gradient: list[Matrix]) -> tuple[Matrix, Matrix, float]:
    """Input ``[features]`` of the dense layer at the end, error ``[classes]`` of the logits, and noise.

    Clipping and unknown learning rates leave a positive factor in the error open, which all the gradient has in
    common: no layer's input depends on it. The noise is the standard deviation of an entry of the gradient about
    what one example would give.
    """
    kernel, bias = gradient[-2:]
    power = float(bias @ bias)
    if power == 0:
        raise NotInvertible("the gradient of the last layer's bias is zero: there is nothing to divide by")
    features = kernel @ bias / power
    left_over = float(np.linalg.norm(kernel - np.outer(features, bias)))
    rest = left_over / max(float(np.linalg.norm(kernel)), 1e-300)
    if rest > ONE_EXAMPLE:
        raise NotInvertible(
            f"{rest:.0%} of the last layer's gradient is not one example's: there are several, or steps, or noise"
        )
    # Every row tells the error, the bias with the others.
    error = (features @ kernel + bias) / (features @ features + 1)
    return features, error, left_over / float(np.sqrt(kernel.size - len(features)))


def _invert_chain(
    chain: Chain,
    weights: list[Matrix],
    gradient: list[Matrix],
    features: Matrix,
    error: Matrix,
    noise: float,
    rng: np.random.Generator,
) -> tuple[Matrix, Matrix, float]:
    """The input ``[*input_shape]`` of the chain that has ``features`` at its end, and the error in each entry.

    Last what that would be of entries that no equation is about.
    """
    a, slopes = features, weights[-2] @ error
    precision = Precision(np.eye(len(features)) * (float(np.linalg.norm(error)) / noise))
    for i in reversed(range(len(chain.convolutions))):
        known = layer_equations(chain, i, a, slopes, weights, gradient, noise)
        rows = precision.whiten(known.layer.matrix(known.kernel) * known.slope.reshape(-1, 1))
        aim = precision.whiten(known.aim.reshape(-1, 1))[:, 0]
        a, precision = solve(rows, known.shared, known.right.reshape(-1) + rows.T @ aim, dense=i == 0)
        slopes = known.slopes() if i else slopes
    shape = chain.convolutions[0].inputs
    return a.reshape(shape), precision.stddevs(rng).reshape(shape), precision.prior


def _residual(model: Model, weights: Matrix, image: Matrix, label: int, vector: Matrix) -> float:
    """The sine of the angle between the gradient of the answer and the one observed."""
    ours = example_gradient(model)(weights, image[None], label).numpy()
    ours = ours / max(float(np.linalg.norm(ours)), 1e-300)
    theirs = vector / np.linalg.norm(vector)
    return float(np.linalg.norm(theirs - (ours @ theirs) * ours))
