"""Neighbours and thresholds: tails counted exactly, the argument of ``bounds`` checked on every small case."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from privfed.secagg import Adversary, ProtocolSum, SecAggParams, Stage, guarantee_for
from privfed.secagg.bounds import SMALL_COHORT, _tail
from privfed.secagg.errors import ParameterError

ACTIVE, SEMI = Adversary.ACTIVE, Adversary.SEMI_HONEST


def exact_tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """``P[at least least marked]``, counted."""
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(max(least, 0), min(marked, drawn) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


@pytest.mark.parametrize(("population", "marked", "drawn"), [(9, 3, 4), (999, 100, 52), (99, 0, 10), (50, 49, 48)])
def test_tails_are_those_that_counting_gives(population: int, marked: int, drawn: int) -> None:
    tail = _tail(population, marked, drawn)
    assert len(tail) == drawn + 2
    for least in range(drawn + 2):
        assert tail[least] == pytest.approx(float(exact_tail(population, marked, drawn, least)), rel=1e-8, abs=0)


@pytest.mark.parametrize("adversary", Adversary)
@pytest.mark.parametrize(("n", "corrupt", "dropped"), [(300, 0.1, 0.1), (1000, 0.05, 0.05), (1000, 0.1, 0.1)])
def test_what_is_promised_is_what_counting_gives(
    n: int, corrupt: float, dropped: float, adversary: Adversary
) -> None:
    g = guarantee_for(n, corrupt, dropped, adversary=adversary, grinding_bits=30)
    k, t = g.neighbours, g.threshold
    assert k % 2 == 0
    fails = n * exact_tail(n - 1, g.dropped, k, k - t + 1)
    assert g.correctness_failure == pytest.approx(float(fails), rel=1e-6)
    assert fails <= Fraction(1, 2**30)
    if adversary is SEMI:
        insecure = n * exact_tail(n - 1, g.corrupt, k, t) + n * Fraction(g.corrupt + g.dropped, n) ** (k // 2)
    else:
        insecure = n * exact_tail(n - 1, g.corrupt, k, 2 * t - k - 1)
        insecure += 2 * n * exact_tail(n - 1, g.corrupt, k // 2, t - k // 2 - 1)
        insecure *= 2**30
    assert g.security_failure == pytest.approx(float(insecure), rel=1e-6)
    assert insecure <= Fraction(1, 2**40)
    assert 2 * t > k + 1
    # One threshold less would not do, nor would two neighbours fewer.
    assert g.smallest_sum > 1
    with pytest.raises(ParameterError, match="degree"):
        SecAggParams(bytes(16), 0, tuple(range(n)), t, 1, degree=k - 1)


def test_the_sparse_graph_of_bell_et_al() -> None:
    g = guarantee_for(1000, adversary=SEMI)
    assert (g.neighbours, g.threshold) == (52, 28)
    assert "semi-honest server with up to 100 of 1000 clients" in str(g)
    assert guarantee_for(10_000, adversary=SEMI).neighbours == 60
    # An active server costs four times the neighbours, and more with more room to try.
    active = [guarantee_for(1000, adversary=ACTIVE, grinding_bits=bits).neighbours for bits in (0, 40, 64)]
    assert active == sorted(active)
    assert 150 <= active[0] < active[2] <= 230


@pytest.mark.parametrize("n", [2, 3, 10, SMALL_COHORT])
@pytest.mark.parametrize("adversary", Adversary)
def test_small_cohorts_are_complete_and_certain(n: int, adversary: Adversary) -> None:
    params = SecAggParams.for_cohort(n, 7, adversary=adversary)
    g = params.guarantee
    assert g is not None
    assert (params.degree, params.neighbours, params.holders) == (None, n - 1, n)
    assert (g.security_failure, g.correctness_failure) == (0, 0)
    assert g.threshold > n / 2
    assert g.threshold > g.corrupt
    assert g.threshold <= n - g.dropped
    if adversary is ACTIVE:
        assert 2 * g.threshold > n + g.corrupt
    assert g.smallest_sum >= 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cohort_size": 10, "corrupt": 0.5, "dropped": 0.4}, "no threshold withstands 5 corrupt and 4 vanishing"),
        ({"cohort_size": 300, "corrupt": 0.4, "dropped": 0.4}, "no threshold withstands 120 corrupt"),
        ({"cohort_size": 10, "corrupt": 1.0}, "corrupt: must be in"),
        ({"cohort_size": 10, "dropped": -0.1}, "dropped: must be in"),
        ({"cohort_size": 1}, "cohort_size: must be at least 2"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        guarantee_for(**arguments)  # type: ignore[arg-type]


def test_for_cohort_takes_identifiers_or_a_number_and_the_bound_is_not_agreed_on() -> None:
    by_number = SecAggParams.for_cohort(300, 4, session=b"s" * 16, adversary=SEMI)
    by_ids = SecAggParams.for_cohort(range(299, -1, -1), 4, session=b"s" * 16, adversary=SEMI)
    assert by_number == by_ids
    assert by_number.client_ids == tuple(range(300))
    bare = SecAggParams(b"s" * 16, 0, tuple(range(300)), by_number.threshold, 4, degree=by_number.degree)
    assert bare == by_number
    assert bare.digest == by_number.digest
    assert SecAggParams.for_cohort(10, 4).session != SecAggParams.for_cohort(10, 4).session


def test_whatever_sum_is_learned_goes_all_around_the_ring() -> None:
    """Part (b) of the active setting, on every set of clients of small rings, with every corrupt client or none.

    A set T can be learned only if every client of it has t holders in T or corrupt. Then it has no gap above k/2
    and no fewer members than promised; with a threshold of one less that is not so.
    """
    checked = below = 0
    for n, k in ((7, 4), (8, 4), (9, 4), (10, 4), (9, 6)):
        near = [[(i + s) % n for s in range(-k // 2, k // 2 + 1)] for i in range(n)]
        for corrupt in [set(c) for r in range(3) for c in itertools.combinations(range(n), r)]:
            sides = (range(1, k // 2 + 1), range(-k // 2, 0))
            beside = max(sum((i + s) % n in corrupt for s in side) for i in range(n) for side in sides)
            around = max(sum(j in corrupt for j in near[i]) for i in range(n) if i not in corrupt)
            safe = max(k // 2 + 2 + beside, (k + 1 + around) // 2 + 1)
            honest = [i for i in range(n) if i not in corrupt]
            for chosen in itertools.product((False, True), repeat=len(honest)):
                members = {i for i, included in zip(honest, chosen, strict=True) if included}
                if not members:
                    continue
                helpers = min(sum(j in members or j in corrupt for j in near[i]) for i in members)
                wraps = all(any((i + s) % n in members for s in range(1, k // 2 + 1)) for i in members)
                checked += 1
                if helpers >= safe:
                    assert wraps
                    assert len(members) >= (safe - around) * (2 * n // (3 * k))
                elif helpers == safe - 1 and not wraps:
                    below += 1
    assert checked > 30_000
    assert below > 0


@pytest.mark.parametrize("over_wire", [False, True])
def test_a_round_on_a_sparse_graph_is_exact(over_wire: bool) -> None:
    rng = np.random.default_rng(8)
    inputs = {i: rng.integers(0, 2**32, 9, dtype=np.uint32) for i in range(0, 123, 3)}
    gone = {
        0: None,
        30: Stage.ADVERTISE_KEYS,
        60: Stage.SHARE_KEYS,
        90: Stage.MASKED_INPUT,
        120: Stage.CONSISTENCY,
    }
    result = ProtocolSum(degree=20, threshold=11, over_wire=over_wire).sum(inputs, gone)
    assert result.survivors == tuple(i for i in inputs if i not in (0, 30, 60))
    assert (result.total == sum((inputs[i] for i in result.survivors), np.zeros(9, np.uint32))).all()
