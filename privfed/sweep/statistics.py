"""Means over seeds with their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from pydantic import JsonValue

from privfed.audit.evidence import Count, Extended, NonNegative, Number, Part, Share
from privfed.sweep.trial import TrialResult

LEVEL = 0.95


class Mean(Part):
    """A mean of ``n`` values with the half width of its 95 % t-interval, ``None`` for a single value."""

    value: Number
    half_width: NonNegative | None
    n: Count


class Summary(Part):
    """The trials that differ in their seeds only."""

    values: dict[str, JsonValue]
    accuracy: Mean
    """Test accuracy."""
    accuracies: tuple[Share, ...]
    """Of each trial."""
    epsilon: dict[str, Extended]
    """By observer, the largest of any of the trials: with dropouts the seeds' ε differ a little."""


def mean(values: Sequence[float], level: float = LEVEL) -> Mean:
    """Mean with Student's t-interval, which takes the values as independent and normal.

    The interval covers the mean over seeds, of trainings on this population: not other populations.
    """
    n = len(values)
    middle = math.fsum(values) / n
    if n < 2:
        return Mean(value=middle, half_width=None, n=n)
    from scipy.stats import t  # half a second to import

    deviation = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1))
    half_width = float(t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return Mean(value=middle, half_width=half_width, n=n)


def summaries(results: Sequence[TrialResult]) -> list[Summary]:
    """One for each combination of varied values with a finished trial, in order of appearance."""
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        if result.status == "done" and result.test_accuracy is not None:
            groups.setdefault(json.dumps(result.values, sort_keys=True), []).append(result)
    found = []
    for group in groups.values():
        accuracies = tuple(r.test_accuracy for r in group if r.test_accuracy is not None)
        observers = group[0].privacy
        epsilon = {name: max(r.privacy[name].epsilon for r in group) for name in observers}
        found.append(
            Summary(values=group[0].values, accuracy=mean(accuracies), accuracies=accuracies, epsilon=epsilon)
        )
    return found
