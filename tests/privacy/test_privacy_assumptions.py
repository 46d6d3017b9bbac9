"""ε under other sampling and neighbouring assumptions: against the accountant of the run, and closed forms."""

from __future__ import annotations

import math

import pytest
from scipy import optimize, stats

from privfed.privacy.accounting import account
from privfed.privacy.assumptions import twice, under_assumptions
from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import ADD_REMOVE, REPLACE, FixedSizeSampling, FullParticipation, PoissonSampling

Z, ROUNDS, DELTA, CLIENTS = 1.4, 40, 1e-4, 360
SCHEMES = (PoissonSampling(0.15), FixedSizeSampling(54, CLIENTS), FullParticipation())


def exact(z: float) -> float:
    """ε of one Gaussian of sensitivity 1 (Balle & Wang 2018, Theorem 8)."""

    def excess(epsilon: float) -> float:
        upper, lower = 1 / (2 * z) - epsilon * z, -1 / (2 * z) - epsilon * z
        return float(stats.norm.cdf(upper) - math.exp(epsilon) * stats.norm.cdf(lower)) - DELTA

    return float(optimize.brentq(excess, 0, 200))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_met_row_is_what_the_run_claims(
    scheme: PoissonSampling | FixedSizeSampling | FullParticipation,
) -> None:
    cohort = CLIENTS if isinstance(scheme, FullParticipation) else 54
    rows = under_assumptions(Z, scheme, ROUNDS, DELTA, CLIENTS, cohort)
    met = [row for row in rows if row.met]
    assert len(met) == 1
    claimed = account(Z, scheme, ROUNDS, DELTA)
    known = [value for value in (met[0].pld, met[0].rdp) if value is not None]
    stated = (claimed.epsilon, claimed.cross_check_epsilon)
    assert any(min(known) == pytest.approx(value, rel=2e-3) for value in stated)
    assert met[0].neighbouring == claimed.neighbouring
    # A weaker statement is never a smaller ε.
    for row in rows:
        if row.weaker and row.pld is not None:
            assert row.pld >= claimed.epsilon * 0.998, row


def test_known_cohorts_are_one_gaussian() -> None:
    rows = {(r.neighbouring, r.amplified): r for r in under_assumptions(Z, SCHEMES[0], ROUNDS, DELTA, CLIENTS, 54)}
    assert rows[ADD_REMOVE, False].pld == pytest.approx(exact(Z / math.sqrt(ROUNDS)), rel=2e-3)
    assert rows[REPLACE, False].pld == pytest.approx(exact(Z / 2 / math.sqrt(ROUNDS)), rel=2e-3)
    assert all(row.rdp is not None and math.isfinite(row.rdp) for row in rows.values())
    assert all(row.pld is None or math.isfinite(row.pld) for row in rows.values())


def test_nothing_is_amplified_where_everybody_takes_part() -> None:
    assert not any(row.amplified for row in under_assumptions(Z, SCHEMES[2], ROUNDS, DELTA, CLIENTS, CLIENTS))


def test_group_privacy_spends_the_whole_delta() -> None:
    def epsilon_at(delta: float) -> float:
        return 0.2 * math.log(1 / delta)

    found = twice(epsilon_at, DELTA)
    one = found / 2
    share = math.exp(-one / 0.2)
    assert (1 + math.exp(one)) * share == pytest.approx(DELTA, rel=1e-6)
    assert twice(lambda _: math.inf, DELTA) == math.inf
    # An accountant whose tail is cut off states nothing below some δ: the answer lies above it.
    assert twice(lambda d: epsilon_at(d) if d > 1e-9 else math.inf, DELTA) == pytest.approx(found, rel=1e-6)
    with pytest.raises(PrivacyError, match="delta"):
        twice(epsilon_at, 1.0)
