"""Rounding whose bound always holds, whose mean is the vector, and which does not depend on luck."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError
from privfed.privacy.randomness import RandomSource, SeededSource, SystemSource
from privfed.privacy.rounding import BETA, MAX_ATTEMPTS, conditional_round, rounded_norm_bound


def exact_square(values: np.ndarray) -> int:
    return sum(int(v) ** 2 for v in values)


def test_the_bound_is_the_papers() -> None:
    # By hand: c = 10, d = 4, β = e^-1/2, so that sqrt(2 log(1/β)) = 1: 100 + 1 + (10 + 1) = 112 < (10 + 2)².
    assert rounded_norm_bound(10, 4) == pytest.approx(math.sqrt(112))
    assert rounded_norm_bound(10, 4, 0.0) == 12
    assert rounded_norm_bound(0.01, 1, 1e-6) == pytest.approx(1.01)  # here the second term is less
    assert rounded_norm_bound(10, 4, 0.9) < rounded_norm_bound(10, 4, 0.1)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=60),
    st.floats(0.1, 100),
    st.sampled_from([0.0, BETA, 0.99]),
    st.integers(0, 2**32),
)
def test_the_norm_never_exceeds_the_bound(values: list[float], norm: float, beta: float, seed: int) -> None:
    rounded = conditional_round(np.array(values), norm, SeededSource(seed), beta)
    assert rounded.dtype == np.int64
    assert exact_square(rounded) <= rounded_norm_bound(norm, len(values), beta) ** 2 * (1 + 1e-15)
    if np.linalg.norm(values) <= norm * (1 - 1e-12):
        assert np.abs(rounded - values).max() < 1


@pytest.mark.parametrize("norm", [3.0, 1e3, 1e9, 2.0**44])
@pytest.mark.parametrize("dimension", [1, 1000, 100_000])
def test_the_bound_holds_at_every_size_without_the_fallback(norm: float, dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    vector = rng.normal(size=dimension)
    vector *= norm / np.linalg.norm(vector)
    counting = Counting()
    rounded = conditional_round(vector, norm, counting)
    assert exact_square(rounded) <= rounded_norm_bound(norm, dimension) ** 2
    assert counting.calls < MAX_ATTEMPTS  # so a random rounding was accepted


def test_a_condition_that_is_mostly_met_leaves_the_mean_alone() -> None:
    vector = np.array([0.25, -0.25, 3.9, -7.0, 0.0])
    source = SeededSource(1)
    mean = np.mean([conditional_round(vector, 20.0, source) for _ in range(20_000)], axis=0)
    # 5 standard errors of the widest coordinate: a false alarm below 5e-6 in five coordinates.
    assert np.abs(mean - vector).max() < 5 * 0.44 / math.sqrt(20_000)
    assert np.abs(mean - np.array([0.3, -0.25, 3.9, -7.0, 0.0])).max() > 5 * 0.44 / math.sqrt(20_000)
    assert (mean[3], mean[4]) == (-7.0, 0.0)  # integers stay


def test_too_long_vectors_are_shortened_first() -> None:
    rounded = conditional_round(np.full(100, 1000.0), 50.0, SystemSource())
    assert exact_square(rounded) <= rounded_norm_bound(50.0, 100) ** 2
    assert abs(rounded.mean() - 5) < 0.5


class Upwards:
    """The worst luck there is: every coordinate away from zero."""

    calls = 0

    def words(self, size: int) -> np.ndarray:
        self.calls += 1
        return np.zeros(size, np.uint64)

    def normal(self, size: int) -> np.ndarray:
        raise AssertionError("rounding draws words, and nothing else")


class Counting:
    def __init__(self, source: RandomSource | None = None) -> None:
        self.source, self.calls = source or SystemSource(), 0

    def words(self, size: int) -> np.ndarray:
        self.calls += 1
        return self.source.words(size)

    def normal(self, size: int) -> np.ndarray:
        raise AssertionError("rounding draws words, and nothing else")


def test_after_a_bounded_number_of_attempts_it_rounds_towards_zero() -> None:
    vector = np.full(400, 0.5)  # norm 10; upwards, 20 > sqrt(100 + 100 + 20) = 14.8
    unlucky = Upwards()
    np.testing.assert_array_equal(conditional_round(vector, 10.0, unlucky), np.zeros(400))
    assert unlucky.calls == MAX_ATTEMPTS
    # The same luck is no harm where the bound is the one that no rounding exceeds.
    np.testing.assert_array_equal(conditional_round(vector, 10.0, Upwards(), 0.0), np.ones(400))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteUpdateError):
        conditional_round(np.array([1.0, bad]), 2.0, SystemSource())


@pytest.mark.parametrize(
    ("norm", "dimension", "beta", "name"),
    [
        (0.0, 3, 0.5, "norm"),
        (2.0**46, 3, 0.5, "norm"),
        (math.nan, 3, 0.5, "norm"),
        (1.0, 0, 0.5, "dimension"),
        (1.0, 3, 1.0, "beta"),
        (1.0, 3, -0.1, "beta"),
    ],
)
def test_arguments_out_of_range_are_refused(norm: float, dimension: int, beta: float, name: str) -> None:
    with pytest.raises(PrivacyError, match=name):
        rounded_norm_bound(norm, dimension, beta)
