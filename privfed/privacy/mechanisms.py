"""Mechanisms: each one class with its client half, its server half, and whom it protects.

The round divides the noised sum by the expected cohort; a mechanism knows sums only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.clipping import Clipped, Sensitivity, clip_by_l2, l2_norm
from privfed.privacy.errors import PrivacyError
from privfed.privacy.noise import discrete_gaussian, gaussian
from privfed.privacy.randomness import RandomSource, SeededSource
from privfed.privacy.sampling import SamplingScheme

GRID_BITS = 20
"""In secure mode the grid of the noise is so many bits finer than its standard deviation."""


LARGEST_SUM = 2.0**52
"""In grid steps: sum and noise together stay integers that float64 holds exactly."""


class Mechanism(Protocol):
    """Bounds each client's update, and perturbs the sum."""

    @property
    def stddev(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum; 0 for none."""
        ...

    @property
    def protects(self) -> frozenset[str]:
        """The observers, by name, against whom the accountant's guarantee holds."""
        ...

    def on_client(self, update: NDArray[np.float32], slack: float) -> Clipped:
        """Bound ``update`` ``[d]``, leaving ``slack`` for what encoding may add.

        Raises:
            NonFiniteUpdateError: The update is not finite.
        """
        ...

    def on_server(self, total: NDArray[np.float64], source: RandomSource) -> NDArray[np.float64]:
        """The sum ``[d]`` with noise."""
        ...


@dataclass(frozen=True)
class CentralGaussian:
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
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise PrivacyError("must be a positive number", where=name, value=value)

    @property
    def stddev(self) -> float:
        """``noise_multiplier · clip_norm``."""
        return self.noise_multiplier * self.clip_norm

    @property
    def grid(self) -> float:
        """Step of the noise's grid: a power of two, so that sums on it are exact."""
        return 2.0 ** (math.floor(math.log2(self.stddev)) - GRID_BITS)

    @property
    def protects(self) -> frozenset[str]:
        """Those who see nothing but noised models."""
        return frozenset({"client", "release"})

    def sensitivity(self, scheme: SamplingScheme) -> Sensitivity:
        """Of the sum: one clip norm for adding or removing a client, two for replacing one."""
        factor = 2 if "replace" in scheme.neighbouring else 1
        return Sensitivity(factor * self.clip_norm, "client", scheme.neighbouring)

    def on_client(self, update: NDArray[np.float32], slack: float) -> Clipped:
        """Clip to ``clip_norm`` less what encoding and the noise's grid may add."""
        room = slack + (math.sqrt(len(update)) * self.grid if self.secure else 0.0)
        return clip_by_l2(update, _clip_with_room(self.clip_norm, room))

    def on_server(self, total: NDArray[np.float64], source: RandomSource) -> NDArray[np.float64]:
        """Add the noise; in secure mode on the grid, rounding its standard deviation up to a whole step."""
        if not np.isfinite(total).all():
            raise PrivacyError("the sum is not finite, although every update in it was checked")
        if not self.secure:
            return total + gaussian(self.stddev, len(total), source)
        if isinstance(source, SeededSource):
            raise PrivacyError("secure mode draws no noise from a seed", remedy="Pass a SystemSource")
        if np.abs(total).max(initial=0.0) >= LARGEST_SUM * self.grid:
            raise PrivacyError(
                f"the sum exceeds {LARGEST_SUM * self.grid:g}, which the noise's grid cannot hold",
                where="noise_multiplier",
                value=self.noise_multiplier,
                remedy="Use more noise, or research mode",
            )
        steps = np.rint(total / self.grid).astype(np.int64)
        steps += discrete_gaussian(math.ceil(self.stddev / self.grid), len(total), source)
        noised: NDArray[np.float64] = steps.astype(np.float64) * self.grid
        return noised


@dataclass(frozen=True)
class NoMechanism:
    """No noise, and so no guarantee; the clip, when there is one, bounds what encoding must hold."""

    clip_norm: float | None = None

    @property
    def stddev(self) -> float:
        """No noise."""
        return 0.0

    @property
    def protects(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def on_client(self, update: NDArray[np.float32], slack: float) -> Clipped:
        """Clip, when there is a bound."""
        if self.clip_norm is None:
            return Clipped(update, l2_norm(update), False)
        return clip_by_l2(update, _clip_with_room(self.clip_norm, slack))

    def on_server(self, total: NDArray[np.float64], source: RandomSource) -> NDArray[np.float64]:
        """The sum as it is."""
        return total


MECHANISMS: dict[str, Callable[..., Mechanism]] = {"none": NoMechanism, "gaussian": CentralGaussian}


def _clip_with_room(clip_norm: float, room: float) -> float:
    if room > clip_norm / 2:
        raise PrivacyError(
            f"rounding may add {room:g}, more than half of it",
            where="clip_norm",
            value=clip_norm,
            remedy="Use a wider ring (ring_bits = 64), a smaller cohort or a smaller model",
        )
    return clip_norm - room
