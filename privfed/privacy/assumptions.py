"""The same Gaussian noise under other assumptions: what ε would be if cohorts, or neighbours, were others.

Only the rows that a run meets are claims about it. The others show how much a claim rests on its assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from privfed.privacy.accounting import PLD_INTERVAL, PLD_SHARE, Release, event_of
from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import (
    ADD_REMOVE,
    REPLACE,
    ZERO_OUT,
    FixedSizeSampling,
    FullParticipation,
    PoissonSampling,
    SamplingScheme,
)

Curve = Callable[[float], float]
"""From δ to ε."""
_FIRST_DELTA = 1e-5
"""Whose ε says how finely privacy losses are cut."""
_STEPS = 40
"""Of the bisection for the δ of group privacy: far below the accountants' own error."""


@dataclass(frozen=True)
class Assumption:
    """ε of one release plan if cohorts were drawn, and neighbours differed, in one way.

    Attributes:
        sampling: In words.
        neighbouring: In words.
        amplified: Whether the cohort's secrecy counts.
        pld: By privacy-loss distributions; ``None`` where no accountant for it is known.
        rdp: By Rényi DP; ``None`` likewise.
        met: Whether the run's own cohorts and claim are these.
        weaker: Whether it holds for the run all the same, as a weaker statement.
    """

    sampling: str
    neighbouring: str
    amplified: bool
    pld: float | None
    rdp: float | None
    met: bool
    weaker: bool


def under_assumptions(
    noise_multiplier: float, sampling: SamplingScheme, rounds: int, delta: float, population: int, cohort: float
) -> list[Assumption]:
    """ε of ``rounds`` rounds of central Gaussian noise under each assumption, the amplified ones first.

    Args:
        noise_multiplier: Standard deviation of the noise on the sum over the clip norm.
        sampling: How the run draws its cohorts.
        rounds: How many.
        delta: Of every row.
        population: Clients in all.
        cohort: Expected size; Poisson's rate and the fixed size of the other rows follow from it.

    Raises:
        PrivacyError: A parameter is out of range.
    """
    rate, size = min(1.0, cohort / population), min(population, max(1, round(cohort)))
    poisson, fixed = PoissonSampling(rate), FixedSizeSampling(size, population)
    own = type(sampling)

    def row(
        scheme: SamplingScheme,
        relation: str,
        by: Mapping[str, Curve],
        *,
        weaker: bool,
        amplified: bool = False,
        steps: int = 1,
    ) -> Assumption:
        met = steps == 1 and own is type(scheme) and relation == scheme.neighbouring
        spent = {name: at(delta) if steps == 1 else twice(at, delta) for name, at in by.items()}
        words = scheme.describe() if amplified else "cohorts known, a client in every round"
        return Assumption(words, relation, amplified, spent.get("PLD"), spent.get("RDP"), met, not met and weaker)

    rows = []
    if rate < 1:
        hidden = _unordered(poisson, noise_multiplier, rounds)
        removed_and_added = f"{REPLACE}: a removal and an addition"
        drawn_apart = {"RDP": _without_replacement(fixed, noise_multiplier, rounds)}
        rows += [
            row(poisson, ADD_REMOVE, hidden, weaker=False, amplified=True),
            row(poisson, removed_and_added, hidden, weaker=own is PoissonSampling, amplified=True, steps=2),
            row(fixed, REPLACE, drawn_apart, weaker=False, amplified=True),
        ]
    known = _unordered(FullParticipation(), noise_multiplier, rounds)
    moved_twice = _unordered(FullParticipation(), noise_multiplier / 2, rounds)
    return [
        *rows,
        row(FullParticipation(), ADD_REMOVE, known, weaker=own is PoissonSampling),
        row(FullParticipation(), ZERO_OUT, known, weaker=True),
        row(FullParticipation(), REPLACE, moved_twice, weaker=True),
    ]


def _unordered(scheme: SamplingScheme, noise_multiplier: float, rounds: int) -> dict[str, Curve]:
    """Both accountants under add-or-remove, composed once, to be asked for any δ."""
    from dp_accounting import NeighboringRelation, pld, rdp

    event = event_of(Release(scheme, noise_multiplier, rounds))
    renyi = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    renyi.compose(event)
    interval = max(PLD_INTERVAL, PLD_SHARE * float(renyi.get_epsilon(_FIRST_DELTA)))
    losses = pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    losses.compose(event)
    return {"PLD": lambda at: float(losses.get_epsilon(at)), "RDP": lambda at: float(renyi.get_epsilon(at))}


def _without_replacement(scheme: FixedSizeSampling, noise_multiplier: float, rounds: int) -> Curve:
    """Replace-one moves the sum by two clip norms, so the event's noise multiplier is half of ours."""
    import dp_accounting as dp
    from dp_accounting import rdp

    gaussian = dp.GaussianDpEvent(noise_multiplier / 2)
    event = dp.SampledWithoutReplacementDpEvent(scheme.population, scheme.size, gaussian)
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.SelfComposedDpEvent(event, rounds))
    return lambda at: float(accountant.get_epsilon(at))


def twice(epsilon_at: Curve, delta: float) -> float:
    """ε of two steps of a relation from the ε of one: 2·ε(δ₁), where (1 + e^ε(δ₁))·δ₁ = δ (group privacy).

    Raises:
        PrivacyError: ``delta`` is out of range.
    """
    if not 0 < delta < 1:
        raise PrivacyError("lies in (0, 1)", where="delta", value=delta)
    low, high, found = math.log(delta) - 60.0, math.log(delta), math.inf  # ends for ln δ₁
    for _ in range(_STEPS):
        middle = (low + high) / 2
        one = epsilon_at(math.exp(middle))
        # An accountant that gives up on a small δ₁ says that it is too small; else δ₁ may grow while it fits.
        fits = math.isfinite(one) and middle + math.log1p(math.exp(min(one, 700.0))) <= math.log(delta)
        found = min(found, 2 * one) if fits else found
        low, high = (middle, high) if fits or not math.isfinite(one) else (low, middle)
    return found
