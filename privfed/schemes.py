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
    """The scheme for ``clients`` clients in all and so many rounds."""
    if cohort.rate is not None:
        return PoissonSampling(cohort.rate)
    if cohort.size is None:
        return FullParticipation()
    if cohort.sampling == "round_robin":
        return RoundRobinSampling(cohort.size, clients, rounds)
    return FixedSizeSampling(cohort.size, clients)
