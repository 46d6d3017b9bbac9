"""Distributed noise: every client brings a share in integers, and under masking nobody sees a sum without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution, clip_by_l2
from privfed.privacy.distributed import DistributedParams, Noise
from privfed.privacy.distributed_accounting import DistributedRelease
from privfed.privacy.errors import PrivacyError
from privfed.privacy.mechanisms.base import State, Terms
from privfed.privacy.randomness import RandomSource, SeededSource
from privfed.privacy.rotation import Rotation
from privfed.privacy.sampling import (
    FixedSizeSampling,
    HiddenCohorts,
    KnownCohorts,
    PoissonSampling,
    SamplingScheme,
)


@dataclass(frozen=True)
class DistributedNoise:
    """Discrete Gaussian or Skellam noise under secure aggregation (Kairouz et al. 2021; Agarwal et al. 2021).

    Each client clips, rotates, rounds and noises; the server only ever holds the survivors' noised sum. Nobody is
    amplified for knowing less than the server but those who see models only, and they too know each cohort's size.
    What is accounted is the noise that the survivors brought, which dropouts weaken.

    Attributes:
        noise: ``discrete_gaussian`` or ``skellam``.
        params: Grid, shares and ring.
        population: Clients in all.
        threshold: Fewest survivors with which a round yields a sum; what is reserved before they are known.
        masked: Whether secure aggregation hides single contributions; without it servers are not protected.
        colluders: Clients that tell ``server+colluders`` their shares.
        seed: Of the public rotations.
        secure: Whether shares must come from the system's CSPRNG.
    """

    noise: Noise
    params: DistributedParams
    population: int
    threshold: int
    masked: bool
    colluders: int = 0
    seed: int = 0
    secure: bool = False
    integral: bool = True
    whole_run: bool = False

    @cached_property
    def clip_norm(self) -> float:
        """L2 bound on each client's update."""
        return self.params.clip_norm

    def initialize(self, dimension: int) -> State:
        """No state."""
        if dimension != self.params.dimension:
            raise PrivacyError(f"must be {self.params.dimension}", where="dimension", value=dimension)
        return ()

    def length(self, dimension: int) -> int:
        """The next power of two, for the rotation."""
        return self.params.padded

    def bound(self, state: State) -> float | None:
        """None: contributions are integers already, and the grid was chosen so that their sum fits the ring."""
        return None

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """None: every client rounds and adds noise."""
        return None

    def moving_clip(self, state: State) -> float | None:
        """None: it stays."""
        return None

    def stddev(self, state: State, survivors: float) -> float:
        """Of the survivors' shares together, in units of an update."""
        return self.client_noise * math.sqrt(survivors)

    @property
    def client_noise(self) -> float:
        """One share, in units of an update."""
        return self.params.stddev(1)

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Clip, rotate, round at random, add the share: integers ``[padded]``."""
        if self.secure and isinstance(source, SeededSource):
            raise PrivacyError("secure mode draws no noise from a seed", remedy="Pass a SystemSource")
        clipped = clip_by_l2(update, self.clip_norm)
        integers = self.params.encode(clipped.vector, self._rotation(terms), source)
        return Contribution(integers, clipped.norm_before, clipped.was_clipped)

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """Undo scale and rotation: the noise is in the sum already."""
        return self.as_update(total, self.params.dimension, terms), state

    def as_update(self, vector: NDArray[np.float64], dimension: int, terms: Terms) -> NDArray[np.float64]:
        """Back to units of an update: both steps are public."""
        return self.params.decode(vector.astype(np.int64), self._rotation(terms))

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """The survivors' sum. An active server is not named: it may call clients dropped down to the threshold."""
        # An empty round releases nothing about anybody; it counts like the smallest that does.
        present = min(survivors or max(self.threshold, self.colluders + 1), self.params.cohort_size)
        random = isinstance(sampling, PoissonSampling | FixedSizeSampling)
        scheme = HiddenCohorts(self.population) if random else KnownCohorts()
        seen = [ObservedRelease(MODELS_ONLY, self._release(scheme, present, 0))]
        if self.masked:
            seen.append(ObservedRelease(frozenset({"server"}), self._release(KnownCohorts(), present, 0)))
            if present > self.colluders:
                rest = self._release(KnownCohorts(), present, self.colluders)
                seen.append(ObservedRelease(frozenset({"server+colluders"}), rest))
        return tuple(seen)

    def _release(self, scheme: SamplingScheme, survivors: int, colluders: int) -> Release:
        population = scheme.population if isinstance(scheme, HiddenCohorts) else None
        shares = DistributedRelease(self.params, survivors, colluders, population)
        return Release(scheme, self.params.noise_multiplier(shares.honest), 1, shares)

    def _rotation(self, terms: Terms) -> Rotation:
        return Rotation(self.params.dimension, (self.seed, terms.round))
