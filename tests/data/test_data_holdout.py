"""Clients of the data, drawn and held out: every example is where it belongs, and draws are uniform."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.data import (
    Dataset,
    Population,
    build_population,
    draw_held_out,
    hold_out_clients,
    take_clients,
)
from privfed.data.holdout import draw_clients, rows_of_clients
from privfed.errors import SettingError

SIZES = [2, 0, 3, 1, 4]


def dataset(**changes: Any) -> Dataset:
    """Each example names its row, and its label is its owner's number."""
    rows = np.arange(10, dtype=np.uint8)[:, np.newaxis]
    labels = np.repeat(np.arange(5, dtype=np.int32), SIZES)
    fields = {
        "train_features": rows,
        "train_labels": labels,
        "test_features": rows[:2],
        "test_labels": labels[:2],
        "name": "numbered",
        "classes": 5,
        "train_offsets": np.array([0, 2, 2, 5, 6, 10]),
    }
    return Dataset(**(fields | changes))


def rows_of(population: Population) -> list[list[int]]:
    return [population.features[a:b, 0].tolist() for a, b in pairwise(population.offsets)]


def test_natural_clients_are_those_of_the_data() -> None:
    whole = build_population(dataset(), "natural")
    assert rows_of(whole) == [[0, 1], [], [2, 3, 4], [5], [6, 7, 8, 9]]
    capped = build_population(dataset(), "natural", examples_per_client=2)
    assert rows_of(capped) == [[0, 1], [], [2, 3], [5], [6, 7]]


def test_some_natural_clients_keep_their_examples_and_their_order() -> None:
    seen = set()
    for seed in range(30):
        some = build_population(dataset(), "natural", 4, seed)
        owners = tuple(int(labels[0]) if len(labels) else 1 for labels in (some.client(c)[1] for c in range(4)))
        assert sorted(owners) == list(owners)
        whole = rows_of(build_population(dataset(), "natural"))
        assert rows_of(some) == [whole[owner] for owner in owners]
        assert rows_of(build_population(dataset(), "natural", 4, seed)) == rows_of(some)
        seen.add(owners)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("data", "keys", "message"),
    [
        (dataset(train_offsets=None), {}, "data.partition: the dataset numbered does not come by client"),
        (dataset(), {"clients": 6}, "data.clients: there are more clients than the 5 of the data"),
        (dataset(), {"clients": 0}, "data.clients: must be at least 1"),
    ],
)
def test_natural_is_refused(data: Dataset, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_population(data, "natural", **keys)


def test_other_partitions_need_a_number_and_ignore_owners() -> None:
    with pytest.raises(SettingError, match=r"data\.clients: is missing: the partition iid needs it"):
        build_population(dataset(), "iid")
    assert build_population(dataset(), "sequential", 2).sizes.tolist() == [5, 5]


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=8), cap=st.none() | st.integers(1, 3), data=st.data()
)
@settings(deadline=None, max_examples=80)
def test_rows_of_clients_are_those_of_a_loop(sizes: list[int], cap: int | None, data: st.DataObject) -> None:
    clients = data.draw(st.lists(st.integers(0, len(sizes) - 1), unique=True))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows, got = rows_of_clients(offsets, np.array(clients, np.int64), cap)
    twin = [list(range(offsets[c], offsets[c + 1]))[:cap] for c in clients]
    assert np.arange(offsets[-1])[rows].tolist() == [row for part in twin for row in part]
    assert np.diff(got).tolist() == [len(part) for part in twin]


@pytest.mark.parametrize("held_out", [1, 7, 0.25, 0.5])
def test_every_client_is_on_one_side(held_out: float) -> None:
    rows = np.arange(50, dtype=np.uint8)[:, np.newaxis]
    data = dataset(train_features=rows, train_labels=np.zeros(50, np.int32), train_offsets=None)
    population = build_population(data, "iid", 20)
    split = draw_held_out(20, held_out, 3)
    count = held_out if isinstance(held_out, int) else held_out * 20
    assert len(split.held_out) == count
    assert sorted([*split.training, *split.held_out]) == list(range(20))
    training, others = hold_out_clients(population, held_out, 3)
    assert (training.clients, others.clients) == (20 - count, count)
    for side, chosen in ((training, split.training), (others, split.held_out)):
        for c, original in enumerate(chosen):
            np.testing.assert_array_equal(side.client(c)[0], population.client(int(original))[0])
            np.testing.assert_array_equal(side.client(c)[1], population.client(int(original))[1])
        np.testing.assert_array_equal(side.test_features, population.test_features)
    assert training.fingerprint == hold_out_clients(population, held_out, 3)[0].fingerprint
    assert training.fingerprint != hold_out_clients(population, held_out, 4)[0].fingerprint


def draws_are_uniform(draw: Any) -> bool:
    """Chi-squared of how often each of 10 clients is among the 3 of 2,000 draws.

    Without replacement the sum is 7/9 of a chi-squared variable of 9 degrees of freedom, which exceeds 48 with a
    probability below 1e-6.
    """
    counts = np.bincount(np.concatenate([draw(seed) for seed in range(2000)]), minlength=10)
    return bool(((counts - 600) ** 2 / 600).sum() < 48)


def test_draws_are_uniform_and_a_biased_one_is_found() -> None:
    assert draws_are_uniform(lambda seed: draw_clients(10, 3, seed))
    assert draws_are_uniform(lambda seed: draw_held_out(10, 3, seed).held_out)
    assert not draws_are_uniform(lambda seed: draw_clients(9, 3, seed))


@pytest.mark.parametrize("held_out", [0, 5, -1, 0.0, 1.0, 1.5, float("nan"), 0.01, 0.99, True])
def test_a_side_without_clients_is_refused(held_out: float) -> None:
    with pytest.raises(SettingError, match=r"data\.held_out_clients"):
        draw_held_out(5, held_out, 0)


def test_clients_can_be_taken_in_any_order() -> None:
    whole = build_population(dataset(), "natural")
    assert rows_of(take_clients(whole, np.array([4, 0]))) == [[6, 7, 8, 9], [0, 1]]
