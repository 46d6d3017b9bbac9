"""From an observed vector to the gradient behind it, and whether its scale is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.transcript import Kind, Observation, Plan

CLIPPED = 1 - 1e-3
"""An update whose norm reaches this share of the clip norm is taken to be clipped: its length is lost."""
MOST_NOISE = 1e100
"""Relative to the largest entry of a vector: more need not be told apart, and its square is a number."""
FINEST_STEP = 1e-9
"""Steps smaller than this share of the largest entry are those of floating point."""


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """The mean gradient behind an observation, as far as the observer can tell.

    Attributes:
        vector: ``[d]``: the mean gradient when the scale is known, otherwise of length 1 in its direction.
        scale_known: Whether ``vector`` has the gradient's own length, should the client have taken one step.
    """

    vector: NDArray[np.float64]
    scale_known: bool


def estimate_gradient(observation: Observation, plan: Plan) -> GradientEstimate:
    """Undo the client's SGD: an update is −learning_rate × (sum over the local steps of their mean gradients).

    With one local epoch the client may have taken a single step, and then the update is the gradient at the
    broadcast weights times a known number. Several epochs, clipping that bit, noise, or several clients in one
    vector leave only the direction (approximate, when there were several steps). Momentum and a proximal term do
    not change that: the first step of a round has neither, and further ones mix gradients of the same examples.

    Args:
        observation: With a finite vector that is not zero, as ``attacks.base.attempt`` makes sure.
        plan: The run's public plan.
    """
    update = np.asarray(observation.vector, np.float64) / max(observation.contributors, 1e-300)
    if _scale_known(observation, plan, update):
        assert observation.rate_factor is not None  # else its scale is not known
        return GradientEstimate(-update / (plan.learning_rate * observation.rate_factor), True)
    # Divided by the largest entry first: squares of masked uploads or of tiny updates may leave float64.
    direction = observation.vector / np.abs(observation.vector).max()
    return GradientEstimate(-direction / np.linalg.norm(direction), False)


def _scale_known(observation: Observation, plan: Plan, update: NDArray[np.float64]) -> bool:
    one_client = observation.kind is Kind.CLIENT_UPDATE or (
        observation.contributors == 1 and not plan.weighted and observation.kind is not Kind.MASKED_UPLOAD
    )
    linear = observation.kind is not Kind.MODEL_DIFFERENCE or plan.server_scale is not None
    one_step = (plan.local_epochs if plan.local_steps is None else plan.local_steps) == 1
    one_rate = observation.rate_factor is not None
    certain = one_client and linear and one_step and one_rate and observation.noise_stddev == 0
    return certain and not may_be_clipped(update, plan)


def may_be_clipped(update: NDArray[np.float64], plan: Plan) -> bool:
    """Whether one client's update ``[d]`` may have lost its length.

    Where updates are rounded to fixed point they are clipped to less, by the length that rounding may add.
    """
    if plan.clip_norm is None:
        return False
    norm, largest = float(np.linalg.norm(update)), float(np.abs(update).max())
    if norm >= CLIPPED * plan.clip_norm:
        return True
    rounding = _step(update, largest, plan) * len(update) ** 0.5
    return bool(norm + rounding >= CLIPPED * plan.clip_norm)


def noise_variance(observation: Observation) -> float:
    """Expected squared length of what is no gradient in the observed vector, as a share of the vector's own.

    It is made of the noise that the observer knows of, of the rounding of the client's single-precision weights
    (once per step at least), and of stochastic rounding to fixed point, where all entries lie on its steps.
    """
    vector = np.asarray(observation.vector, np.float64)
    # Divided by the largest entry first: squares of tiny or huge vectors may leave float64.
    largest = float(np.abs(vector).max())
    scaled = vector / largest
    spacing = np.spacing(np.abs(np.asarray(observation.weights, np.float32))).astype(np.float64)
    rounding = float(np.sum(np.minimum(spacing / largest, MOST_NOISE) ** 2)) / 12
    known = len(vector) * (min(observation.noise_stddev / largest, MOST_NOISE) ** 2 + _lattice(scaled) ** 2 / 6)
    return float((rounding + known) / np.sum(scaled**2))


def noise_stddev(observation: Observation, plan: Plan) -> float:
    """Standard deviation per coordinate of the noise that the observer knows of and of rounding to fixed point."""
    vector = np.asarray(observation.vector, np.float64)
    step = _step(vector, float(np.abs(vector).max()), plan)
    return float(np.hypot(observation.noise_stddev, step / 6**0.5))


def _step(vector: NDArray[np.float64], largest: float, plan: Plan) -> float:
    """Of the fixed point that the plan's aggregation takes; 0 where it takes none."""
    return 0.0 if plan.mode == "off" else _lattice(vector / largest) * largest


def _lattice(vector: NDArray[np.float64]) -> float:
    """The step that all entries are multiples of, or 0: what a fixed-point encoding leaves."""
    sizes = np.unique(np.abs(vector))
    sizes = sizes[sizes > 0]
    step = float(sizes[0])
    if len(sizes) > 1:
        step = min(step, float(np.diff(sizes).min()))
    multiples = sizes / step
    coarse = step > FINEST_STEP and bool(np.abs(multiples - np.round(multiples)).max() < 1e-3)
    return step if coarse and 2 < len(sizes) < len(vector) / 4 else 0.0
