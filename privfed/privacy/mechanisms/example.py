"""Example-level noise: every client trains by DP-SGD, and so protects each of its examples from everybody."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import EVERYBODY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution, l2_norm
from privfed.privacy.errors import NonFiniteUpdateError, PrivacyError
from privfed.privacy.mechanisms.base import NoisedByClients, State, Terms, clip_with_room
from privfed.privacy.mechanisms.central import check_positive, grid_step
from privfed.privacy.noise import discrete_gaussian, gaussian
from privfed.privacy.randomness import RandomSource, SeededSource, bernoulli
from privfed.privacy.sampling import LocalPoissonSampling, SamplingScheme


@dataclass(frozen=True)
class ExampleNoise:
    """What one step of DP-SGD does to the gradients of its examples (Abadi et al. 2016, Algorithm 1).

    Attributes:
        clip_norm: L2 bound on each example's gradient.
        noise_multiplier: Standard deviation of the noise on their sum over ``clip_norm``.
        rate: Each example is in a step's batch with this probability, independently.
        secure: Batches and noise from the system's CSPRNG; the noise is discrete, on a grid that the sum of
            gradients is rounded to.
    """

    clip_norm: float
    noise_multiplier: float
    rate: float
    secure: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "clip_norm", "noise_multiplier")
        if not self.rate <= 1:
            raise PrivacyError("a sampling rate lies in (0, 1]", where="rate", value=self.rate)
        check_positive(self, "rate")

    @property
    def stddev(self) -> float:
        """Of the noise on a sum, per coordinate."""
        return self.noise_multiplier * self.clip_norm

    @property
    def grid(self) -> float:
        """Step of the grid of secure noise; 0 in research mode, which has none."""
        return grid_step(self.stddev) if self.secure else 0.0

    def clip_to(self, dimension: int) -> float:
        """The norm to clip gradients ``[d]`` to, less what rounding the sum to the grid may add."""
        return clip_with_room(self.clip_norm, math.sqrt(dimension) * self.grid)

    def batches(self, source: RandomSource, steps: int, examples: int) -> NDArray[np.bool_]:
        """Which examples each step takes, ``[steps, examples]``."""
        return bernoulli(source, self.rate, steps * examples).reshape(steps, examples)

    def noise(self, source: RandomSource, steps: int, dimension: int) -> NDArray[np.float32] | NDArray[np.float64]:
        """Of each step, ``[steps, d]``: float32, or in secure mode float64 on the grid.

        Raises:
            PrivacyError: Secure noise would come from a seed.
        """
        if not self.secure:
            return gaussian(self.stddev, steps * dimension, source).astype(np.float32).reshape(steps, dimension)
        if isinstance(source, SeededSource):
            raise PrivacyError("secure mode draws no noise from a seed", remedy="Pass a SystemSource")
        whole = discrete_gaussian(math.ceil(self.stddev / self.grid), steps * dimension, source)
        return (whole * self.grid).reshape(steps, dimension)


@dataclass(frozen=True)
class ExampleGaussian(NoisedByClients):
    """Every step of every client's training is noised before anything leaves the client.

    The updates that the server receives, and all that is made of them, are equally private. Each round that a
    client takes part in is ``steps`` subsampled Gaussians; the worst case is a client of every round, and cohorts
    amplify nothing. Nothing is promised for a client as a whole.

    Attributes:
        example: Of each step.
        steps: Of each client in a round.
        update_scale: From noise on a step's sum to the noise of that step in an update: the learning rate over
            the batch size. It describes what observers know, and no claim rests on it.
    """

    example: ExampleNoise
    steps: int
    update_scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "steps", "update_scale")

    @property
    def client_noise(self) -> float:
        """Of all steps together, for plain steps at the full learning rate."""
        return self.example.stddev * self.update_scale * math.sqrt(self.steps)

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """One round of one client, which everybody sees at most."""
        scheme = LocalPoissonSampling(self.example.rate, self.steps)
        return (ObservedRelease(EVERYBODY, Release(scheme, self.example.noise_multiplier, 1)),)

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """The update as it is: its noise came with the training."""
        length = l2_norm(update)
        if not math.isfinite(length):
            raise NonFiniteUpdateError("the update is not finite")
        return Contribution(update, length, False)
