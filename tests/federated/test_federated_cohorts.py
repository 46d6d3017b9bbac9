"""Cohorts are drawn by the scheme that the accountant is told, and vanish at every stage alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, chi2

from privfed.federated.aggregation import round_threshold
from privfed.federated.cohorts import VANISHING_STAGES, abort_probability, sample_cohort
from privfed.federated.streams import Purpose, Streams
from privfed.privacy.randomness import SystemSource
from privfed.privacy.sampling import (
    FixedSizeSampling,
    FullParticipation,
    PoissonSampling,
    RoundRobinSampling,
    SamplingScheme,
)

STREAMS = [Streams(5, secure=False), Streams(5, secure=True)]
FALSE_ALARM = 1e-6


def sizes(rate: float, streams: Streams, rounds: int = 2000) -> np.ndarray:
    scheme = PoissonSampling(rate)
    return np.array([len(sample_cohort(r, 40, scheme, 0, streams).clients) for r in range(1, rounds + 1)])


@pytest.mark.parametrize("streams", STREAMS, ids=["research", "secure"])
@pytest.mark.parametrize("claimed_over_true", [1.0, 1.1])
def test_poisson_cohort_sizes_are_binomial_and_a_wrong_rate_is_caught(
    streams: Streams, claimed_over_true: float
) -> None:
    observed = Counter(sizes(0.25, streams).tolist())
    support = np.arange(41)
    expected = 2000 * binom.pmf(support, 40, 0.25 * claimed_over_true)
    inside = expected >= 8
    statistic = sum((observed[k] - expected[k]) ** 2 / expected[k] for k in support[inside])
    p = chi2.sf(statistic, inside.sum() - 1)
    assert (p > FALSE_ALARM) == (claimed_over_true == 1)


def test_every_client_is_drawn_alike_and_independently_of_the_round_before() -> None:
    taken = np.zeros((2000, 40), bool)
    for r in range(2000):
        taken[r, list(sample_cohort(r, 40, PoissonSampling(0.25), 0, STREAMS[0]).clients)] = True
    assert abs(taken.mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)
    again = (taken[1:] & taken[:-1]).mean()
    assert abs(again - 0.0625) < 5 * np.sqrt(0.0625 / (1999 * 40))


def test_fixed_size_and_everybody() -> None:
    for number in range(20):
        fixed = sample_cohort(number, 9, FixedSizeSampling(4, 9), 0, STREAMS[0]).clients
        assert len(set(fixed)) == 4
        assert fixed == tuple(sorted(fixed))
        assert sample_cohort(number, 9, FullParticipation(), 0, STREAMS[0]).clients == tuple(range(9))


def test_dropouts_have_their_rate_and_every_stage() -> None:
    stages: Counter[object] = Counter()
    for number in range(400):
        cohort = sample_cohort(number, 50, FullParticipation(), 0.2, STREAMS[0])
        assert set(cohort.dropouts) <= set(cohort.clients)
        stages.update(cohort.dropouts.values())
    assert set(stages) == set(VANISHING_STAGES)
    total = sum(stages.values())
    assert abs(total - 4000) < 5 * np.sqrt(20_000 * 0.16)
    assert all(abs(n - total / 4) < 5 * np.sqrt(total * 3 / 16) for n in stages.values())


def test_research_draws_repeat_and_secure_ones_do_not() -> None:
    for scheme in (PoissonSampling(0.5), FixedSizeSampling(10, 40)):
        first, second = (sample_cohort(1, 40, scheme, 0, STREAMS[0]) for _ in range(2))
        assert first == second
        fresh = {sample_cohort(1, 40, scheme, 0, STREAMS[1]).clients for _ in range(5)}
        assert len(fresh) > 1


def test_secure_streams_come_from_the_system_where_privacy_rests_on_them() -> None:
    secure = {p for p in Purpose if isinstance(STREAMS[1].source(p, 1), SystemSource)}
    assert secure == {Purpose.COHORT, Purpose.ROUNDING, Purpose.NOISE, Purpose.CLIENT_NOISE}
    keys = {STREAMS[0].key(p, r, c) for p in Purpose for r in range(3) for c in (None, 0, 1)}
    assert len(keys) == len(Purpose) * 9


def test_two_survivor_lists_never_both_reach_the_threshold() -> None:
    for cohort in range(1, 60):
        for colluders in range(cohort):
            needed = round_threshold(cohort, None, colluders)
            honest = cohort - colluders
            # Each honest client signs one list; colluders sign both.
            assert 2 * needed > honest + 2 * colluders
            assert needed <= cohort or cohort == 1
    assert round_threshold(54, None, 3) == 29
    assert round_threshold(54, 40, 3) == 40
    assert round_threshold(2, None, 0) == 2


@pytest.mark.parametrize(
    "scheme", [PoissonSampling(0.3), FixedSizeSampling(5, 12), RoundRobinSampling(4, 12, 30), FullParticipation()]
)
def test_the_chance_of_an_abort_is_what_simulated_rounds_show(scheme: SamplingScheme) -> None:
    clients, dropout, rounds = 12, 0.35, 4000

    def needed(cohort: int) -> int:
        return round_threshold(cohort, 3, 1)

    stated = abort_probability(clients, scheme, dropout, needed)
    aborts = 0
    for number in range(1, rounds + 1):
        cohort = sample_cohort(number, clients, scheme, dropout, STREAMS[0])
        size = len(cohort.clients)
        aborts += size > 0 and size - len(cohort.dropouts) < needed(size)
    # Five standard deviations: a false alarm in 10⁶.
    assert abs(aborts / rounds - stated) < 5 * np.sqrt(stated * (1 - stated) / rounds)
    assert abort_probability(clients, scheme, 0.0, lambda cohort: min(cohort, 2)) == pytest.approx(0, abs=1e-12)
