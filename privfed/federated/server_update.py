"""The server's optimizers, as pure functions of their state, with the semantics of ``tff.learning.optimizers``.

The mean client update enters as a negative gradient (Reddi et al. 2021, Algorithm 2); tests hold every optimizer
to TFF's over many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
State = tuple[Vector, ...]


class Step(Protocol):
    """One step of the server."""

    def __call__(
        self, state: State, weights: Vector, gradient: Vector, factor: float = 1.0
    ) -> tuple[State, Vector]:
        """New state and weights ``[d]``, with ``factor`` on the learning rate."""
        ...


@dataclass(frozen=True, eq=False)
class ServerOptimizer:
    """How the mean client update moves the model.

    Attributes:
        initialize: ``dimension -> state``.
        step: ``(state, weights [d], gradient [d], factor) -> (state, weights [d])``.
        linear_scale: Factor from mean update to change of the model when the step is linear and has no memory.
    """

    initialize: Callable[[int], State]
    step: Step
    linear_scale: float | None


def sgd(learning_rate: float, momentum: float = 0.0) -> ServerOptimizer:
    """Gradient descent: ``v = momentum·v + g``, ``w −= η·v`` (``build_sgdm``)."""
    beta = np.float32(momentum)

    def step(state: State, weights: Vector, gradient: Vector, factor: float = 1.0) -> tuple[State, Vector]:
        lr = np.float32(learning_rate * factor)
        if not momentum:
            return state, weights - lr * gradient
        velocity = beta * state[0] + gradient
        return (velocity,), weights - lr * velocity

    def initialize(dimension: int) -> State:
        return (np.zeros(dimension, np.float32),) if momentum else ()

    return ServerOptimizer(initialize, step, None if momentum else learning_rate)


def adagrad(
    learning_rate: float, *, initial_preconditioner: float = 0.1, epsilon: float = 1e-6
) -> ServerOptimizer:
    """Adagrad (Duchi et al. 2011): ``p += g²``, ``w −= η·g / sqrt(p + ε)``, and no step where ``p`` is 0."""
    eps = np.float32(epsilon)

    def step(state: State, weights: Vector, gradient: Vector, factor: float = 1.0) -> tuple[State, Vector]:
        lr = np.float32(learning_rate * factor)
        preconditioner = state[0] + np.square(gradient)
        root = np.where(preconditioner > 0, 1 / np.sqrt(preconditioner + eps), np.float32(0)).astype(np.float32)
        return (preconditioner,), weights - lr * gradient * root

    return ServerOptimizer(lambda d: (np.full(d, initial_preconditioner, np.float32),), step, None)


def adam(
    learning_rate: float, *, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7
) -> ServerOptimizer:
    """Adam (Kingma & Ba 2015), with the bias corrections folded into the learning rate as TFF does."""
    return _adaptive_moments(learning_rate, beta_1, beta_2, epsilon, 0.0, lambda v, g2, b: b * v + (1 - b) * g2)


def yogi(
    learning_rate: float,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-3,
    initial_preconditioner: float = 1e-6,
) -> ServerOptimizer:
    """Yogi (Zaheer et al. 2018): Adam whose second moment moves by ``(1 − β₂)·sign(g² − v)·g²``."""
    return _adaptive_moments(
        learning_rate,
        beta_1,
        beta_2,
        epsilon,
        initial_preconditioner,
        lambda v, g2, b: v + (1 - b) * np.sign(g2 - v) * g2,
    )


def _adaptive_moments(
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    initial_second_moment: float,
    second_moment: Callable[[Vector, Vector, np.float32], Vector],
) -> ServerOptimizer:
    b1, b2, eps = np.float32(beta_1), np.float32(beta_2), np.float32(epsilon)

    def step(state: State, weights: Vector, gradient: Vector, factor: float = 1.0) -> tuple[State, Vector]:
        count = state[2] + 1
        first = b1 * state[0] + (1 - b1) * gradient
        second = second_moment(state[1], np.square(gradient), b2)
        rate = learning_rate * factor * np.sqrt(1 - beta_2 ** float(count[0])) / (1 - beta_1 ** float(count[0]))
        moved = weights - np.float32(rate) * first / (np.sqrt(second) + eps)
        return (first, second.astype(np.float32), count), moved.astype(np.float32)

    def initialize(dimension: int) -> State:
        second = np.full(dimension, initial_second_moment, np.float32)
        return np.zeros(dimension, np.float32), second, np.zeros(1, np.float32)

    return ServerOptimizer(initialize, step, None)


OPTIMIZERS: dict[str, Callable[..., ServerOptimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adagrad": adagrad,
    "yogi": yogi,
}
