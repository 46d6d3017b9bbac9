"""How good counts of labels are, beside what a guess that saw nothing reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelScores:
    """Counts of labels beside the true ones; both as shares, so that a wrong total is no error by itself.

    Attributes:
        overlap: Share of labels that are right, 1 less the total variation distance of the two distributions.
        exact: Whether the shares are the true ones, label by label.
        occurring: F1 of the set of labels that occur.
        trivial: ``overlap`` of guesses that saw nothing, by name.
        found: Examples counted of each class ``[classes]``.
        true: Examples there are.
    """

    overlap: float
    exact: bool
    occurring: float
    trivial: dict[str, float]
    found: tuple[int, ...]
    true: tuple[int, ...]


def score_labels(
    found: NDArray[np.int64], truth: NDArray[np.int64], classes: int, public: NDArray[Any] | None
) -> LabelScores:
    """Score the labels that an attack says are behind an observation.

    Args:
        found: ``[k]``, k ≥ 1, in any order.
        truth: Those that are, ``[n]``, n ≥ 1.
        classes: How many there are; labels lie below.
        public: Labels of examples that nobody trained on, of which anybody may know the distribution.
    """
    counted, true = (np.bincount(labels, minlength=classes) for labels in (found, truth))
    both, either = int(((counted > 0) & (true > 0)).sum()), int((counted > 0).sum() + (true > 0).sum())
    guesses = {"all alike": np.ones(classes)}
    if public is not None and len(public):
        guesses["held-out labels"] = np.bincount(public, minlength=classes).astype(np.float64)
    return LabelScores(
        overlap=_overlap(counted, true),
        exact=bool((counted * true.sum() == true * counted.sum()).all()),
        occurring=2 * both / either,
        trivial={name: _overlap(guess, true) for name, guess in guesses.items()},
        found=tuple(counted.tolist()),
        true=tuple(true.tolist()),
    )


def _overlap(one: NDArray[Any], two: NDArray[Any]) -> float:
    return min(1.0, float(np.minimum(one / one.sum(), two / two.sum()).sum()))
