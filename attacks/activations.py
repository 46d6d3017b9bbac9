"""Activations that equations go back through: where a value has a slope it tells the pre-activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

INSIDE = 1e-7
"""Distance that activations keep from the ends of a range they only approach, where the inverse has no slope."""
FAINT = 30.0
"""Values of a rectifier beyond so many times the farthest below zero, which is all error, are no such zeros."""


@dataclass(frozen=True)
class Activation:
    """An activation that is invertible wherever it has a slope.

    Attributes:
        name: In the field.
        value: Of a pre-activation.
        inverse: Of a value; anything where the slope is zero.
        slope: First derivative, as a function of the value.
        bend: Second derivative, as a function of the value.
        allowed: What values with errors in them are taken for, within the range that the function has.
        smooth: Whether the derivatives are without jumps.
    """

    name: str
    value: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    bend: Callable[[Array], Array]
    allowed: Callable[[Array], Array]
    smooth: bool = True


def _rectified(a: Array) -> Array:
    """Zeros for what is as near to zero as what is below it: up to the widest gap on a logarithmic scale."""
    error = -float(a.min())
    if error <= 0:
        return a
    doubtful = np.sort(a[(a > error) & (a < FAINT * error)])
    steps = np.concatenate([[error], doubtful, [FAINT * error]])
    return np.where(a > steps[np.argmax(steps[1:] / steps[:-1])], a, 0.0)


ACTIVATIONS = (
    Activation(
        "sigmoid",
        lambda z: 1 / (1 + np.exp(-z)),
        lambda a: np.log(a / (1 - a)),
        lambda a: a * (1 - a),
        lambda a: a * (1 - a) * (1 - 2 * a),
        lambda a: np.clip(a, INSIDE, 1 - INSIDE),
    ),
    Activation(
        "tanh",
        np.tanh,
        np.arctanh,
        lambda a: 1 - a**2,
        lambda a: -2 * a * (1 - a**2),
        lambda a: np.clip(a, INSIDE - 1, 1 - INSIDE),
    ),
    Activation(
        "relu",
        lambda z: np.maximum(z, 0),
        lambda a: a,
        lambda a: np.where(a > 0, 1.0, 0.0),
        np.zeros_like,
        _rectified,
        smooth=False,
    ),
)
