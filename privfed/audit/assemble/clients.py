"""The released model client by client: whom it serves, and whom privacy costs most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material
from privfed.federated.client_evaluation import ClientEvaluation, evaluate_clients
from privfed.federated.evaluation import per_example_losses

BINS = 20
WORST = 20
"""Clients named in ``report.json``."""


def clients_of(m: Material) -> ev.ClientAccuracy:
    """Over held-out clients where there are any, else over those that trained."""
    e = m.experiment
    held_out = e.held_out is not None
    population = e.held_out if e.held_out is not None else e.population
    losses = per_example_losses(e.model)
    mine = evaluate_clients(e.model, m.result.weights, population, losses=losses)
    base = None
    if m.baseline is not None:
        base = evaluate_clients(e.model, m.baseline.weights, population, losses=losses)
    worst = np.lexsort((mine.clients, mine.client_accuracy))[:WORST]
    return ev.ClientAccuracy(
        whose="clients held out of the training"
        if held_out
        else "the clients that trained, on their own examples",
        clients=len(mine.clients),
        mean=mine.accuracy.mean,
        percentiles={str(key): value for key, value in mine.accuracy.percentiles.items()},
        histogram=_histogram(mine.client_accuracy),
        histogram_unprotected=() if base is None else _histogram(base.client_accuracy),
        mean_unprotected=None if base is None else base.accuracy.mean,
        worst=tuple(_row(mine, int(index)) for index in worst),
    )


def _histogram(values: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.histogram(values, BINS, (0, 1))[0])


def _row(found: ClientEvaluation, index: int) -> ev.WorstClient:
    return ev.WorstClient(
        client=int(found.clients[index]),
        examples=int(found.examples[index]),
        accuracy=float(found.client_accuracy[index]),
    )
