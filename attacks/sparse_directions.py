"""Split a low-rank layer gradient into its examples by the zeros that ReLU leaves in it.

With inputs ``x̃ᵢ = [xᵢ; 1]`` and gradients ``δᵢ`` of the units, ``[dW; db] = Σ x̃ᵢ δᵢᵀ`` has as many singular values
as there are examples, and each ``δᵢ`` is zero at the units that example leaves off. So among the combinations of
the right singular vectors, ``V q``, the ``δᵢ`` are the sparse ones (SPEAR: Dimitrov et al. 2024, arXiv:2403.03945,
section 3). SPEAR finds them by the null vectors of random units, of which about ``2^(1−b)`` are all off for one
example. Here the units are chosen by what the attacker knows of the inputs: they lie in the span of the left
singular vectors and are mostly positive, and units whose pre-activation is far below zero for a guess in that span
are off for examples anywhere near it. A robust fit then bears the units that are not. The inputs still missing
lie in a complement of the directions already found, so each guess is easier than the one before.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.layer_factors import Factors, Matrix
from attacks.robust_fit import fit_directions

ROUNDING = 8.0
"""Standard deviations of the noise within which an entry counts as zero."""
SWAPS = 8
"""So many directions that were not chosen are tried in the place of those that were."""
BRIGHT = 0.05
"""Pixels darker than this share of the brightest are too faint to divide by."""
ALIKE = 1e-4
"""Ratios this close together, in units of their spread, are equal."""
SHARES = ((0.1, 0.3), (0.2, 0.3), (0.1, 0.1), (0.2, 0.1), (0.35, 0.1))
"""Of all live units, how many of the lowest are fitted."""
BESIDE = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Likewise where directions found already are kept out."""
SAME = 1e-4
"""Directions whose cosine is closer to one than this are the same."""
LEVERAGE = 1 - 1e-6
"""Zeros whose direction hangs on a single one of them, by this measure, are no example's."""
INSIDE = 0.99
"""A set of zeros counts as inside another when this share of it is."""
INDEPENDENT = 1e-2
"""A direction with less than this length outside the span of others is one of their combinations."""


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and unit gradients whose products add up to the gradient.

    Attributes:
        inputs: ``[b, inputs]``.
        gradients: ``[b, units]``, exactly zero where they are within the noise of it.
        contradictions: Of the gradients that are zero, the share whose unit is on by its input and the weights,
            those before the local steps and those after: near 0 for a right answer, near 1/2 for a wrong one.
    """

    inputs: Matrix
    gradients: Matrix
    contradictions: float


class Search:
    """Finds the sparse directions of one gradient, in rounds of ``advance``."""

    def __init__(self, factors: Factors, weights: Matrix, end_weights: Matrix | None = None) -> None:
        """``weights`` ``[inputs + 1, units]`` are the layer's, with its bias as the last row.

        ``end_weights`` are those after the local steps, for a gradient that is a sum over several.
        """
        self._factors = factors
        self._weights = (weights, weights if end_weights is None else end_weights)
        row_noise = factors.noise * float(np.sqrt(np.sum(factors.values**-2.0)))
        lengths = np.linalg.norm(factors.right, axis=1)
        live = lengths > max(30 * row_noise, 1e-3 * float(lengths.max()))
        self._live = live
        self._rows = factors.right[live]
        self._unit_rows = self._rows / lengths[live][:, None]
        self._unit_noise = row_noise / lengths[live]
        reaches = [w[:, live].T @ factors.left for w in self._weights]
        self._reaches = [r / np.maximum(np.linalg.norm(r, axis=1, keepdims=True), 1e-300) for r in reaches]
        bright = factors.left.sum(axis=0)
        self._bright = bright / max(float(np.linalg.norm(bright)), 1e-300)
        self._pool: Matrix = np.zeros((0, factors.rank))
        self.found = 0

    @property
    def units(self) -> int:
        """How many units have a gradient."""
        return len(self._rows)

    @property
    def hopeless(self) -> bool:
        """Whether there are too few units with a gradient to tell one direction from another."""
        return len(self._rows) < 2 * self._factors.rank

    def rebuilt(self, inputs: Matrix) -> Split | None:
        """The split whose inputs are ``inputs`` ``[b, inputs]``, of the same span."""
        scaled = (self._factors.left * self._factors.values).T
        complete = np.hstack([inputs, np.ones((len(inputs), 1))])
        directions = np.linalg.lstsq(complete.T, scaled.T, rcond=None)[0].T
        lengths = np.linalg.norm(directions, axis=0)
        return None if (lengths == 0).any() else self._split(directions / lengths)

    def leverage(self, split: Split) -> float:
        """How far the worst of the examples hangs on a single one of its zeros: 1 when it does altogether.

        Without that zero a multiple of another example's gradients could be added to its own, so that the zeros
        do not say which is right.
        """
        rank = self._factors.rank
        if rank == 1:
            return 0.0
        worst = 0.0
        for gradient in split.gradients:
            rows = self._factors.right[self._live & (gradient == 0)]
            if len(rows) < rank:
                return 1.0
            left, values, _ = np.linalg.svd(rows, full_matrices=False)
            if values[-2] <= 1e-6 * values[0]:
                return 1.0
            worst = max(worst, float(np.sum(left[:, :-1] ** 2, axis=1).max()))
        return worst

    def advance(self, rng: np.random.Generator) -> Split | None:
        """One round of guesses; a split as soon as there are as many independent directions as examples."""
        rank = self._factors.rank
        if rank == 1:
            return self._split(np.ones((1, 1)))
        chosen = self._select()
        count = 16 * max(rank, 6)
        guesses = self._guesses(chosen, count, rng)
        allowed = self._apart(chosen, len(guesses), rng)
        # A unit that is far below zero at both ends of the local steps was most likely so in between.
        heights = [guesses @ reach.T for reach in self._reaches]
        height = np.where(
            allowed, np.where(rng.random((count, 1)) < 0.3, heights[0], np.maximum(*heights)), np.inf
        )
        for i, share in enumerate(SHARES):
            self._collect(fit_directions(self._unit_rows, height[i :: len(SHARES)], *share))
        chosen = self._select()
        doubtful: list[NDArray[np.float64]] = []
        if 0 < len(chosen) < rank:
            doubtful = self._collect_beside(chosen, rng)
            chosen = self._select()
        if len(chosen) == rank - 1:
            doubtful += self._collect(self._last(chosen)[None])
            chosen = self._select()
        self.found = len(chosen)
        if len(chosen) == rank:
            return self._best_split(chosen)
        if len(chosen) < rank - 1:
            return None
        # With all others known, one that hangs on a single zero can be judged by the split that it makes.
        splits = [self._split(np.vstack([chosen, q]).T) for q in doubtful if self._completes(chosen, q)]
        return min((s for s in splits if s is not None), key=lambda s: s.contradictions, default=None)

    @staticmethod
    def _completes(chosen: Matrix, direction: NDArray[np.float64]) -> bool:
        return bool(np.linalg.svd(np.vstack([chosen, direction]), compute_uv=False)[-1] > INDEPENDENT)

    def _collect_beside(self, chosen: Matrix, rng: np.random.Generator) -> list[NDArray[np.float64]]:
        """Look for directions that none of ``chosen`` can pass for, by guesses at the inputs still missing.

        Where the examples found are off at most units, a robust fit ends at them whatever the guess. An input
        still missing is orthogonal to them, and its own direction is not orthogonal to it.

        Returns:
            As ``_collect``.
        """
        doubtful: list[NDArray[np.float64]] = []
        missing = self._factors.rank - len(chosen)
        basis, _ = np.linalg.qr((chosen / self._factors.values).T)
        guesses = self._guesses(chosen, 8 * missing * len(BESIDE), rng)
        guesses = guesses - guesses @ basis @ basis.T
        if missing == 1:
            # The input itself but for its sign, which the constant behind the pixels gives.
            guesses *= np.sign(guesses @ self._factors.left[-1])[:, None]
        height = np.maximum(*(guesses @ reach.T for reach in self._reaches))
        # The first is tried with all units.
        left_out = rng.random(height.shape) > rng.choice([1.0, 0.8], (len(guesses), 1))
        left_out[: len(BESIDE)] = False
        height = np.where(left_out, np.inf, height)
        toward = guesses / self._factors.values
        toward /= np.maximum(np.linalg.norm(toward, axis=1, keepdims=True), 1e-300)
        for i, share in enumerate(BESIDE):
            picked = slice(i, None, len(BESIDE))
            doubtful += self._collect(fit_directions(self._unit_rows, height[picked], share, 0.1, toward[picked]))
        return doubtful

    def _apart(self, chosen: Matrix, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Units to choose from, ``[count, units]``: some left out at random, so that no two fits are alike.

        Of the guesses some are kept to units that are on in up to three of the examples found already. Alike
        examples are off at the same units, and combinations of them at those; the units that tell the missing
        ones from the known are among the rest.
        """
        kept = rng.choice([1.0, 0.8, 0.6], (count, 1))
        allowed = rng.random((count, len(self._rows))) < kept
        if not len(chosen):
            return allowed
        on = ~np.stack([self._zero(q) for q in chosen])
        order = rng.random((count, len(chosen))).argsort(axis=1)
        excluded = rng.integers(0, 4, count)
        for i in range(min(3, len(chosen))):
            narrower = allowed & on[order[:, i]]
            fits = (excluded > i) & (narrower.sum(axis=1) >= 2 * self._factors.rank)
            allowed[fits] = narrower[fits]
        return allowed

    def _last(self, chosen: Matrix) -> NDArray[np.float64]:
        """The one direction that is missing, by the pixels that are black in the examples found already.

        Inputs and directions are dual bases, so the missing input is known, and each of the others but for a
        multiple of it. Where that other is black the multiple is the ratio of the two, alike for all such pixels.
        What is orthogonal to the others is the missing direction; without black pixels it is a guess to check.
        """
        dual = np.linalg.pinv(chosen).T
        missing = np.linalg.svd(chosen)[2][-1]
        scaled = self._factors.left[:-1] * self._factors.values
        lit = np.abs(scaled @ missing)
        pixels = scaled[lit > BRIGHT * lit.max()]
        for k in range(len(dual)):
            ratios = np.sort(-(pixels @ dual[k]) / (pixels @ missing))
            width = ALIKE * float(np.median(np.abs(ratios - np.median(ratios))))
            alike = np.searchsorted(ratios, ratios + width) - np.arange(len(ratios))
            first = int(alike.argmax())
            dual[k] += np.median(ratios[first : first + alike[first]]) * missing
        return self._sharpened(np.linalg.svd(dual)[2][-1], (1e-2, 1e-3))

    def _guesses(self, chosen: Matrix, count: int, rng: np.random.Generator) -> Matrix:
        """Inputs in coordinates of ``left``, ``[count, b]``: bright on the whole, otherwise anything.

        Two of three are orthogonal to what the inputs still missing are orthogonal to.
        """
        rank = self._factors.rank
        spread = rng.normal(size=(count, rank)) / np.sqrt(rank)
        guesses = spread + rng.choice([0.5, 1.0, 1.5], (count, 1)) * self._bright
        if 0 < len(chosen) < rank:
            basis, _ = np.linalg.qr((chosen / self._factors.values).T)
            guesses[::3] -= guesses[::3] @ basis @ basis.T
            guesses[1::3] -= guesses[1::3] @ basis @ basis.T
        return np.asarray(guesses)

    def _collect(self, directions: Matrix) -> list[NDArray[np.float64]]:
        """Sharpen what is new among ``directions``, and keep what has more zeros than its own rank explains.

        Returns:
            Directions that hang on a single zero, which are not kept.
        """
        doubtful: list[NDArray[np.float64]] = []
        least = self._factors.rank + 2
        near = np.abs(directions @ self._unit_rows.T) < np.maximum(1e-3, 10 * self._unit_noise)
        for i in np.argsort(-near.sum(axis=1), kind="stable"):
            if near[i].sum() < least:
                break
            if self._known(directions[i]):
                continue
            direction = self._sharpened(directions[i])
            zero = self._zero(direction)
            if zero.sum() < least:
                continue
            left, values, right = np.linalg.svd(self._rows[zero], full_matrices=False)
            # A combination of two examples is zero where both are, and at one more unit by chance: without
            # that unit, whose leverage is then one, more than one direction would be open.
            leverage = float(np.sum(left[:, :-1] ** 2, axis=1).max())
            if values[-2] > 1e-6 * values[0] and not self._known(right[-1]):
                if leverage < LEVERAGE:
                    self._pool = np.vstack([self._pool, right[-1]])
                else:
                    doubtful.append(right[-1])
        return doubtful

    def _sharpened(
        self, direction: NDArray[np.float64], widths: tuple[float, ...] = (1e-4, 1e-5, 1e-6, 1e-7)
    ) -> NDArray[np.float64]:
        """The direction by all units, those that only come close to it by chance losing their weight."""
        for width in widths:
            distance = self._unit_rows @ direction
            weights = 1 / (distance**2 + np.maximum(width, self._unit_noise) ** 2)
            direction = np.linalg.eigh((self._unit_rows.T * weights) @ self._unit_rows)[1][:, 0]
        return direction

    def _known(self, direction: NDArray[np.float64]) -> bool:
        return bool((np.abs(self._pool @ direction) > 1 - SAME).any())

    def _zero(self, direction: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which live units have no gradient in ``direction``."""
        return np.asarray(np.abs(self._rows @ direction) < self._threshold(direction))

    def _threshold(self, direction: NDArray[np.float64]) -> float:
        """Below this an entry of ``right · direction`` is zero: its noise is that of the gradient it came from."""
        noise = self._factors.noise * float(np.linalg.norm(direction / self._factors.values))
        return ROUNDING * noise + 1e-11

    def _select(self) -> Matrix:
        """Independent directions of the pool ``[≤ b, b]``, those with the most zeros first.

        Combinations of directions have zeros too, where all of them do: inside each of their sets.
        """
        if not len(self._pool):
            return self._pool
        zeros = np.stack([self._zero(q) for q in self._pool]).astype(np.float64)
        count = zeros.sum(axis=1)
        shared = zeros @ zeros.T
        inside = (shared >= INSIDE * count[:, None]) & (count[None, :] > 1.02 * count[:, None])
        candidates = np.flatnonzero(~inside.any(axis=1))
        chosen: list[int] = []
        basis = np.zeros((0, self._pool.shape[1]))
        for i in candidates[np.argsort(-count[candidates], kind="stable")]:
            rest = self._pool[i] - basis.T @ (basis @ self._pool[i])
            length = float(np.linalg.norm(rest))
            if length > INDEPENDENT and len(chosen) < self._factors.rank:
                chosen.append(int(i))
                basis = np.vstack([basis, rest / length])
        return self._pool[chosen]

    def _best_split(self, chosen: Matrix) -> Split | None:
        """The split by ``chosen`` ``[b, b]``, or by one swap with the rest of the pool that contradicts less."""
        best = self._split(chosen.T)
        rest = [q for q in self._pool if not (np.abs(chosen @ q) > 1 - SAME).any()][:SWAPS]
        for candidate, k in itertools.product(rest, range(len(chosen))):
            if best is not None and best.contradictions == 0:
                break
            swapped = np.vstack([chosen[:k], candidate, chosen[k + 1 :]])
            if np.linalg.svd(swapped, compute_uv=False)[-1] < INDEPENDENT:
                continue
            split = self._split(swapped.T)
            if split is not None and (best is None or split.contradictions < best.contradictions):
                best = split
        return best

    def _split(self, directions: Matrix) -> Split | None:
        """Inputs and gradients from the columns of ``directions`` ``[b, b]``; ``None`` if one has no scale."""
        factors = self._factors
        inputs = np.linalg.solve(directions, (factors.left * factors.values).T)
        ones = inputs[:, -1]
        # Of [x; 1] with x in [0, 1] the last entry is at least this share of the length.
        if (np.abs(ones) < 0.1 / np.sqrt(inputs.shape[1]) * np.linalg.norm(inputs, axis=1)).any():
            return None
        inputs = inputs / ones[:, None]
        gradients = (factors.right @ directions).T * ones[:, None]
        thresholds = np.array([self._threshold(q) for q in directions.T]) * np.abs(ones)
        on = np.abs(gradients) > thresholds[:, None]
        off = self._live & ~on
        always_on = np.all([inputs @ w > 0 for w in self._weights], axis=0)
        contradictions = float(np.mean(always_on[off])) if off.any() else 1.0
        return Split(inputs[:, :-1], np.where(on, gradients, 0.0), contradictions)
