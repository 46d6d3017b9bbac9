"""scikit-learn's bundled handwritten digits: 1,797 real images of 8×8 pixels, without any download."""

from __future__ import annotations

import numpy as np

from privfed.data.dataset import Dataset, split_dataset

_BRIGHTEST = np.float32(16)
"""A pixel counts the inked cells of a 4×4 block (Alpaydin & Kaynak 1998, the UCI repository's optdigits)."""


def load_digits(test_fraction: float = 0.2) -> Dataset:
    """1,797 digits as float32 ``[n, 8, 8, 1]`` in [0, 1], ``test_fraction`` of each class held out for testing."""
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    features = (digits.images.astype(np.float32) / _BRIGHTEST)[..., np.newaxis]
    return split_dataset(features, digits.target.astype(np.int32), test_fraction, "digits", 10)
