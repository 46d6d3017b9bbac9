"""What is too much for one page is left out in words."""

from __future__ import annotations

import numpy as np
from report_sample import accuracy_points, round_evidence, run, sample
from sample_attacks import attack
from test_report_page import LIMIT, Page

from privfed.audit import evidence as ev
from privfed.report import render_html
from privfed.report.ladder import ladders


def test_ten_thousand_rounds_and_many_images_stay_small_and_say_so() -> None:
    rng = np.random.default_rng(1)
    noise = [ev.png(rng.random((64, 64, 3))) for _ in range(4)]
    many = [
        attack(
            1, observer=f"observer {i % 30}", attack=f"attack {i}", original=noise[i % 4], reconstruction=noise[0]
        )
        for i in range(1500)
    ]
    probes = [
        attack(1, observer="server", workload="probe", defence=f"defence {i % 6}" if i % 6 else "none").model_copy(
            update={"original": noise[i % 4], "reconstruction": noise[1], "contributors": 1.0}
        )
        for i in range(240)
    ]
    long = "word " * 100_000
    evidence = sample(
        rounds=[round_evidence(n, 10_000) for n in range(1, 10_001)],
        accuracy=sample().accuracy.model_copy(
            update={"protected": tuple(accuracy_points(10_000, 0.9, 5)), "unprotected": ()}
        ),
        attacks=[*many, *probes],
        limits=[long] * 3,
        run=run(settings={f"key {i}": long for i in range(1000)}),
    )
    html = render_html(evidence)
    assert len(html.encode()) < LIMIT
    text = Page(html).text()
    for words in (
        "Shown: 200 of 10,000 rounds",
        "Shown: 400 of 10,000 rounds",
        "Shown: 120 of 1,740 attacks",
        "Shown: 24 of 36 groups of attacks, those that got most",
        "Shown: 300 of 1,000 settings",
        "of 50 reconstructions, the best for the attacker first",
    ):
        assert words in text
    assert "10\u202f000" in text  # the last round is among them


def test_a_picture_too_large_for_the_page_is_named() -> None:
    huge = ev.png(np.random.default_rng(2).random((600, 600, 3)))
    html = render_html(sample(attacks=[attack(1, observer="server", original=huge, reconstruction=huge)]))
    assert len(html.encode()) < LIMIT
    assert "Images of 1 reconstructions are not on the page" in html


def test_a_ladder_too_large_for_the_page_has_fewer_rows() -> None:
    rng = np.random.default_rng(3)
    pictures = [ev.png(rng.random((100, 100, 3))) for _ in range(6)]
    probes = [
        attack(
            1, observer="server", workload="probe", defence=defence, contributors=1.0, original=p, reconstruction=p
        )
        for defence in ("none", "clip", "noise")
        for p in pictures
    ]
    (ladder,) = ladders(probes)
    assert 0 < len(ladder.originals) < 6
    assert f"Shown: {len(ladder.originals)} of 6 examples" in render_html(sample(attacks=probes))
    huge = ev.png(rng.random((500, 500, 3)))
    assert ladders([a.model_copy(update={"original": huge}) for a in probes]) == []
