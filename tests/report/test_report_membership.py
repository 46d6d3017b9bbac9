"""Clients that an attack is most sure of are named in the JSON, and on no page."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError
from report_sample import membership, sample

from privfed.audit import evidence as ev
from privfed.report import render_html
from privfed.report.figures.empirical import allowed
from privfed.report.markdown import render_markdown


def test_the_worst_off_are_named_in_the_json_alone() -> None:
    worst = (ev.FoundClient(client=271828, units=4, found=2, lowest_fpr=0.0),)
    plain = membership()
    named = plain.model_copy(
        update={"attacks": tuple(a.model_copy(update={"worst_off": worst}) for a in plain.attacks)}
    )
    one, other = sample(membership=plain), sample(membership=named)
    assert "271828" in other.model_dump_json()
    assert render_html(one) == render_html(other)
    assert render_markdown(one) == render_markdown(other)


def test_areas_have_their_interval() -> None:
    plain = membership()
    first = plain.attacks[0].model_copy(update={"auc": 0.52, "auc_interval": (0.4871, 0.5529)})
    page = render_html(sample(membership=plain.model_copy(update={"attacks": (first, *plain.attacks[1:])})))
    assert "0.520 (0.487 to 0.553)" in page


def claim(epsilon: float, observer: str = "release", *, flagged: bool = False) -> ev.MembershipClaim:
    return ev.MembershipClaim(
        epsilon=epsilon,
        delta=0.001,
        unit="client",
        neighbouring="add or remove one client",
        sampling="Poisson, rate 0.1",
        observer=observer,
        flagged=flagged,
    )


def held_to(claims: tuple[ev.MembershipClaim, ...], floor: float) -> ev.Membership:
    plain = membership()
    found = ev.EpsilonFloor(
        epsilon=floor, confidence=0.95, members=300, non_members=90, says="member", right=0.5, wrong=0.1
    )
    first = plain.attacks[0].model_copy(update={"floor": found})
    return ev.Membership(**{**dict(plain), "attacks": (first, *plain.attacks[1:]), "claims": claims})


def test_what_a_claim_allows_at_known_rates() -> None:
    three = claim(math.log(3))
    # 3·0 + δ; 3·0.01 + δ; 1 - (1 - δ - 0.5) / 3; everybody.
    found = [allowed(rate, three) for rate in (0.0, 0.01, 0.5, 1.0)]
    assert found == pytest.approx([0.001, 0.031, 1 - 0.499 / 3, 1.0])
    assert allowed(0.5, claim(1e6)) == 1.0


def test_the_page_draws_what_is_allowed_and_says_whether_it_was_exceeded() -> None:
    held = render_html(sample(membership=held_to((claim(3.0),), 1.2)))
    assert held.count("most at ε = 3.00") == held.count('<path class="allowed"') == 2
    assert "right about 50.0" in held
    assert "an attack shows more" not in held
    assert "release ε&nbsp;≤&nbsp;3.00, not refuted." in held
    claims = (claim(3.0, flagged=True), claim(9.0, "client"))
    broken = sample(membership=held_to(claims, 3.5))
    page, short = render_html(broken), render_markdown(broken)
    assert "an attack shows more" in page
    assert "Membership inference finds more than is allowed against release." in page
    assert "release ≤ 3.00 **flagged**, client ≤ 9.00." in short


def test_a_flag_that_does_not_fit_is_refused() -> None:
    for floor, flagged in ((3.5, False), (2.5, True)):
        with pytest.raises(ValidationError, match="flagged exactly"):
            held_to((claim(3.0, flagged=flagged),), floor)
