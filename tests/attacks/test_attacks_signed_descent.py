"""Signed descent: the least point of what has kinks, within [0, 1], and an honest end where there is no slope."""

from __future__ import annotations

import numpy as np

from attacks.signed_descent import descend


def test_it_finds_the_least_point_of_a_loss_with_kinks_and_stays_in_the_box():
    target = np.array([0.25, 0.7, 1.5, -0.5])
    seen = []

    def loss(x):
        seen.append(x)
        return float(np.abs(x - target).sum()), np.sign(x - target)

    found, taken = descend(loss, np.full(4, 0.5), 400)
    np.testing.assert_allclose(found, [0.25, 0.7, 1, 0], atol=0.01)
    assert taken == len(seen) == 400
    assert min(x.min() for x in seen) >= 0
    assert max(x.max() for x in seen) <= 1


def test_it_ends_with_the_best_point_when_the_loss_is_no_number_or_flat():
    values = iter([1.0, 0.5, np.nan])
    seen = []

    def loss(x):
        seen.append(x)
        return next(values), np.ones_like(x)

    found, taken = descend(loss, np.full(2, 0.5), 50)
    np.testing.assert_array_equal(found, seen[1])
    assert taken == 3
    start = np.full(2, 0.5)
    found, taken = descend(lambda x: (1.0, np.zeros_like(x)), start, 50)
    np.testing.assert_array_equal(found, start)
    assert taken == 1
