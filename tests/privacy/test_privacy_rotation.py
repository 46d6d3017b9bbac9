"""The fast rotation against the matrix that it stands for."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.linalg import hadamard

from privfed.privacy.errors import PrivacyError
from privfed.privacy.rotation import Rotation, hadamard_transform, padded_dimension


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 3e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("size", [1, 2, 4, 32, 64, 128, 1024])
def test_transform_is_the_product_with_the_hadamard_matrix(size: int, dtype: type, error: float) -> None:
    vector = np.random.default_rng(size).normal(size=size).astype(dtype)
    before = vector.copy()
    transformed = hadamard_transform(vector)
    naive = hadamard(size) @ vector.astype(np.float64) / np.sqrt(size)
    assert transformed.dtype == dtype
    assert np.linalg.norm(transformed - naive) <= error * np.linalg.norm(naive)
    np.testing.assert_array_equal(vector, before)  # the input stays as it was
    assert np.linalg.norm(hadamard_transform(transformed) - vector) <= 2 * error * np.linalg.norm(vector)


BITS = """
import hashlib
import numpy as np
from privfed.privacy.rotation import hadamard_transform
for size in (64, 2**11, 2**14, 2**17):
    for dtype in (np.float32, np.float64):
        vector = np.random.default_rng(size).normal(size=size).astype(dtype)
        print(size, dtype.__name__, hashlib.sha256(hadamard_transform(vector).tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_show_in_the_bits() -> None:
    one, two = (
        subprocess.run(
            [sys.executable, "-c", BITS],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for threads in ("1", "2")
    )
    assert len(one) == 8
    assert one == two


@pytest.mark.parametrize("factor_bits", [1, 2, 3, 10])
def test_it_does_not_matter_how_the_matrix_is_factored(factor_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.privacy.rotation.FACTOR_BITS", factor_bits)
    vector = np.arange(128.0)
    np.testing.assert_allclose(hadamard_transform(vector), hadamard(128) @ vector / np.sqrt(128), atol=1e-11)


@pytest.mark.parametrize("dimension", [1, 2, 3, 100, 1025])
def test_rotation_keeps_inner_products_and_comes_back(dimension: int) -> None:
    rotation = Rotation(dimension, (3, 4))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, dimension))
    assert len(rotation.apply(a)) == rotation.padded == padded_dimension(dimension)
    assert np.dot(rotation.apply(a), rotation.apply(b)) == pytest.approx(np.dot(a, b), rel=1e-9)
    np.testing.assert_allclose(rotation.invert(rotation.apply(a)), a, atol=1e-12)


def test_rotation_is_the_signed_matrix_of_its_seed() -> None:
    size = 64
    matrix = np.array([Rotation(size, (1, 2)).apply(row) for row in np.eye(size)]).T
    signs = np.sign(matrix[0])  # the first row of H is all ones
    np.testing.assert_allclose(matrix, hadamard(size) * signs / 8, atol=1e-15)
    assert 16 < (signs > 0).sum() < 48
    # Known answer: the signs are part of the protocol, so that no update of a library may change them.
    assert "".join("+" if s > 0 else "-" for s in signs[:24]) == "+-+-++-+--+++---++-+---+"
    for other in ((1, 3), (1,), (1, 2, 0), (2, 1)):
        assert not np.allclose(Rotation(size, other).apply(np.ones(size)), matrix.sum(1))


def test_a_spike_spreads_evenly_and_a_random_sum_is_subgaussian() -> None:
    spike = np.zeros(1000)
    spike[7] = 1.0
    np.testing.assert_allclose(np.abs(Rotation(1000, (5,)).apply(spike)), 1 / 32, atol=1e-12)
    ones = np.ones(1024) / 32  # H sends it to one coordinate; the signs prevent that
    largest = max(float(np.abs(Rotation(1024, (seed,)).apply(ones)).max()) for seed in range(50))
    # 50·1024 coordinates of variance 1/1024: 7 standard deviations are exceeded with a probability below 3e-6.
    assert largest < 7 / 32


def test_wrong_lengths_and_types_are_refused() -> None:
    rotation = Rotation(5, (1,))
    for bad in (np.zeros(6), np.zeros(5, np.int64), np.zeros((5, 1))):
        with pytest.raises(PrivacyError, match="shape"):
            rotation.apply(bad)
    with pytest.raises(PrivacyError, match=r"shape \(8,\)"):
        rotation.invert(np.zeros(5))
    with pytest.raises(PrivacyError, match="power of two"):
        hadamard_transform(np.zeros(6))
    for dimension, seed in ((0, (1,)), (2**30 + 1, (1,)), (5, ()), (5, (-1,)), (5, (2**64,))):
        with pytest.raises(PrivacyError):
            Rotation(dimension, seed)
