"""Examples of all clients in packed arrays, as executors take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.models.functional import Model


def check_population(
    model: Model,
    features: NDArray[Any],
    labels: NDArray[Any],
    offsets: NDArray[Any],
    held: NDArray[np.int64] | None = None,
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]:
    """The packed arrays as every executor takes them; with examples of the clients ``held`` alone, where given.

    Raises:
        ValueError: Shapes, types, labels or offsets do not fit the model or each other.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    offsets = np.asarray(offsets, np.int64)
    if features.dtype not in (np.uint8, np.float32):
        raise ValueError(f"features must be uint8 or float32, got {features.dtype}")
    if features.shape[1:] != model.input_shape:
        raise ValueError(f"model {model.name} takes {model.input_shape}, the examples are {features.shape[1:]}")
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {features.shape[:1]} integers, got {labels.dtype} of shape {labels.shape}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < model.classes:
        raise ValueError(
            f"labels must lie in [0, {model.classes}), got values from {labels.min()} to {labels.max()}"
        )
    bounds = (offsets.ndim == 1 and offsets.size > 0 and offsets[0] >= 0) and (np.diff(offsets) >= 0).all()
    if not bounds or (held is None and offsets[-1] > len(labels)):
        raise ValueError(f"offsets must rise within [0, {len(labels)}]")
    if held is not None and (count := (offsets[held + 1] - offsets[held]).sum()) > len(labels):
        raise ValueError(f"the clients held have {count} examples, got {len(labels)}")
    return features, labels.astype(np.int32, copy=False), offsets


def as_model_input(x: Any) -> Any:
    """Raw pixels to [0, 1] inside the graph; features that are floats already pass unchanged."""
    return tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x
