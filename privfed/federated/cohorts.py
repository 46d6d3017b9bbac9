"""Who takes part in a round, and who vanishes in its course."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from privfed.federated.streams import Purpose, Streams
from privfed.privacy.randomness import bernoulli, choice, uniform
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling, SamplingScheme
from privfed.secagg import Stage

VANISHING_STAGES: tuple[Stage | None, ...] = (None, Stage.ADVERTISE_KEYS, Stage.SHARE_KEYS, Stage.MASKED_INPUT)
"""The last message a vanishing client sends; ``None`` is none at all."""


@dataclass(frozen=True)
class Cohort:
    """Sampled clients, ascending, and for each that vanishes the last stage whose message it sends."""

    clients: tuple[int, ...]
    dropouts: Mapping[int, Stage | None]


def sample_cohort(number: int, clients: int, scheme: SamplingScheme, dropout: float, streams: Streams) -> Cohort:
    """Draw the cohort of round ``number`` from ``clients`` clients.

    The draw uses exactly the scheme that the accountant is told, from randomness that is secret in secure mode.
    """
    source = streams.source(Purpose.COHORT, number)
    if isinstance(scheme, PoissonSampling):
        sampled = np.flatnonzero(bernoulli(source, scheme.rate, clients))
    elif isinstance(scheme, FixedSizeSampling):
        sampled = np.sort(choice(source, clients, scheme.size))
    else:
        sampled = np.arange(clients)
    cohort = tuple(int(client) for client in sampled)
    if not dropout:
        return Cohort(cohort, {})
    draws = uniform(streams.source(Purpose.DROPOUT, number), 2 * clients).reshape(2, clients)
    dropouts = {
        client: VANISHING_STAGES[int(draws[1, client] * len(VANISHING_STAGES))]
        for client in cohort
        if draws[0, client] < dropout
    }
    return Cohort(cohort, dropouts)
