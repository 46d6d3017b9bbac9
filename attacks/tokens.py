"""The tokens behind an update, from the rows of the embedding that moved.

Only the rows of tokens that occur have a gradient (Melis et al. 2019, IEEE S&P, section 4.1; Gupta et al. 2022,
arXiv:2205.08514, section 4.1). Neither scale, local steps nor the number of clients in a sum matters to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from attacks.base import Guess, NotInvertible, ThreatModel
from privfed.transcript import Observation, Observer, View

FALSE_ALARM = 1e-3
"""Chance that noise alone makes any row of the embedding count as moved."""


@dataclass(frozen=True)
class Tokens:
    """Says which tokens occur, and nothing of their order or number."""

    name: ClassVar[str] = "tokens"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("which variable embeds the tokens", "the noise in the vector"),
        assumptions=(
            "the embedding is trained, and is not the output layer too",
            "noise below the change of a row; not every token occurs",
        ),
        inputs=("tokens",),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; it draws nothing from ``rng``, and its guess has tokens instead of examples."""
        if view.model.embedding is None:
            raise NotInvertible(f"model {view.model.name} embeds no tokens")
        tokens, unexplained = moved_rows(view.observations[index], view, view.model.embedding)
        vocabulary = view.model.variables[view.model.embedding].shape[0]
        if not len(tokens):
            raise NotInvertible("no row of the embedding moved more than the noise in the vector explains")
        if len(tokens) == vocabulary:
            raise NotInvertible("every row of the embedding moved: noise or all tokens are behind the vector")
        none = np.zeros((0, *view.model.input_shape))
        return Guess(none, None, unexplained, evaluations=0, tokens=tokens)


def moved_rows(seen: Observation, view: View, embedding: int) -> tuple[NDArray[np.int64], float]:
    """Tokens whose row moved more than noise explains ``[k]``, rising, and the share of the movement left out."""
    rows = np.asarray(view.model.unflatten(seen.vector)[embedding], np.float64)
    rows = rows / (np.abs(rows).max() or 1.0)
    squares = np.sum(rows**2, axis=1)
    least = 0.0
    if seen.noise_stddev:
        # The vector's scale was divided out above.
        stddev = seen.noise_stddev / max(float(np.abs(view.model.unflatten(seen.vector)[embedding]).max()), 1e-300)
        least = stddev**2 * float(chi2.isf(FALSE_ALARM / len(rows), rows.shape[1]))
    moved = squares > least
    left = np.sqrt(squares[~moved].sum() / (squares.sum() or 1.0))
    return np.flatnonzero(moved).astype(np.int64), float(left)
