"""The examples of federated analytics: exact where they say so, and as noisy as they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from privfed.privacy.randomness import SeededSource

EXAMPLES = Path(__file__).parents[1] / "examples"
TEMPERATURES = runpy.run_path(str(EXAMPLES / "temperatures.py"))
SALARIES = runpy.run_path(str(EXAMPLES / "salaries.py"))


def test_the_mean_of_local_means_is_seven_in_the_clear_and_masked() -> None:
    readings = [[1, 1, 1], [13]]
    assert TEMPERATURES["clear_mean"](readings) == 7
    assert TEMPERATURES["masked_mean"](readings) == 7


def test_negative_means_add_up_under_masking() -> None:
    readings = [[-20.5], [3, 4], [-1, 1]]
    assert TEMPERATURES["masked_mean"](readings) == (-20.5 + 3.5) / 3


def test_the_interval_of_the_private_mean_is_that_of_its_noise() -> None:
    readings = [[12.0], [14.0, 16.0]]
    source = SeededSource(5)
    means = [TEMPERATURES["private_mean"](readings, 0.0, 30.0, 1.0, 1e-6, source) for _ in range(60)]
    errors = np.array([mean.value - 13.5 for mean in means]) / means[0].margin
    # 60 draws of a normal with standard deviation 1 / 1.96: off by 5 standard errors with probability below 1e-6.
    assert abs(errors.std() * 1.959964 - 1) < 5 / np.sqrt(2 * 60)
    assert abs(errors.mean()) * 1.959964 < 5 / np.sqrt(60)
    assert means[0].guarantee.epsilon <= 1


def test_means_out_of_range_are_cut_off() -> None:
    """With noise that is nothing beside the range: 1000 degrees count as 40."""
    mean = TEMPERATURES["private_mean"]([[1000.0], [-1000.0], [40.0]], -10.0, 40.0, 1e4, 0.1, SeededSource(1))
    assert mean.value == pytest.approx((40 - 10 + 40) / 3, abs=5 * mean.margin)
    assert mean.margin < 5


def test_the_mean_salary_survives_those_who_leave_but_not_too_many() -> None:
    salaries = {1: 48_000, 2: 61_500, 3: 39_900, 4: 75_250, 5: 52_350}
    exact = sum(salaries.values()) / 5
    assert SALARIES["mean_salary"](salaries, 3) == exact
    assert SALARIES["mean_salary"](salaries, 3, gone={1, 4}) == exact
    with pytest.raises(ValueError, match="2 are left and 3 are needed"):
        SALARIES["mean_salary"](salaries, 3, gone={1, 2, 4})


@pytest.mark.parametrize("module", [TEMPERATURES, SALARIES], ids=["temperatures", "salaries"])
def test_the_programs_run(
    module: dict[str, object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["example"])
    module["main"]()  # type: ignore[operator]  # found by name
    printed = capsys.readouterr().out
    assert "7" in printed or "55,400.00" in printed
