"""Where weights start: from the variables' shapes to their first values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from privfed.models.functional import VariableSpec

Initializer = Callable[[Sequence[VariableSpec], np.random.Generator], list[NDArray[np.float32]]]


def _zeros(specs: Sequence[VariableSpec], rng: np.random.Generator) -> list[NDArray[np.float32]]:
    return [np.zeros(spec.shape, np.float32) for spec in specs]


def _glorot(specs: Sequence[VariableSpec], rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Glorot & Bengio (2010), eq. 16: uniform in ±sqrt(6 / (fan_in + fan_out)); biases zero."""
    values = []
    for spec in specs:
        if len(spec.shape) < 2:
            values.append(np.zeros(spec.shape, np.float32))
            continue
        receptive = int(np.prod(spec.shape[:-2], dtype=np.int64))
        limit = np.sqrt(6.0 / (receptive * (spec.shape[-2] + spec.shape[-1])))
        values.append(rng.uniform(-limit, limit, spec.shape).astype(np.float32))
    return values


def _uniform(specs: Sequence[VariableSpec], rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Uniform in ±0.5, weights and biases alike, as in the code of Zhu et al. (2019)."""
    return [rng.uniform(-0.5, 0.5, spec.shape).astype(np.float32) for spec in specs]


INITIALIZERS: dict[str, Initializer] = {"zeros": _zeros, "glorot": _glorot, "uniform": _uniform}
