"""The labels behind a gradient, from the gradient of the last layer's bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def infer_labels(bias_gradient: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ``count`` most likely labels, as a multiset ``[count]``, the most certain first.

    For softmax cross-entropy that gradient is the mean of ``probabilities − one_hot(label)``, so with one
    example the only negative entry is its label (iDLG: Zhao et al. 2020, arXiv:2001.02610, section 3.1). For
    more, each negative entry is a label that occurs, and the rest are drawn greedily, each time taking one
    example's share off the most negative entry (LLG: Wainakh et al. 2022, arXiv:2105.09369, algorithm 1).
    The scale of the gradient does not matter; for a sum over several steps the answer is approximate.

    Args:
        bias_gradient: ``[classes]``, times any positive number.
        count: How many examples, at least 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}: at least one label has to be asked for")
    left = np.array(bias_gradient, np.float64)
    negative = np.flatnonzero(left < 0)
    # One example's mean effect on the entry of its own label: the negative entries sum to the probability of the
    # labels that occur, less 1. That probability is about their share of the classes in an untrained model; LLG's
    # factor, 1 + 1 / classes, is the same for one label, to first order.
    impact = left[negative].sum() / count / (1 - len(negative) / len(left)) if len(negative) < len(left) else 0.0
    labels = [int(i) for i in negative[np.argsort(left[negative], kind="stable")]][:count]
    left[labels] -= impact
    while len(labels) < count:
        label = int(np.argmin(left))
        labels.append(label)
        left[label] -= impact
    return np.array(labels, np.int64)
