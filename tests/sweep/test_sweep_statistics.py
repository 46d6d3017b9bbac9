"""Means and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_trials import QUIET, FakeRunner

from privfed.sweep.grid import Base
from privfed.sweep.run import run_sweep
from privfed.sweep.statistics import mean


def test_interval_of_a_known_sample() -> None:
    # t(0.975, 2) = 4.3027 in any table of Student's distribution; the sample's deviation is 1.
    got = mean([1.0, 2.0, 3.0])
    assert (got.value, got.n) == (2.0, 3)
    assert got.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_one_value_has_no_interval() -> None:
    assert mean([0.25]).half_width is None


def test_coverage() -> None:
    """Of 4000 samples of 4, the intervals of about 95 % hold the mean; those of a normal deviate hold far fewer.

    Standard error of the share: sqrt(.95 * .05 / 4000) = 0.0034; within 4 of it, a false alarm once in 16000.
    """
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 4))
    found = [mean(list(sample)) for sample in samples]
    hits = [abs(one.value - 3.0) <= (one.half_width or 0) for one in found]
    assert np.mean(hits) == pytest.approx(0.95, abs=4 * 0.0034)
    wrong = [abs(one.value - 3.0) <= (one.half_width or 0) * 1.96 / 3.1824 for one in found]
    assert np.mean(wrong) < 0.90


def test_groups_are_of_the_same_values_with_the_largest_epsilon(base: Base, tmp_path) -> None:  # type: ignore[no-untyped-def]
    runner = FakeRunner(lambda trial: 0.5 + 0.1 * trial.repeat)
    vary = ["privacy.noise_multiplier=1,2"]
    sweep = run_sweep(base, vary, 3, 1, tmp_path / "out", QUIET, runner=runner)
    assert [summary.values for summary in sweep.summaries] == [
        {"privacy.noise_multiplier": 1},
        {"privacy.noise_multiplier": 2},
    ]
    for summary in sweep.summaries:
        assert summary.accuracies == pytest.approx((0.5, 0.6, 0.7))
        assert math.isinf(summary.epsilon["server"])
    assert sweep.summaries[0].epsilon["release"] > sweep.summaries[1].epsilon["release"] > 0
