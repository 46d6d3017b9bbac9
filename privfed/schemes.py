"""From settings to how cohorts are drawn, and to all that ε depends on: what is done is what is accounted."""

from __future__ import annotations

from privfed.config import Cohort, Settings
from privfed.privacy.plan import PrivacyPlan
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


def privacy_plan_of(settings: Settings, clients: int, dimension: int) -> PrivacyPlan | None:
    """All that ε depends on but the noise, of ``clients`` clients and ``dimension`` weights.

    ``None`` without a mechanism.
    """
    privacy, masking, training = settings.privacy, settings.secure_aggregation, settings.training
    if privacy.mechanism == "none":
        return None
    assert privacy.clip_norm is not None  # the settings were checked
    return PrivacyPlan(
        kind=privacy.mechanism,
        sampling=sampling_scheme(settings.cohort, clients, training.rounds),
        rounds=training.rounds,
        delta=privacy.delta,
        clip_norm=privacy.clip_norm,
        population=clients,
        dropout=settings.cohort.dropout,
        wanted=wanted_cohort(settings.cohort, clients),
        secure=privacy.randomness == "secure",
        quantile=privacy.quantile,
        quantile_rate=privacy.quantile_rate,
        dimension=dimension,
        bands=privacy.bands,
        ring_bits=32 if masking.ring_bits == "auto" else masking.ring_bits,  # integer noise refuses "auto"
        masked=masking.mode in ("protocol", "bfv"),
        threshold=masking.threshold or 2,
        colluders=masking.colluders,
        seed=training.seed,
        example_rate=privacy.example_rate or 1.0,
        local_steps=training.local_steps or 1,
        update_scale=training.learning_rate / training.batch_size,
        guests=settings.audit.canaries,
    )
