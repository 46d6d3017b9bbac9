"""What the evidence model refuses, and the numbers that the page prints."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from report_sample import guarantee, observers, round_evidence, sample
from sample_attacks import attack, counted_labels, failed_attack

from privfed.audit import evidence as ev
from privfed.report import numbers, selection, svg


def test_evidence_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        sample().verdict.text = "otherwise"  # type: ignore[misc]  # the test of exactly that


def test_nan_is_refused_with_a_word_about_it() -> None:
    with pytest.raises(ValidationError, match="NaN says nothing"):
        guarantee(math.nan)
    with pytest.raises(ValidationError):
        round_evidence(1, clipped_fraction=math.nan)
    with pytest.raises(ValidationError):
        attack(1, observer="server", psnr=math.nan)
    with pytest.raises(ValidationError):
        attack(1, observer="server", psnr=math.inf)


def test_protected_needs_a_finite_epsilon() -> None:
    with pytest.raises(ValidationError, match="called protected, but its ε is infinite"):
        ev.ObserverEvidence(
            observer="server", sees="", protected=True, guarantee=guarantee(math.inf), best_attack=None
        )


def test_observers_are_listed_once() -> None:
    with pytest.raises(ValidationError, match="one entry"):
        sample(observers=[*observers(), observers()[0]])


TEXT = ev.TextScores(token_set=0.98765, token_accuracy=0.5, exact=0.25, rouge1=0.7, rouge2=0.6, rouge_l=0.65)


def test_an_attack_fails_or_scores() -> None:
    labels = counted_labels("server").labels
    for changes in ({"failure": "it did not work"}, {"margin_db": None}, {"text": TEXT}, {"labels": labels}):
        with pytest.raises(ValidationError, match="has a failure, or psnr"):
            attack(1, observer="server", **changes)


@pytest.mark.parametrize(
    "changes", [{"found": (1, 1)}, {"true": (0, 0, 0)}, {"found": (0, 0, 0)}, {"trivial": {}}]
)
def test_counts_of_labels_are_of_the_same_classes(changes: Any) -> None:
    labels = counted_labels("server").labels
    assert labels is not None
    with pytest.raises(ValidationError, match="are of the same classes"):
        ev.LabelScores(**{**labels.model_dump(), **changes})


def test_numpy_numbers_are_taken() -> None:
    entry = round_evidence(1, cohort=np.int64(3), clipped_fraction=np.float64(0.5), seconds=np.float32(1))
    assert (entry.cohort, entry.clipped_fraction, entry.seconds) == (3, 0.5, 1.0)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (5, 7, 3)])
def test_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape) / 255
    data = ev.png(pixels)
    assert attack(1, observer="server", original=data).original == data
    image = Image.open(io.BytesIO(base64.b64decode(data.removeprefix(ev.PNG_PREFIX))))
    assert np.array_equal(np.asarray(image).reshape(shape) / 255, pixels)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros(8), "shape"),
        (np.zeros((8, 8, 4)), "shape"),
        (np.zeros((0, 8)), "shape"),
        (np.full((2, 2), np.nan), "finite"),
        (np.full((2, 2), 1.1), "within"),
    ],
)
def test_png_refuses_what_is_no_picture(pixels: np.ndarray, words: str) -> None:  # type: ignore[type-arg]  # any kind
    with pytest.raises(ValueError, match=words):
        ev.png(pixels)


@pytest.mark.parametrize(
    "data",
    [
        "data:image/svg+xml;base64,iVBORw0KGgo=",
        "iVBORw0KGgoAAAA",
        ev.PNG_PREFIX + "iVBORw0KGgoAAAA",
        ev.PNG_PREFIX + "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAA",
        ev.png(np.zeros((8, 8))).replace("AAAAICAAAAA", "AAAAICBAAAA"),  # 16 bits
        ev.png(np.zeros((8, 8))) + '"><script>',
    ],
)
def test_other_images_are_refused(data: str) -> None:
    with pytest.raises(ValidationError, match=r"pattern|PNG"):
        attack(1, observer="server", original=data)


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_epsilon_is_never_printed_below_its_value(value: float) -> None:
    shown = Decimal(numbers.epsilon(value))
    assert Decimal(repr(value)) <= shown <= Decimal(repr(value)) * Decimal("1.0101")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.98, "2.98"),
        (2.9801, "2.99"),
        (3.0, "3.00"),
        (0.0, "0"),
        (12.301, "12.4"),
        (1234.5, "1240"),
        (0.012345, "0.0124"),
        (9.999, "10.0"),
        (9.2e27, "9.20e+27"),
        (1e-9, "1.00e-9"),
        (math.inf, "∞"),
        (None, "–"),
    ],
)
def test_epsilon_text(value: float | None, text: str) -> None:
    assert numbers.epsilon(value) == text


def test_other_numbers() -> None:
    thin = numbers.THIN
    assert numbers.count(1234567) == f"1{thin}234{thin}567"
    assert numbers.count(52.5) == "52.5"
    assert numbers.percent(0.8692) == f"86.9{thin}%"
    assert numbers.points(-0.0004) == "0.0 points"
    assert numbers.points(-0.004) == "−0.4 points"
    assert numbers.decibels(-1.84, signed=True) == f"−1.8{thin}dB"
    assert numbers.decibels(145.3, signed=True) == f"+145.3{thin}dB"
    assert [numbers.power(v) for v in (0, 0.05, 1e-5, 2.5e-6)] == ["0", "0.05", "10⁻⁵", "2.5·10⁻⁶"]
    assert numbers.octets(138_240) == f"138{thin}kB"
    assert numbers.octets(5e15) == f"5e+03{thin}TB"
    assert numbers.duration(101.3) == f"1{thin}min 41{thin}s"
    assert numbers.duration(7261) == f"2{thin}h 1{thin}min"
    assert numbers.yes_no(None) == numbers.ratio(None) == numbers.octets(None) == numbers.DASH


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_axis_covers_the_values_with_few_round_ticks(low: float, width: float) -> None:
    axis = svg.axis(low, low + width, (0, 100), str)
    tolerance = 1e-8 * (axis.high - axis.low)
    assert axis.low <= low + tolerance
    assert axis.high >= low + width - tolerance
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == 100
    assert 2 <= len(axis.ticks) <= 8


def test_ticks_are_round() -> None:
    assert svg.axis(0, 2.9, (0, 1), str).ticks == (0, 1, 2, 3)
    assert svg.axis(1, 40, (0, 1), str, whole=True, tight=True).ticks == (10, 20, 30, 40)
    assert svg.axis(1, 3, (0, 1), str, whole=True, tight=True).ticks == (1, 2, 3)


@given(st.integers(0, 1000), st.integers(2, 50))
def test_even_selection_keeps_order_and_both_ends(length: int, limit: int) -> None:
    items = list(range(length))
    chosen = selection.evenly(items, limit)
    assert len(chosen) == min(length, limit)
    assert chosen == sorted(set(chosen))
    assert chosen[:1] == items[:1]
    assert chosen[-1:] == items[-1:]


def test_groups_put_the_worst_leak_first_and_never_drop_it() -> None:
    leaks = [attack(i, observer="server", margin_db=float(i)) for i in range(9)]
    group = selection.group_attacks([*leaks, attack(1, observer="client")])[0]
    assert [a.margin_db for a in group.shown] == [8, 7, 6, 5, 4]
    assert len(group.scored) == 9


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-121, 1e300])
def test_axis_of_extreme_values(value: float) -> None:
    axis = svg.axis(0, value, (0, 100), str)
    assert 0 <= axis.place(value) <= 100


def test_no_selection_hides_a_leak() -> None:
    quiet = [attack(1, observer=f"observer {i}") for i in range(200)]
    leak = attack(2, observer="the last one", margin_db=90.0)
    groups = selection.group_attacks([*quiet, leak])
    assert len(groups) == selection.MAX_GROUPS
    assert groups[-1].shown == (leak,)
    rows = selection.foremost([failed_attack("server"), *quiet, leak], selection.ATTACK_ROWS, selection.margin)
    assert len(rows) == selection.ATTACK_ROWS
    assert rows[-1] == leak
    assert all(row.failure is None for row in rows)
