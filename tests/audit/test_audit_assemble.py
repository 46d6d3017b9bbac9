"""The verdict: the worst that was claimed, found or measured, with the terms of every ε."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from privfed.audit import evidence as ev
from privfed.audit.assemble.statements import SETTINGS_OF
from privfed.privacy.plan import KINDS
from privfed.verdict import counters_of_labels, verdict

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from sample_attacks import counted_labels, failed_attack

TERMS = ("δ = 1e-05", "client-level", "neighbours: add or remove one client", "sampling: Poisson, rate 0.1")


def observer(name: str, epsilon: float, margin_db: float | None = None) -> ev.ObserverEvidence:
    guarantee = ev.Guarantee(
        epsilon=epsilon,
        delta=1e-5,
        unit="client",
        neighbouring="add or remove one client",
        sampling="Poisson, rate 0.1",
        accountant="PLD",
        cross_check_epsilon=None,
        cross_check_accountant=None,
        noise_multiplier=1.0,
        rounds=10,
        why="as tested",
    )
    best = None
    if margin_db is not None:
        best = ev.BestAttack(
            attack="dense_layer",
            workload="own",
            defence="as configured",
            psnr=20,
            margin_db=margin_db,
            trivial_psnr=9,
        )
    protected = math.isfinite(epsilon)
    return ev.ObserverEvidence(observer=name, sees="", protected=protected, guarantee=guarantee, best_attack=best)


@pytest.mark.parametrize(
    ("observers", "readers", "level"),
    [
        ((observer("server", 2.0), observer("release", 2.0)), set(), "protected"),
        ((observer("server", math.inf), observer("release", 2.0)), set(), "partly"),
        ((observer("server", math.inf, 30.0), observer("release", 2.0)), {"server"}, "partly"),
        ((observer("server", math.inf), observer("release", 2.0, 30.0)), set(), "exposed"),
        ((observer("server", math.inf), observer("release", 2.0)), {"release"}, "exposed"),
        ((observer("server", math.inf),), set(), "exposed"),
        ((observer("server", math.inf),), {"server"}, "exposed"),
    ],
)
def test_the_verdict_names_terms_and_who_reconstructed(
    observers: tuple[ev.ObserverEvidence, ...], readers: set[str], level: str
) -> None:
    found = verdict(observers, None, None, readers)
    assert found.level == level
    if any(o.protected for o in observers):
        assert all(term in found.text for term in TERMS)
    leaking = readers | {o.observer for o in observers if o.best_attack}
    if leaking:
        assert f"or their tokens read, by: {', '.join(sorted(leaking))}." in found.text
    else:
        assert "No attack tried" in found.text


@pytest.mark.parametrize(
    ("overlaps", "told"),
    [((1.0,), True), ((0.9, 0.8), True), ((1.0, 0.4), False), ((0.5,), False), ((0.3,), False), ((), False)],
)
def test_labels_are_told_by_the_mean_over_vectors_and_break_no_promise(
    overlaps: tuple[float, ...], told: bool
) -> None:
    """A guess is right in half of them: three quarters are to be right."""
    other = counted_labels("server", defence="none")  # is not of the run as configured
    seen = [
        a.model_copy(update={"labels": a.labels.model_copy(update={"overlap": right})})
        for right in overlaps
        for a in [counted_labels("release")]
        if a.labels is not None
    ]
    counters = counters_of_labels([other, failed_attack("release"), *seen])
    assert counters == ({"release"} if told else set())
    observers = (observer("server", 2.0), observer("release", 2.0))
    found = verdict(observers, None, None, set(), counters)
    assert ("was found by: release." in found.text) == told
    assert found.level == "protected"


@pytest.mark.parametrize(("status", "flagged"), [("failed", True), ("passed", False), ("not checked", False)])
def test_a_failed_check_flags_the_claim(status: str, flagged: bool) -> None:
    observers = (observer("server", math.inf), observer("release", 2.0))
    canaries = ev.Canaries(
        kind="update",
        count=20,
        included=9,
        participations=30,
        rounds=10,
        noise_share=0.1,
        accuracy=None,
        accuracy_without=None,
        delta=1e-5,
        unit="client",
        neighbouring="add or remove one client",
        sampling="Poisson, rate 0.1",
        observers=(),
        checks=(ev.SelfCheck(name="noise as claimed", status=status, finding="0.5 of it", p_value=None),),  # type: ignore[arg-type]  # one of three
    )
    found = verdict(observers, canaries, None, set())
    assert (found.level == "exposed") == flagged
    assert ("FLAGGED" in found.text and "noise as claimed" in found.text) == flagged


def test_every_mechanism_has_its_words() -> None:
    assert set(SETTINGS_OF) == {*KINDS, "none"}
