"""The packed population: what it holds, and everything it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.data import Population, as_float
from privfed.errors import DataError


def population(**changes: Any) -> Population:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "features": rng.random((6, 2, 3, 1)).astype(np.float32),
        "labels": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "offsets": np.array([0, 2, 2, 6], np.int64),
        "test_features": rng.random((4, 2, 3, 1)).astype(np.float32),
        "test_labels": np.array([0, 1, 2, 0], np.int32),
        "name": "made up",
        "classes": 3,
    }
    return Population(**(fields | changes))


def test_gives_every_client_its_rows() -> None:
    people = population()
    assert (people.clients, people.input_shape, people.sizes.tolist()) == (3, (2, 3, 1), [2, 0, 4])
    features, labels = people.client(2)
    np.testing.assert_array_equal(features, people.features[2:])
    np.testing.assert_array_equal(labels, [2, 0, 1, 2])


def test_a_client_without_examples_sits_out() -> None:
    features, labels = population().client(1)
    assert features.shape == (0, 2, 3, 1)
    assert labels.shape == (0,)


@pytest.mark.parametrize("client", [-1, 3])
def test_there_is_no_client_beyond_the_last(client: int) -> None:
    with pytest.raises(IndexError, match=f"no client {client}"):
        population().client(client)


def test_bytes_are_scaled_and_floats_kept() -> None:
    scaled = as_float(np.array([0, 51, 255], np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-7)
    kept = np.array([0.25], np.float32)
    assert as_float(kept) is kept
    with pytest.raises(DataError, match="uint8 or float32"):
        as_float(np.array([1.0]))


def test_every_level_of_a_byte_lands_in_the_unit_interval() -> None:
    levels = as_float(np.arange(256, dtype=np.uint8))
    assert levels.min() == 0
    assert levels.max() == 1
    assert (np.diff(levels) > 0).all()


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_mean_image_is_of_the_held_out_examples(kind: type) -> None:
    scale = 255 if kind is np.uint8 else 1
    test = np.array([[[[0.0]]], [[[1.0]]], [[[1.0]]], [[[1.0]]]]) * scale
    people = population(
        features=np.zeros((6, 1, 1, 1), kind), test_features=test.astype(kind), test_labels=np.zeros(4, np.int32)
    )
    np.testing.assert_allclose(people.mean_image(), [[[0.75]]])


def test_nothing_can_be_changed() -> None:
    people = population()
    with pytest.raises(FrozenInstanceError):
        people.name = "other"  # type: ignore[misc]  # that is the test
    for array in (people.features, people.labels, people.offsets, people.test_features, people.test_labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_arrays_of_the_caller_stay_writable() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    population(labels=labels)
    labels[0] = 1


def test_the_representation_names_numbers_not_values() -> None:
    assert repr(population()) == (
        "Population('made up', 3 clients, 6 examples of 2×3×1, 3 classes, 4 test examples)"
    )


def test_the_fingerprint_is_of_everything() -> None:
    first = population()
    assert first.fingerprint == population().fingerprint
    assert len(first.fingerprint) == len(hashlib.sha256().hexdigest())
    changed = [
        replace(first, name="other"),
        replace(first, classes=4),
        replace(first, offsets=np.array([0, 2, 3, 6], np.int64)),
        replace(first, offsets=np.array([0, 2, 6], np.int64)),
    ]
    for field in ("features", "test_features"):
        array = getattr(first, field).copy()
        array[-1, -1, -1, -1] /= 2
        changed.append(replace(first, **{field: array}))
    for field in ("labels", "test_labels"):
        array = getattr(first, field).copy()
        array[-1] = 1
        changed.append(replace(first, **{field: array}))
    assert len({first.fingerprint, *(other.fingerprint for other in changed)}) == 1 + len(changed)


def with_pixels(*values: tuple[int, float]) -> np.ndarray[Any, Any]:
    features = np.full((6, 2, 3, 1), 0.5, np.float32)
    for row, value in values:
        features[row, 1, 2, 0] = value
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": with_pixels((1, np.nan))}, "client 0 has 1 example with pixels that are not finite"),
        ({"features": with_pixels((2, np.nan), (5, np.inf))}, "client 2 has 2 examples with pixels that are not"),
        (
            {"features": with_pixels((0, -np.inf), (4, np.nan))},
            r"client 0 has 1 example \(and 1 other client as well\) with pixels that are not finite",
        ),
        ({"features": with_pixels((3, 1.5))}, r"client 2 has 1 example with pixels outside \[0, 1\] \(got 1.5\)"),
        ({"features": with_pixels((3, -0.25))}, r"outside \[0, 1\] \(got -0.25\).*Scale"),
        ({"test_features": with_pixels((3, np.nan))[:4]}, "the test set has 1 example with pixels that are not"),
        (
            {"labels": np.array([0, 3, 2, 0, 1, 2], np.int32)},
            r"client 0 has 1 example with labels outside 0…2 \(got 3",
        ),
        ({"labels": np.array([0, 1, 2, 0, -1, 2], np.int32)}, "client 2 has 1 example with labels outside 0…2"),
        ({"test_labels": np.array([0, 1, 2, 9], np.int32)}, "the test set has 1 example with labels outside"),
        ({"labels": np.zeros(5, np.int32)}, "6 training examples and 5 training labels"),
        ({"test_labels": np.zeros(5, np.int32)}, "4 test examples and 5 test labels"),
        ({"labels": np.zeros((6, 1), np.int32)}, "labels are one number for each"),
        ({"labels": np.zeros(6, np.int64)}, "labels are int32"),
        ({"features": np.zeros((6, 2, 3, 1))}, "uint8 or float32"),
        ({"features": np.zeros((6, 2, 3), np.float32), "test_features": np.zeros((4, 2, 3), np.float32)}, "shape"),
        ({"test_features": np.zeros((4, 3, 2, 1), np.float32)}, "is not the test shape"),
        ({"offsets": np.array([0, 4, 3, 6], np.int64)}, "offsets fall after client 1"),
        ({"offsets": np.array([1, 6], np.int64)}, "offsets start at 0"),
        ({"offsets": np.array([0, 5], np.int64)}, "offsets end at 6"),
        ({"offsets": np.array([0], np.int64)}, "there is no client"),
        ({"offsets": np.array([0, 6], np.int32)}, "offsets are int64"),
        ({"classes": 0}, "at least one class"),
        (
            {
                "features": np.zeros((0, 2, 3, 1), np.float32),
                "labels": np.zeros(0, np.int32),
                "offsets": np.zeros(3, np.int64),
            },
            "the dataset is empty: it holds no training example",
        ),
        (
            {"test_features": np.zeros((0, 2, 3, 1), np.float32), "test_labels": np.zeros(0, np.int32)},
            "the dataset is empty: it holds no test example",
        ),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"made up: .*{message}") as caught:
        population(**changes)
    assert "\n" not in str(caught.value)


@given(bad=st.sets(st.integers(0, 29), min_size=1), cuts=st.lists(st.integers(0, 30), max_size=8))
@settings(deadline=None, max_examples=60)
def test_names_the_client_of_every_bad_example(bad: set[int], cuts: list[int]) -> None:
    """The naive twin asks each client in turn."""
    features = np.zeros((30, 1, 1, 1), np.float32)
    features[sorted(bad)] = np.nan
    offsets = np.array([0, *sorted(cuts), 30], np.int64)
    counts = [int(np.isnan(features[a:b]).sum()) for a, b in pairwise(offsets)]
    first = next(client for client, count in enumerate(counts) if count)
    with pytest.raises(DataError, match=f"client {first} has {counts[first]} example"):
        population(
            features=features,
            labels=np.zeros(30, np.int32),
            offsets=offsets,
            test_features=np.zeros((1, 1, 1, 1), np.float32),
            test_labels=np.zeros(1, np.int32),
        )


def test_checks_beyond_the_first_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.data.population._ELEMENTS_AT_ONCE", 12)
    assert population().fingerprint
    with pytest.raises(DataError, match="client 2 has 1 example"):
        population(features=with_pixels((5, np.nan)))
