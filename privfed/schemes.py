"""From the table ``[cohort]`` to how cohorts are drawn: what the sampler does and the accountant is told."""

from __future__ import annotations

from privfed.config import Cohort
from privfed.privacy.sampling import (
    FixedSizeSampling,
    FullParticipation,
    PoissonSampling,
    RoundRobinSampling,
    SamplingScheme,
)


def sampling_scheme(cohort: Cohort, clients: int, rounds: int) -> SamplingScheme:
    """The scheme for ``clients`` clients in all and so many rounds, with those that are drawn for stragglers."""
    if cohort.drawn_rate is not None:
        return PoissonSampling(cohort.drawn_rate)
    if cohort.size is None or cohort.drawn_size is None:
        return FullParticipation()
    size = min(cohort.drawn_size, max(clients, cohort.size))  # no more than there are; a wanted excess is refused
    if cohort.sampling == "round_robin":
        return RoundRobinSampling(size, clients, rounds)
    return FixedSizeSampling(size, clients)


def wanted_cohort(cohort: Cohort, clients: int) -> float:
    """Clients that a round is to be left with, on average where their number is random: without over-selection."""
    return float(clients * (cohort.rate or 1.0) if cohort.size is None else cohort.size)
