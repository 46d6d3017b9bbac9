"""How a model does on each of many clients, and not on their examples thrown together.

The mean over examples hides whom a model fails, so Caldas et al. (2018, https://arxiv.org/abs/1812.01097) and
Li et al. (2020, https://arxiv.org/abs/1905.10497) report percentiles over clients. Clients that were held out of
the training (``privfed.data.hold_out_clients``) show what a newcomer can expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.federated.evaluation import per_example_losses
from privfed.models.functional import Model, Vector

PERCENTILES = (5, 25, 50, 75, 95)

_ROWS_AT_ONCE = 10_000

Losses = Callable[[Vector, NDArray[np.float32], NDArray[np.int32]], tuple[NDArray[np.float64], NDArray[np.bool_]]]


class ClientExamples(Protocol):
    """What evaluation takes of a population: rows ``offsets[c]:offsets[c + 1]`` are client ``c``'s."""

    @property
    def features(self) -> NDArray[Any]: ...  # noqa: D102 - as the class says

    @property
    def labels(self) -> NDArray[np.int32]: ...  # noqa: D102 - as the class says

    @property
    def offsets(self) -> NDArray[np.int64]: ...  # noqa: D102 - as the class says

    def as_float(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Stored features as the model takes them."""
        ...


@dataclass(frozen=True)
class Distribution:
    """One number for each client, summed up.

    Attributes:
        mean: Every client counts the same.
        weighted_mean: Every example counts the same.
        percentiles: Over clients, each counting the same, by the numbers in ``PERCENTILES``; between two clients
            linear.
    """

    mean: float
    weighted_mean: float
    percentiles: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        """For files; ``None`` stands for what is not finite."""
        return {
            "mean": _finite(self.mean),
            "weighted_mean": _finite(self.weighted_mean),
            "percentiles": {str(key): _finite(value) for key, value in self.percentiles.items()},
        }


@dataclass(frozen=True, eq=False)
class ClientEvaluation:
    """A model on clients, one row for each that has examples. None of it is noised: it is for researchers.

    Attributes:
        clients: Their numbers, in the order asked for, ``[k]``.
        examples: How many each has, ``[k]``.
        client_accuracy: Share of right answers, ``[k]``.
        client_loss: Mean cross-entropy, ``[k]``.
        empty: Clients that were left out because they have no example.
    """

    clients: NDArray[np.int64]
    examples: NDArray[np.int64]
    client_accuracy: NDArray[np.float64]
    client_loss: NDArray[np.float64]
    empty: int

    @property
    def accuracy(self) -> Distribution:
        """Of the accuracy over clients."""
        return _distribution(self.client_accuracy, self.examples)

    @property
    def loss(self) -> Distribution:
        """Of the mean loss over clients."""
        return _distribution(self.client_loss, self.examples)

    def as_json(self) -> dict[str, Any]:
        """The distributions, without a row for each client."""
        return {
            "clients": len(self.clients),
            "clients_without_examples": self.empty,
            "examples": int(self.examples.sum()),
            "accuracy": self.accuracy.as_json(),
            "loss": self.loss.as_json(),
        }


def evaluate_clients(
    model: Model,
    weights: Vector,
    population: ClientExamples,
    clients: NDArray[np.int64] | None = None,
    *,
    losses: Losses | None = None,
) -> ClientEvaluation:
    """Evaluate ``weights`` ``[d]`` on every client, or on those named.

    Args:
        model: Whose weights they are.
        weights: As the clients would be sent them.
        population: Of the clients to evaluate on.
        clients: Numbers of some of them, each once.
        losses: ``per_example_losses(model)``, to evaluate again without tracing again.

    Raises:
        ValueError: No such client; one named twice; none with an example.
    """
    total = len(population.offsets) - 1
    asked = np.arange(total, dtype=np.int64) if clients is None else np.asarray(clients, np.int64)
    if asked.size and not 0 <= asked.min() <= asked.max() < total:
        raise ValueError(f"clients are 0 to {total - 1}, got {asked.min()} to {asked.max()}")
    if np.unique(asked).size != asked.size:
        raise ValueError("a client is named twice")
    sizes = np.diff(population.offsets)[asked]
    chosen, sizes = asked[sizes > 0], sizes[sizes > 0]
    if chosen.size == 0:
        raise ValueError("no client to evaluate on has an example")
    losses = losses or per_example_losses(model)
    loss_sum, correct = np.zeros(len(chosen)), np.zeros(len(chosen))
    ends = np.cumsum(sizes)
    shift = population.offsets[:-1][chosen] - (ends - sizes)
    for start in range(0, int(ends[-1]), _ROWS_AT_ONCE):
        place = np.arange(start, min(start + _ROWS_AT_ONCE, int(ends[-1])))
        owner = np.searchsorted(ends, place, side="right")
        rows = place + shift[owner]
        loss, right = losses(weights, population.as_float(population.features[rows]), population.labels[rows])
        touched = slice(int(owner[0]), int(owner[-1]) + 1)
        loss_sum[touched] += np.bincount(owner - owner[0], loss)
        correct[touched] += np.bincount(owner - owner[0], right)
    return ClientEvaluation(chosen, sizes, correct / sizes, loss_sum / sizes, int(len(asked) - len(chosen)))


def _distribution(values: NDArray[np.float64], examples: NDArray[np.int64]) -> Distribution:
    with np.errstate(invalid="ignore"):  # between two infinite losses lies nothing
        quantiles = np.percentile(values, PERCENTILES)
        weighted = np.average(values, weights=examples)
    named = {percent: float(quantile) for percent, quantile in zip(PERCENTILES, quantiles, strict=True)}
    return Distribution(mean=float(values.mean()), weighted_mean=float(weighted), percentiles=named)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
