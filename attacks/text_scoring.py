"""How good a reconstruction of text is: sets of tokens, tokens in their places, whole sequences, ROUGE.

ROUGE (Lin 2004) is given as F1 of n-gram overlap (1, 2) and of the longest common subsequence (L), on token ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from attacks.base import Images

LEVELS = 255
"""Examples of text hold token ids over this."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TextScores:
    """All sequences behind an observation, each beside the reconstruction it is matched to; means over them.

    Attributes:
        token_set: F1 of the set of tokens.
        token_accuracy: Share of tokens that are right in their places; 0 of what was not found.
        exact: Share of sequences that are right as a whole.
        rouge1: F1 of single tokens.
        rouge2: F1 of pairs of neighbours.
        rouge_l: F1 of the longest common subsequence.
    """

    token_set: float
    token_accuracy: float
    exact: float
    rouge1: float
    rouge2: float
    rouge_l: float


def as_ids(examples: Images) -> Ids:
    """Token ids ``[k, length]`` of examples in [0, 1]."""
    return np.asarray(np.rint(examples * LEVELS), np.int64)


def score_text(examples: Images, tokens: Ids | None, truth: Images) -> TextScores:
    """Score what an attack found against the sequences behind the observation.

    Sequences are matched one to one so that most tokens are right (Hungarian method). Those that are behind the
    observation twice count once: a gradient does not tell how often.

    Args:
        examples: Reconstructions ``[k, length]``, ids over 255.
        tokens: Ids that the attack says occur; those of ``examples`` when ``None``.
        truth: ``[n, length]``, n ≥ 1.
    """
    found, behind = np.unique(as_ids(examples), axis=0), np.unique(as_ids(truth), axis=0)
    named = {int(t) for t in (found.ravel() if tokens is None else tokens)}
    occurring = {int(t) for t in behind.ravel()}
    token_set = _f1(len(named & occurring), len(named), len(occurring))
    if not len(found):
        return TextScores(token_set, 0.0, 0.0, 0.0, 0.0, 0.0)
    right = (found[:, None, :] == behind[None]).mean(axis=2)
    rows = [(0.0, 0.0, 0.0, 0.0, 0.0)] * len(behind)
    for i, j in zip(*linear_sum_assignment(-right), strict=True):
        one, two = found[i].tolist(), behind[j].tolist()
        accuracy = float(right[i, j])
        rows[j] = (accuracy, float(accuracy == 1), rouge_n(one, two, 1), rouge_n(one, two, 2), rouge_l(one, two))
    return TextScores(token_set, *(float(mean) for mean in np.mean(rows, axis=0)))


def rouge_n(one: Sequence[int], two: Sequence[int], n: int) -> float:
    """F1 of the overlap of n-grams, each counted as often as it occurs in both."""
    grams = [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for text in (one, two)]
    return _f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


def rouge_l(one: Sequence[int], two: Sequence[int]) -> float:
    """F1 of the longest common subsequence."""
    longest = [0] * (len(two) + 1)
    for a in one:
        diagonal = 0
        for j, b in enumerate(two, start=1):
            above = longest[j]
            longest[j] = diagonal + 1 if a == b else max(above, longest[j - 1])
            diagonal = above
    return _f1(longest[-1], len(one), len(two))


def _f1(common: int, found: int, true: int) -> float:
    return 2 * common / (found + true) if found + true else 0.0
