"""Fixed features: a naive twin as the oracle, and what makes them safe under differential privacy."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.feature import hog as reference

from privfed.data import FEATURES, Dataset, build_population, load_dataset, transform
from privfed.data.features import hog, one_hot
from privfed.errors import SettingError

FASHION = os.environ.get("FASHION_MNIST")


def images(n: int = 6, height: int = 28, width: int = 28, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Waves and noise, so that orientations of all kinds occur."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    pace = rng.uniform(-1, 1, (2, n, 1, 1, channels))
    waves = pace[0] * rows[..., np.newaxis] + pace[1] * columns[..., np.newaxis]
    noise = rng.normal(0, 20, (n, height, width, channels))
    return np.clip(128 + 90 * np.sin(waves) + noise, 0, 255).astype(np.uint8)


def dataset(features: NDArray[np.uint8], **changes: object) -> Dataset:
    labels = np.zeros(len(features), np.int32)
    made = Dataset(features, labels, features[:2], labels[:2], "made up", 2)
    return replace(made, **changes)  # type: ignore[arg-type]  # any field


def naive(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """The definition, pixel by pixel and cell by cell."""
    height, width, channels = image.shape
    votes = np.zeros((height, width, 12))
    for r in range(height):
        for c in range(width):
            # In single precision: of channels that tie but for rounding either may be the strongest.
            down, right = np.zeros((2, channels), np.float32)
            if 0 < r < height - 1:
                down = image[r + 1, c] - image[r - 1, c]
            if 0 < c < width - 1:
                right = image[r, c + 1] - image[r, c - 1]
            strongest = np.hypot(down, right).argmax()
            down, right = float(down[strongest]), float(right[strongest])
            place = math.degrees(math.atan2(down, right)) % 360 / 30
            nearest = math.floor(place)
            votes[r, c, nearest % 12] += math.hypot(down, right) * (1 - (place - nearest))
            votes[r, c, (nearest + 1) % 12] += math.hypot(down, right) * (place - nearest)

    def cells(of: NDArray[np.float64], most: int) -> NDArray[np.float64]:
        tall, wide = math.ceil(height / most), math.ceil(width / most)
        return np.array(
            [
                [
                    of[r * tall : (r + 1) * tall, c * wide : (c + 1) * wide].sum(axis=(0, 1))
                    for c in range(width // wide)
                ]
                for r in range(height // tall)
            ]
        )

    fine, coarse, pooled = cells(votes, 7), cells(votes, 4), cells(image.astype(np.float64), 14)
    evened = np.zeros_like(fine)
    for r in range(fine.shape[0]):
        for c in range(fine.shape[1]):
            around = fine[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
            evened[r, c] = fine[r, c] / math.sqrt((around**2).sum() + 0.01)
    parts = [part.ravel() / np.linalg.norm(part) for part in (np.sqrt(evened), np.sqrt(coarse), pooled)]
    return np.concatenate(parts) / math.sqrt(3)


@pytest.mark.parametrize(
    ("height", "width", "channels", "length"),
    [
        (28, 28, 1, 49 * 12 + 16 * 12 + 196),
        (32, 32, 3, 36 * 12 + 16 * 12 + 100 * 3),
        (8, 8, 1, 16 * 12 + 16 * 12 + 64),
        (28, 20, 2, 42 * 12 + 16 * 12 + 14 * 10 * 2),
    ],
)
def test_equals_its_naive_twin(height: int, width: int, channels: int, length: int) -> None:
    made = images(3, height, width, channels)
    got = hog(made)
    assert got.shape == (3, length)
    for image, features in zip(made / np.float32(255), got, strict=True):
        np.testing.assert_allclose(features, naive(image), atol=1e-6)


@pytest.mark.parametrize(
    ("down", "right", "expected"),
    [
        (0, 1, {0: 1.0}),
        (1, 0, {3: 1.0}),
        (0, -1, {6: 1.0}),
        (-1, 0, {9: 1.0}),
        (1, 1, {1: 0.5, 2: 0.5}),
        (-1, 1, {10: 0.5, 11: 0.5}),
    ],
)
def test_a_ramp_votes_for_its_direction(down: int, right: int, expected: dict[int, float]) -> None:
    """Signed, unlike the orientations of scikit-image's ``hog``: an edge from dark to light is not its reverse."""
    rows, columns = np.mgrid[:28, :28]
    ramp = (128 + 4 * (down * (rows - 14) + right * (columns - 14))).astype(np.uint8)[np.newaxis, ..., np.newaxis]
    cell = hog(ramp)[0, : 49 * 12].reshape(7, 7, 12)[3, 3]
    votes = np.square(cell) / np.square(cell).sum()
    np.testing.assert_allclose(votes, [expected.get(one, 0.0) for one in range(12)], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_of_each_cell_are_as_strong_as_scikit_image_finds_them(channels: int) -> None:
    """Its ``hog`` votes otherwise, but all orientations together come to the same; it adds 1e-5 to sums of 10."""
    made = images(4, channels=channels)
    votes = np.square(hog(made)[:, 588:780].astype(np.float64)).reshape(4, 16, 12).sum(axis=2)
    for image, strength in zip(made / np.float32(255), votes, strict=True):
        expected = reference(
            image if channels > 1 else image[..., 0],
            orientations=1,
            pixels_per_cell=(7, 7),
            cells_per_block=(4, 4),
            block_norm="L1",
            channel_axis=-1 if channels > 1 else None,
        )
        np.testing.assert_allclose(strength / strength.sum(), expected, atol=1e-5)


def test_every_example_has_length_one_and_fits_a_population() -> None:
    made = images(5)
    features = hog(made)
    assert features.shape == (5, 976)
    assert features.dtype == np.float32
    assert features.min() >= 0
    assert features.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)


def test_black_is_zero_and_flat_is_pixels_alone() -> None:
    features = hog(np.stack([np.zeros((28, 28, 1), np.uint8), np.full((28, 28, 1), 9, np.uint8)]))
    assert not features[0].any()
    assert not features[1, :780].any()
    np.testing.assert_allclose(features[1, 780:], 1 / 14, rtol=1e-6)


def test_an_example_is_the_same_whatever_stands_beside_it() -> None:
    """No statistics of the data: the reason why there is no privacy cost."""
    made = images(40)
    together = hog(made)
    for i in (0, 17, 39):
        np.testing.assert_array_equal(hog(made[i : i + 1])[0], together[i])
    extreme = made.copy()
    extreme[1:] = 255 - extreme[1:]
    np.testing.assert_array_equal(hog(extreme)[0], together[0])


def test_large_sets_are_cut_into_slices_and_none_is_lost() -> None:
    made = np.tile(images(3), (500, 1, 1, 1))
    features = hog(made)
    np.testing.assert_array_equal(features, np.tile(features[:3], (500, 1)))
    assert hog(made[:0]).shape == (0, 976)


def test_datasets_and_populations_are_transformed_alike() -> None:
    data = load_dataset("digits")
    one = build_population(transform(data, "hog"), "iid", 5)
    other = transform(build_population(data, "iid", 5), "hog")
    assert one.name == "digits, hog"
    assert one.fingerprint == other.fingerprint
    assert len(one.input_shape) == 1


def test_one_hot_puts_each_token_in_its_place() -> None:
    tokens = np.array([[0, 2], [1, 1], [2, 0]], np.uint8)
    twin = np.zeros((3, 2, 3), np.uint8)
    for example, row in enumerate(tokens):
        for place, token in enumerate(row):
            twin[example, place, token] = 255
    np.testing.assert_array_equal(one_hot(tokens, 3), twin.reshape(3, 6))
    done = transform(dataset(tokens, tokens=3), "one_hot")
    assert done.tokens is None
    np.testing.assert_array_equal(done.train_features, twin.reshape(3, 6))


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (dataset(images()), "hg", "unknown features .*Known: hog, one_hot"),
        (dataset(images()[:, :7]), "hog", "at least 8×8 pixels, .* have shape"),
        (dataset(images().reshape(6, -1)), "hog", "hog is of images"),
        (dataset(images()), "one_hot", "one_hot is of text"),
    ],
)
def test_features_of_other_data_are_refused(data: Dataset, name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        transform(data, name)
    assert list(FEATURES) == ["hog", "one_hot"]


@pytest.mark.slow
@pytest.mark.skipif(not FASHION, reason="FASHION_MNIST does not name the folder of its IDX files")
def test_a_linear_model_is_better_on_them_than_on_pixels() -> None:
    """20,000 of Fashion-MNIST: .891 against .839 when written (standard error .003); all 60,000 gave .899."""
    data = load_dataset("idx", folder=FASHION)
    some = replace(data, train_features=data.train_features[:20_000], train_labels=data.train_labels[:20_000])
    pixels = replace(
        some,
        train_features=(some.train_features / np.float32(255)).reshape(20_000, -1),
        test_features=(some.test_features / np.float32(255)).reshape(10_000, -1),
    )
    with_hog = softmax_accuracy(transform(some, "hog"), 40.0)
    assert with_hog > 0.88
    assert with_hog > softmax_accuracy(pixels, 0.3) + 0.02


def softmax_accuracy(data: Dataset, rate: float, epochs: int = 20, batch: int = 128) -> float:
    """Test accuracy of softmax regression by SGD with a rate that falls to 0."""
    rng = np.random.default_rng(0)
    x, y = data.train_features, np.eye(data.classes, dtype=np.float32)[data.train_labels]
    w, b = np.zeros((x.shape[1], data.classes), np.float32), np.zeros(data.classes, np.float32)
    for epoch in range(epochs):
        step = np.float32(rate * (1 - epoch / epochs))
        for rows in np.array_split(rng.permutation(len(x)), len(x) // batch):
            logits = x[rows] @ w + b
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = (p / p.sum(axis=1, keepdims=True) - y[rows]) / len(rows)
            w -= step * (x[rows].T @ error)
            b -= step * error.sum(axis=0)
    return float(((data.test_features @ w + b).argmax(axis=1) == data.test_labels).mean())
