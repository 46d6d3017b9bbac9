"""The contract of every partitioner, and what each promises beyond it."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privfed.data import PARTITIONERS, Dataset, PartitionPlan, build_population
from privfed.data.partition import Assignment, assign
from privfed.errors import DataError, SettingError

EVERY = pytest.mark.parametrize("partition", PARTITIONERS)


def labels_of(examples: int, classes: int = 10, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, classes, examples).astype(np.int32)


def dataset_of(labels: NDArray[np.int32]) -> Dataset:
    """Every pixel says which example it is of."""
    features = np.linspace(0, 1, 4 * len(labels), dtype=np.float32).reshape(-1, 2, 2, 1)
    return Dataset(features, labels, features[:1], labels[:1], "numbered", int(labels.max()) + 1)


@EVERY
@given(
    examples=st.integers(1, 200),
    clients=st.integers(1, 40),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    alpha=st.sampled_from([1e-9, 0.01, 0.5, 10.0, 1e6]),
    cap=st.none() | st.integers(1, 10),
)
@settings(deadline=None, max_examples=60)
def test_contract(
    partition: str, examples: int, clients: int, classes: int, seed: int, alpha: float, cap: int | None
) -> None:
    clients = min(clients, examples)
    shards_per_client = min(2, examples // clients)
    labels = labels_of(examples, classes, seed)
    plan = PartitionPlan(clients, seed, alpha, shards_per_client, cap)
    order, offsets = assign(labels, partition, plan)
    # Offsets are consistent, and every client has an example.
    assert offsets.shape == (clients + 1,)
    assert (order.dtype, offsets.dtype) == (np.int64, np.int64)
    assert (offsets[0], offsets[-1]) == (0, len(order))
    sizes = np.diff(offsets)
    assert sizes.min() >= 1
    # Every example once, or under a cap at most once.
    assert len(np.unique(order)) == len(order)
    if cap is None:
        assert len(order) == examples
    else:
        full = assign(labels, partition, PartitionPlan(clients, seed, alpha, shards_per_client))
        np.testing.assert_array_equal(sizes, np.minimum(np.diff(full.offsets), cap))
        for client in range(clients if partition != "dirichlet" else 0):  # which draws only what is kept
            whole = full.order[full.offsets[client] : full.offsets[client + 1]]
            np.testing.assert_array_equal(order[offsets[client] : offsets[client + 1]], whole[:cap])
    # The same seed gives the same partition.
    again = assign(labels, partition, plan)
    np.testing.assert_array_equal(order, again.order)
    np.testing.assert_array_equal(offsets, again.offsets)


@EVERY
def test_the_population_holds_the_assigned_examples(partition: str) -> None:
    labels = labels_of(101)
    dataset = dataset_of(labels)
    population = build_population(dataset, partition, 7, 3)
    order, offsets = assign(labels, partition, PartitionPlan(7, 3))
    for client in range(7):
        rows = order[offsets[client] : offsets[client + 1]]
        features, own = population.client(client)
        np.testing.assert_array_equal(features, dataset.train_features[rows])
        np.testing.assert_array_equal(own, labels[rows])
    assert population.fingerprint == build_population(dataset, partition, 7, 3).fingerprint


@EVERY
def test_another_seed_gives_another_partition(partition: str) -> None:
    dataset = dataset_of(labels_of(200))
    same = (
        build_population(dataset, partition, 5, 0).fingerprint
        == build_population(dataset, partition, 5, 1).fingerprint
    )
    assert same == (partition == "sequential")


@pytest.mark.parametrize("partition", ["sequential", "iid", "dirichlet"])
def test_sizes_differ_by_one_at_most(partition: str) -> None:
    sizes = np.diff(assign(labels_of(103), partition, PartitionPlan(10)).offsets)
    assert sorted(sizes) == [10] * 7 + [11] * 3


def test_sequential_is_the_articles() -> None:
    """60,000 examples over ten clients: consecutive ranges of 6,000 in file order."""
    order, offsets = assign(labels_of(60_000), "sequential", PartitionPlan(10, seed=5))
    np.testing.assert_array_equal(order, np.arange(60_000))
    np.testing.assert_array_equal(offsets, np.arange(11) * 6_000)


def test_shards_give_mcmahans_hundred_clients() -> None:
    """200 shards of 300 of 60,000 balanced examples: 100 clients of 600, none with more than two labels."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10, dtype=np.int32), 6_000))
    population = build_population(dataset_of(labels), "shards", 100, shards_per_client=2)
    assert population.sizes.tolist() == [600] * 100
    assert max(len(np.unique(population.client(c)[1])) for c in range(100)) == 2


def test_a_cap_leaves_both_shards_of_a_client() -> None:
    """A client's two shards are shuffled: 60 of its 600 examples are all of one with chance below 2**-59."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10, dtype=np.int32), 600))
    whole = build_population(dataset_of(labels), "shards", 10)
    capped = build_population(dataset_of(labels), "shards", 10, examples_per_client=60)
    for client in range(10):
        assert set(capped.client(client)[1]) == set(whole.client(client)[1])


def spread(assignment: Assignment, labels: NDArray[np.int32], clients: int) -> float:
    """Mean over clients of the sum of squared label frequencies: 1 with one label each."""
    owner = np.repeat(np.arange(clients), np.diff(assignment.offsets))
    table = np.zeros((clients, int(labels.max()) + 1))
    np.add.at(table, (owner, labels[assignment.order]), 1)
    return float(((table / table.sum(axis=1, keepdims=True)) ** 2).sum(axis=1).mean())


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0, 1000.0])
def test_dirichlet_has_the_claimed_concentration(alpha: float) -> None:
    """Without exhausted classes the purity of m draws of q ~ Dir(alpha/K) has a known mean.

    E[sum q²] = (alpha/K + 1)/(alpha + 1), and m draws add (1 - that)/m. A cap of m = 50 on each of 400 clients
    leaves a pool 20 times as large, in which no class runs out. The bound is 5 standard
    errors of the mean over 400 clients of a variable in [0, 1]: false alarm below 1e-6 for each alpha.
    """
    clients, cap, classes = 400, 50, 10
    labels = np.tile(np.arange(classes, dtype=np.int32), clients * cap * 20 // classes)
    purity = (alpha / classes + 1) / (alpha + 1)
    expected = purity + (1 - purity) / cap
    got = spread(assign(labels, "dirichlet", PartitionPlan(clients, 1, alpha, 2, cap)), labels, clients)
    assert abs(got - expected) < 5 * math.sqrt(expected * (1 - expected) / clients)
    # The negative: ten times the concentration would be noticed, where the scale can tell them apart.
    wrong = (10 * alpha / classes + 1) / (10 * alpha + 1)
    if alpha <= 1:
        assert abs(got - wrong - (1 - wrong) / cap) > 5 * math.sqrt(expected * (1 - expected) / clients)


def test_dirichlet_follows_an_uneven_prior() -> None:
    """A class that no example has gets nothing; a rare one goes round exactly once."""
    labels = np.array([0] * 97 + [3] * 2 + [7], np.int32)
    order, _ = assign(labels, "dirichlet", PartitionPlan(5, 0, 1.0))
    assert sorted(order) == list(range(100))


@EVERY
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 51}, r"data.clients: there are more clients than the 50 examples \(got 51\)"),
        ({"clients": 0}, r"data.clients: must be at least 1 \(got 0\)"),
        ({"alpha": 0.0}, r"data.alpha: must be a number above 0 \(got 0.0\)"),
        ({"alpha": -1.0}, "data.alpha: must be"),
        ({"alpha": math.nan}, "data.alpha: must be"),
        ({"alpha": math.inf}, "data.alpha: must be"),
        ({"shards_per_client": 0}, "data.shards_per_client: must be at least 1"),
        ({"examples_per_client": 0}, "data.examples_per_client: must be at least 1"),
        ({"seed": -1}, "data.seed: must not be negative"),
    ],
)
def test_refuses_settings(partition: str, changes: dict[str, float], message: str) -> None:
    arguments = {"clients": 5, "seed": 0} | changes
    with pytest.raises(SettingError, match=message):
        build_population(dataset_of(labels_of(50)), partition, **arguments)  # type: ignore[arg-type]  # mixed values


def test_refuses_more_shards_than_examples() -> None:
    with pytest.raises(
        SettingError, match=r"data.shards_per_client: 20 clients need 60 examples for that, .* has 50"
    ):
        build_population(dataset_of(labels_of(50)), "shards", 20, shards_per_client=3)


def test_lists_the_known_partitions() -> None:
    with pytest.raises(SettingError, match=r"data.partition: .*Known: sequential, iid, dirichlet, shards"):
        build_population(dataset_of(labels_of(50)), "by-phase-of-moon", 5)


def test_an_empty_dataset_is_not_blamed_on_the_clients() -> None:
    empty = Dataset(
        np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32), np.zeros((1, 2, 2, 1), np.uint8),
        np.zeros(1, np.int32), "nothing", 2,
    )  # fmt: skip
    with pytest.raises(DataError, match="nothing: the dataset is empty"):
        build_population(empty, "iid", 5)


@EVERY
def test_a_million_clients_are_no_objects(partition: str) -> None:
    examples = 1_000_000
    dataset = Dataset(
        np.zeros((examples, 1, 1, 1), np.uint8), labels_of(examples), np.zeros((1, 1, 1, 1), np.uint8),
        np.zeros(1, np.int32), "tiny", 10,
    )  # fmt: skip
    gc.collect()
    before = len(gc.get_objects())
    population = build_population(dataset, partition, examples, shards_per_client=1)
    assert population.clients == examples
    assert len(gc.get_objects()) - before < 1_000
    held = [getattr(population, field).nbytes for field in ("features", "labels", "offsets")]
    assert sum(held) == examples * (1 + 4 + 8) + 8
