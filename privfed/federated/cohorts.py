"""Who takes part in a round, and who vanishes in its course."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from privfed.federated.streams import Purpose, Streams
from privfed.privacy.randomness import bernoulli, choice, uniform
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling, RoundRobinSampling, SamplingScheme
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
    elif isinstance(scheme, RoundRobinSampling):
        # One fixed order for the whole run, and for its resumption: nobody's privacy rests on it.
        order = np.random.default_rng(streams.key(Purpose.ORDER, 0)).permutation(clients)
        sampled = np.sort(order[list(scheme.cohort(number))])
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


def abort_probability(
    clients: int, scheme: SamplingScheme, dropout: float, threshold: Callable[[int], int]
) -> float:
    """Chance of a round of secure aggregation to end below its threshold.

    A client vanishes with probability ``dropout``, and the last stage needs ``threshold`` of the cohort's size. An
    empty cohort does not abort.
    """
    sizes = np.arange(1, clients + 1)
    if isinstance(scheme, PoissonSampling):
        chances = binom.pmf(sizes, clients, scheme.rate)
    elif isinstance(scheme, FixedSizeSampling | RoundRobinSampling):
        chances = (sizes == scheme.size).astype(float)
    else:
        chances = (sizes == clients).astype(float)
    needed = np.array([threshold(int(size)) for size in sizes])
    too_few = binom.cdf(needed - 1, sizes, 1 - dropout)
    return float(min(1.0, np.sum(chances * too_few)))
