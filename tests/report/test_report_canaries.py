"""The page's section on canaries: claims beside what was measured, and the checks of the audited training."""

from __future__ import annotations

import math
from typing import Any

import pytest
from report_sample import CENTRAL, sample

from privfed.audit import evidence as ev
from privfed.report import render_html


def canaries(**changes: Any) -> ev.Canaries:
    estimate = ev.CanaryEstimate(method="Gaussian fit", epsilon=2.5, low=1.4, high=4.1, confidence=0.99)
    observer = ev.CanaryObserver(
        observer="client",
        sees="all noised sums",
        claim=3.0,
        estimates=(estimate,),
        bound=0.4,
        bound_confidence=0.95,
        guesses=40,
        right=31,
        flagged=False,
        histogram_low=-1.0,
        histogram_high=1.0,
        present=(1, 4),
        absent=(5, 1),
    )
    values: dict[str, Any] = {
        **CENTRAL,
        "kind": "update",
        "count": 100,
        "included": 51,
        "participations": 300,
        "rounds": 40,
        "noise_share": 0.06,
        "accuracy": 0.92,
        "accuracy_without": 0.921,
        "observers": (observer,),
        "checks": (
            ev.SelfCheck(name="noise <is> as claimed", status="failed", finding="0.5 of it", p_value=1e-30),
            ev.SelfCheck(name="cohorts", status="passed", finding="as drawn", p_value=0.4),
            ev.SelfCheck(name="survivors", status="not checked", finding="does not apply", p_value=None),
        ),
    }
    return ev.Canaries(**values | changes)


def test_checks_stand_with_their_results_and_chances() -> None:
    page = render_html(sample(canaries=canaries()))
    assert '<span class="result-mark failed">failed</span></td><td>0.5 of it' in page
    assert "noise &lt;is&gt; as claimed" in page
    assert "noise <is>" not in page
    assert "p&nbsp;=&nbsp;1e-30" in page
    assert "not checked" in page
    assert "Was the training as the claim says?" not in render_html(sample(canaries=canaries(checks=())))


@pytest.mark.parametrize(("low", "flagged"), [(1.4, False), (3.1, True)])
def test_a_claim_below_an_interval_is_flagged(low: float, flagged: bool) -> None:
    one = canaries().observers[0]
    estimate = one.estimates[0].model_copy(update={"low": low, "epsilon": 3.5})
    values = one.model_dump() | {"estimates": (estimate,), "flagged": flagged}
    page = render_html(sample(canaries=canaries(observers=(ev.CanaryObserver(**values),))))
    assert ("<b>Flagged</b>" in page) == flagged
    with pytest.raises(ValueError, match="flagged exactly when"):
        ev.CanaryObserver(**values | {"flagged": not flagged})


def test_without_canaries_the_page_says_so() -> None:
    assert "no canaries were put into the training" in render_html(sample(canaries=None))
    infinite = canaries(observers=(canaries().observers[0].model_copy(update={"claim": math.inf}),))
    assert "nothing is claimed" in render_html(sample(canaries=infinite))
