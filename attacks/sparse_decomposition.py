"""Exact inversion of batches by a first dense layer with ReLU: sparse decomposition.

SPEAR (Dimitrov et al. 2024, arXiv:2403.03945) with a search that uses the weights and needs no luck; see
``attacks.sparse_directions``. All it asks of the observed vector is that each example adds ``x δᵀ`` to it, so
clipping, an unknown learning rate, several local epochs and the sum over a secure-aggregation cohort are all the
same to it, as long as there are not too many examples behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.first_layer import input_gradients, relu_follows
from attacks.gradient import estimate_gradient
from attacks.layer_factors import Factors, Matrix, factorise
from attacks.pixels import made_of_bytes, on_grid, snap
from attacks.sparse_directions import Search, Split
from attacks.unmixing import unmix
from privfed.models.functional import Model
from privfed.transcript import Observation, Observer, Plan, View

CERTAIN = 0.01
"""A share of contradictions this small, and all pixels bytes, are no accident: one with wrong parts has many."""
EXPLAINED = 1e-4
"""Share of the gradient left over, beyond what noise leaves, up to which a decomposition is accepted at once."""
PATIENCE = 60
"""Rounds in which any other decomposition may be bettered."""
FAR = 1e3
"""Updates this many times as large as the weights are not added to them."""
NOTHING = 10
"""Rounds after which a search that has not found one example's zeros is given up: there are too many examples."""
STALLED = 40
"""Rounds without a further example's zeros after which a search is given up: where it was right on batches of 24,
it stood still for 12 at most."""
NOISY = 10.0
"""So many times what noise leaves over of the gradient may be left over of the parts."""
HANGING = 0.9
"""Leverage of a zero above which the zeros do not determine the split: right ones have up to 0.9999, wrong ones
from 0.94 on, measured on local steps; between them images of bytes decide."""
UNDECIDED = 1.0
"""Residual of a decomposition that nothing speaks for."""
PLAUSIBLE = 0.1
"""A share of contradictions that is still taken for an answer when the search has run its rounds."""


@dataclass(frozen=True, eq=False)
class Examples:
    """The inputs of a dense layer, the one with the largest gradient first.

    Attributes:
        inputs: ``[b, inputs]``.
        labels: ``[b]``; ``None`` where the model has too many classes to try each.
        residual: As in ``Guess``.
        evaluations: How many gradients of the model it took.
    """

    inputs: Matrix
    labels: NDArray[np.int64] | None
    residual: float
    evaluations: int


@dataclass(frozen=True)
class SparseDecomposition:
    """Splits the gradient of the first layer into one part per example.

    Attributes:
        rounds: At most so many rounds of guesses, each 16 times as many as there are examples.
        most: Observations of more examples than this are turned away.
    """

    rounds: int = 200
    most: int = 64

    name: ClassVar[str] = "sparse_decomposition"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("the model and the weights the update started from", "that pixels may have been bytes"),
        assumptions=(
            "the first layer is dense, with a bias, on the raw input, and followed by ReLU",
            "fewer examples than a third of the layer's units, no two of them the same",
            "no noise beyond that of rounding",
        ),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; ``rng`` draws the guesses."""
        found = self.split(view.observations[index], view.plan, view.model, rng)
        images = found.inputs.reshape(-1, *view.model.input_shape)
        return Guess(images, found.labels, found.residual, found.evaluations)

    def split(
        self,
        observation: Observation,
        plan: Plan,
        model: Model,
        rng: np.random.Generator,
        *,
        pixels: bool = True,
    ) -> Examples:
        """The examples behind ``observation``.

        Args:
            observation: Of ``model``.
            plan: The run's public plan.
            model: With ``dense_input``.
            rng: Draws the guesses.
            pixels: Whether inputs are pixels in [0, 1], bytes perhaps, or features of any size.

        Raises:
            NotInvertible: They cannot be told apart; the message says why.
        """
        kernel, bias = _layer(model, estimate_gradient(observation, plan).vector)
        gradient = np.vstack([kernel, bias])
        gradient /= np.abs(gradient).max() or 1.0
        if not bias.any():
            raise NotInvertible("the gradient of the first dense layer's bias is zero: the inputs have no scale")
        factors = factorise(gradient, _relative_noise(observation, np.vstack([kernel, bias])))
        if factors is None:
            raise NotInvertible(
                "the singular values of the first dense layer's gradient have no gap: there is noise in it, or "
                "more examples than it can tell apart"
            )
        if factors.rank > self.most:
            raise NotInvertible(f"{factors.rank} examples are behind the vector: {self.most} are the most tried")
        if factors.rank > 1 and not relu_follows(model):
            raise NotInvertible(
                f"{factors.rank} examples are behind the vector, and no ReLU follows the first dense layer of "
                f"model {model.name}: there are no zeros to tell them apart by"
            )
        found, leverage = self._search(observation, model, factors, rng, pixels)
        return _checked(observation, model, factors, found, leverage, pixels)

    def _search(
        self, observation: Observation, model: Model, factors: Factors, rng: np.random.Generator, pixels: bool
    ) -> tuple[Split, float]:
        """The best split, and how far it hangs on single zeros (``Search.leverage``)."""
        start = np.asarray(observation.weights, np.float64)
        step = observation.vector / max(observation.contributors, 1e-300)
        # A vector that dwarfs the model is no sum of updates in their own units: it leads nowhere.
        end = start + step if np.abs(step).max() < FAR * max(float(np.abs(start).max()), 1.0) else start
        search = Search(factors, np.vstack(_layer(model, start)), np.vstack(_layer(model, end)))
        if factors.rank > 1 and search.hopeless:
            raise NotInvertible(
                f"{factors.rank} examples are behind the vector, too many for the {search.units} units of the "
                "first layer that have a gradient"
            )
        best: Split | None = None
        left, lowest = self.rounds, (float("inf"), float("inf"))
        most, standstill = 0, 0
        while left > 0 and standstill < STALLED:
            left -= 1
            split = search.advance(rng)
            if factors.rank == 1:
                best = split
                break
            if not search.found and self.rounds - left >= NOTHING:
                break
            # With a split in hand it is PATIENCE that counts.
            standstill = 0 if best is not None or search.found > most else standstill + 1
            most = max(most, search.found)
            if split is None:
                continue
            split, rank = _unmixed(search, split)
            if rank < lowest:
                left = min(left, PATIENCE) if best is None else left
                best, lowest = split, rank
                if split.contradictions < CERTAIN and (
                    rank[0] == 0 or _explains(observation, model, factors, split, pixels)
                ):
                    break
        if best is None:
            raise NotInvertible(
                f"{search.found} of {factors.rank} examples' zeros were found in {self.rounds - left} rounds"
            )
        if factors.rank > 1 and best.contradictions > PLAUSIBLE:
            raise NotInvertible(
                f"the decomposition contradicts the model: {best.contradictions:.0%} of the units that should be "
                "off are on"
            )
        return best, search.leverage(best)


def _unmixed(search: Search, split: Split) -> tuple[Split, tuple[float, float]]:
    """The split, or what it gives when its mixtures are taken apart, and how it ranks: the lower the better.

    Images of bytes by accident are rarer than units that happen not to contradict a wrong one: so they come first.
    """
    rank = _rank(split)
    apart = unmix(split.inputs) if split.contradictions <= PLAUSIBLE else None
    better = None if apart is None else search.rebuilt(apart)
    if better is not None and _rank(better) < rank:
        return better, _rank(better)
    return split, rank


def _rank(split: Split) -> tuple[float, float]:
    return float(np.count_nonzero(~on_grid(split.inputs))), split.contradictions


def _layer(model: Model, vector: NDArray[np.float64]) -> tuple[Matrix, Matrix]:
    """Kernel ``[inputs, units]`` and bias ``[1, units]`` of the first layer in a flat vector."""
    if model.dense_input is None:
        raise NotInvertible(f"model {model.name} has no dense layer on its raw input")
    parts: list[Any] = model.unflatten(vector)
    kernel, bias = (np.asarray(parts[i], np.float64) for i in model.dense_input)
    return kernel.reshape(-1, bias.size), bias[None]


def _relative_noise(observation: Observation, layer: Matrix) -> float:
    """The noise that the observer knows of, when the layer's largest entry is one."""
    if not observation.noise_stddev:
        return 0.0
    return float(observation.noise_stddev / np.abs(observation.vector).max())


def _explains(observation: Observation, model: Model, factors: Factors, split: Split, pixels: bool) -> bool:
    """Whether each part is the gradient of its example, as it is after one step for the right split alone."""
    bent, _, _ = _bent(observation, model, split, pixels)
    return bent < EXPLAINED + NOISY * factors.residual


def _bent(
    observation: Observation, model: Model, split: Split, pixels: bool
) -> tuple[float, NDArray[np.int64] | None, int]:
    """How far the parts are from parallel to their examples' own gradients, their labels, and evaluations.

    Infinite and ``None`` for a model whose gradients cannot be taken class by class.
    """
    inputs = snap(split.inputs) if pixels else split.inputs
    every = input_gradients(model, observation.weights, inputs.reshape(-1, *model.input_shape))
    if every is None:
        return float("inf"), None, 0
    kernel, _ = _layer(model, np.asarray(observation.weights, np.float64))
    ours = split.gradients @ kernel.T
    lengths = np.linalg.norm(every, axis=2)
    along = np.einsum("cki,ki->ck", every, ours) / np.maximum(lengths, 1e-300)
    rest = np.sum(ours**2, axis=1) - np.maximum(along.max(axis=0), 0) ** 2
    bent = float(np.sqrt(max(0.0, rest.sum()) / max(float(np.sum(ours**2)), 1e-300)))
    return bent, along.argmax(axis=0), len(every)


def _checked(
    observation: Observation, model: Model, factors: Factors, split: Split, leverage: float, pixels: bool
) -> Examples:
    """Labels, and the residual: each example's own gradient is taken again and set beside its part.

    After one step they are parallel. Several steps bend them, and then it is the zeros that speak for the
    decomposition, or that all its pixels are bytes; the smaller of the two counts. Where zeros leave an example
    open by a multiple of another, they say nothing: such a split contradicts nothing however wrong it is.
    """
    inputs = snap(split.inputs) if pixels else split.inputs
    bent, labels, evaluations = _bent(observation, model, split, pixels)
    doubt = 2 * split.contradictions
    if not (pixels and made_of_bytes(split.inputs)):
        doubt = max(doubt, UNDECIDED if leverage > HANGING else 0.0)
    elif split.contradictions < CERTAIN:
        doubt = 0.0
    residual = bent if factors.rank == 1 and labels is not None else min(bent, doubt)
    moved = float(np.sqrt(np.mean((inputs - split.inputs) ** 2)))
    order = np.argsort(-np.linalg.norm(split.gradients, axis=1), kind="stable")
    picked = None if labels is None else labels[order].astype(np.int64)
    return Examples(inputs[order], picked, max(residual, factors.residual, moved), evaluations)
