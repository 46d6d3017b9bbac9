"""The floor that membership inference proves for ε: rigorous, and not blind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from privfed.audit.membership import MembershipInference, judge
from privfed.audit.membership_bound import epsilon_floor

DELTA = 1e-4


def found(members: object, others: object, **changes: object) -> MembershipInference:
    inside, outside = np.asarray(members, float), np.asarray(others, float)
    is_member = np.arange(len(inside) + len(outside)) < len(inside)
    return judge(np.concatenate([inside, outside]), is_member, method="loss", unit="client", **changes)  # type: ignore[arg-type]  # of judge


def randomised_response(
    epsilon: float, seed: int, units: int = 400
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Answers of members and of others about their membership: the most that ``epsilon`` allows."""
    rng, honest = np.random.default_rng(seed), 1 / (1 + math.exp(-epsilon))
    return rng.random(units) < honest, rng.random(units) >= honest


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.0])
def test_a_true_claim_is_hardly_ever_exceeded(epsilon: float) -> None:
    """At the very edge of the claim 5 % may be; 25 of 200 or more would have a chance below 1e-4."""
    floors = []
    for seed in range(200):
        floor = epsilon_floor(found(*randomised_response(epsilon, seed)), "client", DELTA)
        assert floor is not None
        floors.append(floor.epsilon)
    assert sum(floor > epsilon for floor in floors) < 25


def test_a_false_claim_is_exceeded_on_either_side() -> None:
    """Leaking ε = 3 where 1 is claimed: from members' scores, and from others' alone."""
    for seed in range(20):
        members, others = randomised_response(3.0, seed)
        floor = epsilon_floor(found(members, others), "client", DELTA)
        assert floor is not None
        assert floor.epsilon > 1
    rng = np.random.default_rng(0)
    # A third of the non-members is surely none; whoever scores above that is as likely a member as not.
    others = np.where(rng.random(400) < 1 / 3, -9.0, rng.random(400))
    floor = epsilon_floor(found(rng.random(400), others), "client", DELTA)
    assert floor is not None
    assert (floor.says, floor.epsilon > 2) == ("non-member", True)


def test_more_attacks_together_prove_less_each() -> None:
    scores = found(*randomised_response(3.0, 1))
    one, six = epsilon_floor(scores, "client", DELTA), epsilon_floor(scores, "client", DELTA, attacks=6)
    assert one is not None
    assert six is not None
    assert six.epsilon < one.epsilon


def test_examples_of_one_client_are_one_witness() -> None:
    """Four copies of each client's score prove what one of them does."""
    members, others = randomised_response(3.0, 2, units=100)
    owners = np.repeat(np.arange(200), 4)
    copied = found(np.repeat(members, 4), np.repeat(others, 4), owners=owners)
    once, four = epsilon_floor(found(members, others), "client", DELTA), epsilon_floor(copied, "client", DELTA)
    assert once is not None
    assert once == four
    assert (once.members, once.non_members) == (100, 100)


def test_only_what_the_claim_is_about_is_held_to_it() -> None:
    members, others = randomised_response(3.0, 3)
    assert epsilon_floor(found(members, others), "example", DELTA) is None  # a client is more than an example
    assert epsilon_floor(found(members, others, alike=False), "client", DELTA) is None


@pytest.mark.parametrize(("members", "others"), [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_few_units_prove_little_and_break_nothing(members: int, others: int) -> None:
    floor = epsilon_floor(found(np.arange(members) + 500, np.arange(others)), "client", DELTA)
    assert floor is not None
    assert 0 <= floor.epsilon < 4
