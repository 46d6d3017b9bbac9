"""Local noise: each client noises its own update, and trusts nobody with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import EVERYBODY, MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution, clip_by_l2
from privfed.privacy.mechanisms.base import NoisedByClients, State, Terms, clip_with_room
from privfed.privacy.mechanisms.central import add_gaussian, check_positive, grid_step
from privfed.privacy.randomness import RandomSource
from privfed.privacy.sampling import KnownCohorts, SamplingScheme


@dataclass(frozen=True)
class LocalGaussian(NoisedByClients):
    """Every client adds Gaussian noise to its clipped update before it sends it.

    Whoever receives an update, active servers included, has ``noise_multiplier`` between it and the client. Who
    sees models only has the noise of all survivors, ``noise_multiplier · sqrt(survivors)``. Sampling amplifies
    neither: servers know who takes part, and the variance of the sum tells everybody else how many do. The worst
    case is a client of every round.

    Attributes:
        clip_norm: L2 bound on each client's update.
        noise_multiplier: Standard deviation of each client's noise over ``clip_norm``.
        secure: Discrete noise from the system's CSPRNG.
    """

    clip_norm: float
    noise_multiplier: float
    secure: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "clip_norm", "noise_multiplier")

    @property
    def client_noise(self) -> float:
        """``noise_multiplier · clip_norm``."""
        return self.noise_multiplier * self.clip_norm

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """Each message to the servers, and the sum to those who see models only."""
        together = self.noise_multiplier * math.sqrt(max(1, survivors or 1))
        return (
            ObservedRelease(EVERYBODY - MODELS_ONLY, Release(KnownCohorts(), self.noise_multiplier, 1)),
            ObservedRelease(MODELS_ONLY, Release(KnownCohorts(), together, 1)),
        )

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Clip and add the client's noise; what is sent is float64, as it was noised."""
        room = slack + (math.sqrt(len(update)) * grid_step(self.client_noise) if self.secure else 0.0)
        clipped = clip_by_l2(update, clip_with_room(self.clip_norm, room))
        noised = add_gaussian(clipped.vector.astype(np.float64), self.client_noise, source, secure=self.secure)
        return Contribution(noised, clipped.norm_before, clipped.was_clipped)
