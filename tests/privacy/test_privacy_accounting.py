"""Accounting against published anchors, itself, and the rule that no cohort gets another scheme's ε."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from privfed.privacy.accounting import Guarantee, Release, account, compose, statements
from privfed.privacy.calibration import RESOLUTION, noise_multiplier_for
from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import (
    FixedSizeSampling,
    FullParticipation,
    PoissonSampling,
    SamplingScheme,
    scheme_from_json,
    scheme_to_json,
)

DELTA = 1e-5


@pytest.mark.parametrize(
    ("rate", "rounds", "noise_multiplier", "epsilon"),
    [(0.01, 1000, 1.0, 1.8282), (0.1, 200, 2.0, 3.3597), (1.0, 1, 1.0, 4.3772)],
)
def test_anchor_values_of_poisson_sampling(
    rate: float, rounds: int, noise_multiplier: float, epsilon: float
) -> None:
    # dp_accounting's PLD at interval 1e-4; ours is coarser and pessimistic, so never below.
    guarantee = account(noise_multiplier, PoissonSampling(rate), rounds, DELTA)
    assert epsilon - 1e-4 <= guarantee.epsilon <= epsilon + 2e-3
    assert guarantee.cross_check_epsilon >= guarantee.epsilon
    assert (guarantee.unit, guarantee.neighbouring) == ("client", "add or remove one client")


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle & Wang (2018), Theorem 8: the exact ε of one Gaussian release."""

    def excess(epsilon: float) -> float:
        a, b = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return float(norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b) - delta)

    return float(brentq(excess, 0, 200))


@pytest.mark.parametrize("rounds", [1, 10, 400])
@pytest.mark.parametrize("scheme", [FullParticipation(), PoissonSampling(1.0)])
def test_full_participation_is_one_gaussian_of_closed_form(rounds: int, scheme: SamplingScheme) -> None:
    exact = gaussian_epsilon(5 / math.sqrt(rounds), DELTA)
    assert account(5, scheme, rounds, DELTA).epsilon == pytest.approx(exact, abs=2e-3)


def test_a_fixed_size_cohort_never_gets_the_poisson_epsilon() -> None:
    poisson = account(1, PoissonSampling(0.01), 1000, DELTA)
    fixed = account(1, FixedSizeSampling(100, 10_000), 1000, DELTA)
    assert fixed.neighbouring == "replace one client"
    assert fixed.epsilon >= 13.4 > poisson.epsilon
    # One round of everybody is one Gaussian of twice the sensitivity, whatever the theorem used.
    everybody = account(4, FixedSizeSampling(10, 10), 1, DELTA)
    assert everybody.epsilon == pytest.approx(gaussian_epsilon(2, DELTA), abs=2e-3)


def test_more_noise_fewer_rounds_lower_rate_and_larger_delta_all_help() -> None:
    base = account(1.5, PoissonSampling(0.1), 50, DELTA).epsilon
    assert account(1.6, PoissonSampling(0.1), 50, DELTA).epsilon < base
    assert account(1.5, PoissonSampling(0.1), 49, DELTA).epsilon < base
    assert account(1.5, PoissonSampling(0.09), 50, DELTA).epsilon < base
    assert account(1.5, PoissonSampling(0.1), 50, 1e-4).epsilon < base


def test_nothing_released_costs_nothing_and_no_noise_costs_everything() -> None:
    assert account(1, PoissonSampling(0.1), 0, DELTA).epsilon == 0
    assert account(0, PoissonSampling(0.1), 1, DELTA).epsilon == math.inf


def test_composition_adds_up() -> None:
    parts = [Release(PoissonSampling(0.1), 1.5, 20), Release(PoissonSampling(0.1), 1.5, 30)]
    whole = account(1.5, PoissonSampling(0.1), 50, DELTA)
    assert compose(parts, DELTA).epsilon == pytest.approx(whole.epsilon, abs=5e-3)
    mixed = compose([*parts, Release(PoissonSampling(0.2), 3.0, 1)], DELTA)
    assert mixed.epsilon > whole.epsilon
    assert mixed.noise_multiplier is None
    with pytest.raises(PrivacyError, match="neighbouring relations"):
        compose([parts[0], Release(FixedSizeSampling(1, 2), 1.0, 1)], DELTA)


@pytest.mark.parametrize(
    ("noise_multiplier", "rounds", "delta", "where"),
    [(-1, 1, 0.1, "noise_multiplier"), (math.nan, 1, 0.1, "noise_multiplier"), (1, -1, 0.1, "rounds")]
    + [(1, 1, delta, "delta") for delta in (0, 1, -1, math.nan)],
)
def test_what_is_out_of_range_is_refused(noise_multiplier: float, rounds: int, delta: float, where: str) -> None:
    with pytest.raises(PrivacyError, match=where):
        account(noise_multiplier, PoissonSampling(0.1), rounds, delta)


def test_schemes_refuse_what_they_cannot_be_and_survive_the_ledger() -> None:
    for scheme in (PoissonSampling(0.25), FixedSizeSampling(3, 7), FullParticipation()):
        assert scheme_from_json(scheme_to_json(scheme)) == scheme
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(PrivacyError, match="rate"):
            PoissonSampling(rate)
    for size in (0, 8):
        with pytest.raises(PrivacyError, match="size"):
            FixedSizeSampling(size, 7)
    for values in ({"name": "magic"}, {"name": "poisson", "colour": 1}, {}):
        with pytest.raises(PrivacyError, match="unknown sampling scheme"):
            scheme_from_json(values)


def test_calibration_anchor() -> None:
    assert noise_multiplier_for(3, PoissonSampling(0.1), 60, DELTA) == pytest.approx(1.422, abs=0.003)


@pytest.mark.parametrize(
    ("epsilon", "scheme", "rounds"),
    [
        (0.5, PoissonSampling(0.02), 100),
        (30.0, PoissonSampling(0.3), 10),
        (1.0, FullParticipation(), 100),
        (8.0, FixedSizeSampling(10, 100), 20),
    ],
)
def test_calibration_is_the_smallest_that_suffices(epsilon: float, scheme: SamplingScheme, rounds: int) -> None:
    found = noise_multiplier_for(epsilon, scheme, rounds, DELTA)
    assert account(found, scheme, rounds, DELTA).epsilon <= epsilon
    assert account(found - 2 * RESOLUTION, scheme, rounds, DELTA).epsilon > epsilon


@pytest.mark.parametrize("epsilon", [0, -1, math.inf, math.nan])
def test_calibration_refuses_impossible_targets(epsilon: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon"):
        noise_multiplier_for(epsilon, PoissonSampling(0.1), 60, DELTA)


def test_calibration_says_when_no_noise_suffices() -> None:
    with pytest.raises(PrivacyError, match="no noise multiplier"):
        noise_multiplier_for(1e-6, FullParticipation(), 10**6, 1e-9)


def test_a_statement_leaves_nothing_out() -> None:
    guarantee = account(1, PoissonSampling(0.1), 10, DELTA)
    statement = " ".join(statements({"client": guarantee, "release": guarantee}))
    for part in ("ε = ", "δ = 1e-05", "client-level", "add or remove one client", "Poisson, rate 0.1", "server"):
        assert part in statement


def test_accounting_never_imports_tensorflow() -> None:
    program = (
        "import sys; from privfed.privacy.calibration import noise_multiplier_for as f;"
        "from privfed.privacy.sampling import PoissonSampling as P; f(3, P(.1), 60, 1e-5);"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_guarantee_is_plain_json() -> None:
    values = account(1, PoissonSampling(0.1), 10, DELTA).as_json()
    assert set(values) == set(Guarantee.__dataclass_fields__)
