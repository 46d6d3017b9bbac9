"""What cells come to: finished ones only, the strongest attack, and a verdict that chance does not make."""

from __future__ import annotations

import pytest
from synthetic import cells, counted, grid, row

from privfed.defences.catalogue import Defence
from privfed.defences.folder import finished
from privfed.defences.record import LABELS, STRONGEST


def test_a_cell_without_all_its_outcomes_is_not_finished() -> None:
    rows = [row("none", "one", t, 3) for t in (1, 2, 3)] + [row("none", "two", t, 3) for t in (1, 2)]
    assert finished(rows) == rows[:3]
    first = grid(rows).lines[0]
    assert (first.verdict, set(first.cells)) == ("unfinished", {"one"})
    assert (first.unfinished("two"), first.unfinished("one"), first.unfinished("three")) == (True, False, False)
    assert grid(rows).status == "partial"


def test_the_strongest_is_chosen_target_by_target() -> None:
    rows = cells(one=20.0, two=None)
    rows[4] = row("none", "two", 2, 3, psnr=90.0)
    line = grid(rows).lines[0]
    strongest = line.cells[STRONGEST].figures
    assert strongest["psnr"]["value"] == pytest.approx((20.1 + 90.0 + 20.3) / 3)
    assert strongest["exact"]["value"] == pytest.approx(1 / 3)
    assert strongest["fired"] == {"one": 2, "two": 1}
    assert line.verdict == "broken"
    assert line.pairs[0]["psnr"] == 90.0
    assert line.cells["two"].failures == {"no way in": 2}


def test_whole_batches_count_more_than_one_image_that_is_nearer() -> None:
    rows = cells(one=150.0, two=160.0)
    rows = [{**r, "exact_examples": 1.0 if r["attack"] == "one" else 0.5} for r in rows]
    assert grid(rows).lines[0].cells[STRONGEST].exact_examples == 1.0


@pytest.mark.parametrize(("psnr", "verdict"), [(20.0, "leaks"), (12.0, "nothing found"), (None, "nothing found")])
def test_verdict_by_the_margin(psnr: float | None, verdict: str) -> None:
    assert grid(cells(one=psnr, two=psnr)).lines[0].verdict == verdict


def test_identification_counts_from_what_chance_explains_on() -> None:
    """Of 2 examples and 18 others an unrelated image is called identified in one of ten targets."""
    rows = cells(one=12.0, two=12.0)
    few, all_ = ([{**r, "identified": r["target"] <= most} for r in rows] for most in (1, 3))
    assert grid(few).lines[0].cells[STRONGEST].chance == pytest.approx(0.1)
    assert grid(few).lines[0].verdict == "nothing found"
    assert grid(all_).lines[0].verdict == "leaks"


def test_labels_have_no_part_in_the_verdict() -> None:
    plan = [(Defence("none", "none"), ("one", LABELS)), (Defence("noise", "noise"), ("one", LABELS))]
    rows = [*cells(one=None), *(counted("none", t, 3, 1.0) for t in (1, 2, 3))]
    first, second = grid(rows, plan).lines
    assert first.verdict == "nothing found"
    assert first.cells[STRONGEST].figures["labels"] is None
    assert first.cells[LABELS].figures["labels"]["overlap"]["value"] == 1.0
    assert (second.verdict, second.unfinished(LABELS)) == ("unfinished", True)
