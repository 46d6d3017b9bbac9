"""The page: self-contained, complete in what it says of ε, unmoved by hostile names, drawn where it should be."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from checked_html import Checked
from fake_trials import QUIET, FakeRunner

from privfed.sweep import page
from privfed.sweep.grid import Base, Trial
from privfed.sweep.page.curves import Point, curves, log_axis
from privfed.sweep.page.figure import trade_off
from privfed.sweep.record import BaselinePoint, Sweep
from privfed.sweep.run import run_sweep

TEMPLATES = Path(page.__file__).parents[1] / "templates"


def accuracy(trial: Trial) -> float:
    epsilon = trial.settings.privacy.epsilon
    return (0.9 if epsilon is None else 0.8 - 0.1 / epsilon) + 0.01 * trial.repeat


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    from fake_trials import EXPERIMENT

    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "experiment.toml"
    path.write_text(EXPERIMENT.replace("noise_multiplier = 1.5", "epsilon = 1"))
    vary = ["privacy.epsilon=0.5,1,4,inf", "training.batch_size=10,20"]
    got = run_sweep(Base(path), vary, 2, 1, folder / "out", QUIET, runner=FakeRunner(accuracy))
    return got.model_copy(
        update={"baseline": (BaselinePoint(epsilon=1.0, accuracy=0.5, label="<b>theirs</b> & others"),)}
    )


def test_well_formed_with_unique_ids_and_nothing_from_elsewhere(sweep: Sweep) -> None:
    parsed = Checked(page.render_sweep(sweep))
    assert parsed.stack == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)


def test_the_one_script_is_the_one_that_the_policy_allows(sweep: Sweep) -> None:
    html = page.render_sweep(sweep)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == html.count("<script") == 1
    assert f"script-src 'sha256-{digest}'" in html


def test_the_table_is_there_without_the_script(sweep: Sweep) -> None:
    html = page.render_sweep(sweep)
    html = html[: html.index("<script>")]
    assert html.count('<td class="where">') == len(sweep.trials) == 16
    assert '<span class="with-script" hidden>' in html


def test_every_bound_stands_with_what_it_depends_on(sweep: Sweep) -> None:
    html = page.render_sweep(sweep)
    bounds = re.findall(r'<span class="eps">.*?</span>\s*(.*?)</span>', html, re.DOTALL)
    assert bounds
    for terms in bounds:
        assert all(word in terms for word in ("against", "unit:", "neighbours:", "sampling:", "δ"))
    caption = html[html.index("<figcaption>") : html.index("</figcaption>")]
    assert all(word in caption for word in ("release", "unit:", "neighbours:", "sampling:", "δ", "n = 2", "95 %"))


def test_hostile_names_stay_text(sweep: Sweep) -> None:
    evil = '"><script>alert(1)</script>'
    trial = sweep.trials[0].model_copy(update={"status": "failed", "error": evil, "folder": evil})
    html = page.render_sweep(sweep.model_copy(update={"trials": (trial, *sweep.trials[1:]), "name": evil}))
    assert html.count("<script") == 1
    assert "<b>theirs" not in html
    Checked(html)


def test_numbers_to_sort_by(sweep: Sweep) -> None:
    keys = re.findall(r'data-sort="([^"]*)"', page.render_sweep(sweep))
    assert "Infinity" in keys
    assert "inf" not in keys
    assert all(math.isfinite(float(key)) for key in keys if key not in ("", "Infinity"))


def test_lines_are_of_what_does_not_move_the_noise(sweep: Sweep) -> None:
    lines, total = curves(sweep, lambda summary: "")
    assert total == 2
    assert [line.label for line in lines] == ["batch size 10", "batch size 20"]
    for line in lines:
        epsilons = [point.epsilon for point in line.points]
        assert epsilons == sorted(epsilons)
        assert math.isinf(epsilons[-1])
        assert [point.accuracy for point in line.points] == pytest.approx([0.605, 0.705, 0.78, 0.905])
        assert all(len(point.single) == 2 for point in line.points)


def test_at_most_six_lines_and_it_is_said(sweep: Sweep) -> None:
    many = tuple(
        summary.model_copy(update={"values": {**summary.values, "training.batch_size": size}})
        for size in range(9)
        for summary in sweep.summaries[:2]
    )
    figure = trade_off(sweep.model_copy(update={"summaries": many, "baseline": ()}))
    assert len(figure.legend) == 6
    assert "6 of 9 lines" in figure.caption


@pytest.mark.parametrize(
    "keep", [lambda e: math.isinf(e), lambda e: math.isfinite(e), lambda e: e == 4, lambda e: False]
)
def test_any_part_of_the_curve_can_be_drawn(sweep: Sweep, keep) -> None:  # type: ignore[no-untyped-def]
    kept = tuple(s for s in sweep.summaries if keep(float(s.values["privacy.epsilon"])))  # type: ignore[arg-type]
    figure = trade_off(sweep.model_copy(update={"summaries": kept, "baseline": ()}))
    assert (figure.drawing is not None) == bool(kept)
    assert "nan" not in str(figure.drawing)
    Checked(page.render_sweep(sweep.model_copy(update={"summaries": kept})))


def test_one_seed_has_no_interval_and_it_is_said(base: Base, tmp_path: Path) -> None:
    base = replace(base, overrides=("privacy.noise_multiplier=none", "privacy.epsilon=1"))
    got = run_sweep(base, ["privacy.epsilon=1,2"], 1, 1, tmp_path / "o", QUIET, runner=FakeRunner(accuracy))
    figure = trade_off(got)
    assert 'class="band' not in str(figure.drawing)
    assert "how much seeds differ is not known" in figure.caption


def test_the_axis_is_logarithmic_and_names_its_points() -> None:
    axis = log_axis([0.5, 1, 2, 4, 8], (0, 700))
    assert [axis.label(tick) for tick in axis.ticks] == ["0.5", "1", "2", "4", "8"]
    steps = [axis.place(tick) for tick in axis.ticks]
    assert [b - a for a, b in pairwise(steps)] == pytest.approx([steps[1] - steps[0]] * 4)
    wide = log_axis([10**-3, 10**3, 10.0**3.001], (0, 300))
    assert len(wide.ticks) <= 9
    assert all(float(wide.label(t)) == pytest.approx(10**t) for t in wide.ticks)
    assert log_axis([3.0], (0, 100)).ticks
    assert Point(1, 0.5).low is None


def luminance(colour: str) -> float:
    linear = []
    for i in (1, 3, 5):
        share = int(colour[i : i + 2], 16) / 255
        linear.append(share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_lines_stand_out_from_the_card_in_both_palettes() -> None:
    style = (TEMPLATES / "sweep.css").read_text()
    report = (Path(page.__file__).parents[2] / "report" / "templates" / "style.css").read_text()
    cards = re.findall(r"--card: (#[0-9a-f]{6})", report)
    blocks = re.findall(r":root \{(.*?)\}", style)
    assert len(blocks) == len(cards) == 2
    for block, card in zip(blocks, cards, strict=True):
        colours = re.findall(r"--s\d: (#[0-9a-f]{6})", block)
        assert len(set(colours)) == 6
        for colour in colours:
            low, high = sorted((luminance(colour), luminance(card)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (colour, card)


def test_neither_sweeps_nor_searches_nor_pages_need_tensorflow() -> None:
    code = "import sys, privfed.sweep.run, privfed.sweep.tune; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
