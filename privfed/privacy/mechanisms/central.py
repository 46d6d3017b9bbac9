"""Central noise: the server adds it to the sum, which it therefore knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution, Sensitivity, clip_by_l2, l2_norm
from privfed.privacy.errors import PrivacyError
from privfed.privacy.mechanisms.base import PlainVectors, State, Terms, clip_with_room
from privfed.privacy.noise import discrete_gaussian, gaussian
from privfed.privacy.randomness import RandomSource, SeededSource
from privfed.privacy.sampling import SamplingScheme

GRID_BITS = 20
"""In secure mode the grid of the noise is so many bits finer than its standard deviation."""


LARGEST_SUM = 2.0**52
"""In grid steps: sum and noise together stay integers that float64 holds exactly."""


@dataclass(frozen=True)
class CentralGaussian(PlainVectors):
    """The server adds Gaussian noise to the sum of clipped updates (McMahan et al. 2018, Algorithm 1).

    It protects whoever sees noised models only. The server itself holds the sum before the noise.

    Attributes:
        clip_norm: L2 bound on each client's update.
        noise_multiplier: Standard deviation of the noise over ``clip_norm``.
        secure: Discrete Gaussian on an integer grid, instead of floating-point noise. The sum is rounded to the
            grid first, which can lengthen the difference of neighbouring sums by ``sqrt(d)`` steps; the clip
            leaves room for that.
    """

    clip_norm: float
    noise_multiplier: float
    secure: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "clip_norm", "noise_multiplier")

    def bound(self, state: State) -> float | None:
        """``clip_norm``."""
        return self.clip_norm

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """``clip_norm``, less what the noise's grid may add in secure mode."""
        return clip_with_room(self.clip_norm, self._grid_room(dimension))

    def stddev(self, state: State, survivors: float) -> float:
        """``noise_multiplier · clip_norm``."""
        return self._noise

    @property
    def _noise(self) -> float:
        return self.noise_multiplier * self.clip_norm

    @property
    def grid(self) -> float:
        """Step of the noise's grid: a power of two, so that sums on it are exact."""
        return grid_step(self._noise)

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """One Gaussian a round, for those who see nothing but noised models."""
        return (ObservedRelease(MODELS_ONLY, Release(sampling, self.noise_multiplier, 1)),)

    def sensitivity(self, scheme: SamplingScheme) -> Sensitivity:
        """Of the sum: one clip norm for adding or removing a client, two for replacing one."""
        factor = 2 if "replace" in scheme.neighbouring else 1
        return Sensitivity(factor * self.clip_norm, "client", scheme.neighbouring)

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Clip to ``clip_norm`` less what encoding and the noise's grid may add."""
        room = slack + self._grid_room(len(update))
        return clip_by_l2(update, clip_with_room(self.clip_norm, room))

    def _grid_room(self, dimension: int) -> float:
        return math.sqrt(dimension) * self.grid if self.secure else 0.0

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """Add the noise; in secure mode on the grid, rounding its standard deviation up to a whole step."""
        return add_gaussian(total, self._noise, source, secure=self.secure), state


@dataclass(frozen=True)
class NoMechanism(PlainVectors):
    """No noise, and so no guarantee; the clip, when there is one, bounds what encoding must hold."""

    clip_norm: float | None = None

    def bound(self, state: State) -> float | None:
        """``clip_norm``."""
        return self.clip_norm

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """``clip_norm``; infinite without one."""
        return math.inf if self.clip_norm is None else self.clip_norm

    def stddev(self, state: State, survivors: float) -> float:
        """No noise."""
        return 0.0

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """Nobody is protected."""
        return ()

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Clip, when there is a bound."""
        if self.clip_norm is None:
            return Contribution(update, l2_norm(update), False)
        return clip_by_l2(update, clip_with_room(self.clip_norm, slack))

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """The sum as it is."""
        return total, state


def grid_step(stddev: float) -> float:
    """Step of the grid of secure noise: a power of two, ``GRID_BITS`` finer than ``stddev``."""
    return 2.0 ** (math.floor(math.log2(stddev)) - GRID_BITS)


def add_gaussian(
    total: NDArray[np.float64], stddev: float, source: RandomSource, *, secure: bool
) -> NDArray[np.float64]:
    """``total`` ``[d]`` with Gaussian noise; secure noise is discrete, on the grid of ``grid_step``.

    Raises:
        PrivacyError: The sum is not finite or beyond the grid, or secure noise would come from a seed.
    """
    if not np.isfinite(total).all():
        raise PrivacyError("the sum is not finite, although every update in it was checked")
    if not secure:
        return total + gaussian(stddev, len(total), source)
    if isinstance(source, SeededSource):
        raise PrivacyError("secure mode draws no noise from a seed", remedy="Pass a SystemSource")
    grid = grid_step(stddev)
    if np.abs(total).max(initial=0.0) >= LARGEST_SUM * grid:
        raise PrivacyError(
            f"the sum exceeds {LARGEST_SUM * grid:g}, which the noise's grid cannot hold",
            where="noise_multiplier",
            value=stddev,
            remedy="Use more noise, or research mode",
        )
    steps = np.rint(total / grid).astype(np.int64)
    steps += discrete_gaussian(math.ceil(stddev / grid), len(total), source)
    noised: NDArray[np.float64] = steps.astype(np.float64) * grid
    return noised


def check_positive(mechanism: object, *names: str) -> None:
    """Refuse parameters that are not positive numbers."""
    for name in names:
        value = getattr(mechanism, name)
        if not (math.isfinite(value) and value > 0):
            raise PrivacyError("must be a positive number", where=name, value=value)
