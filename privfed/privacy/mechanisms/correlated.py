"""Correlated noise: the server's noise of later rounds takes back some of that of earlier ones (DP-FTRL)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution, clip_by_l2
from privfed.privacy.correlated import CorrelatedNoise, SecureCorrelatedNoise
from privfed.privacy.correlated_accounting import effective_noise_multiplier
from privfed.privacy.errors import PrivacyError
from privfed.privacy.factorisation import Banded, BinaryTree
from privfed.privacy.mechanisms.base import PlainVectors, State, Terms, clip_with_room
from privfed.privacy.mechanisms.central import check_positive
from privfed.privacy.noise import gaussian
from privfed.privacy.randomness import RandomSource
from privfed.privacy.sampling import RoundRobinSampling, SamplingScheme


@dataclass(frozen=True)
class CorrelatedGaussian(PlainVectors):
    """Central noise correlated over rounds (Kairouz et al. 2021; Choquette-Choo et al. 2023).

    It assumes nothing random about cohorts, only that a client comes back no sooner than ``sampling.separation``
    rounds, and it is one Gaussian mechanism over the whole run. The state holds noise, and in secure mode sums: it
    is as secret as the updates.

    Attributes:
        clip_norm: L2 bound on each client's update.
        noise_multiplier: Standard deviation of the noise that a round draws (for trees: that a node does) over
            ``clip_norm``. A client moves as many rows or nodes as ``strategy.sensitivity`` says, so that the whole
            run's multiplier is this over that.
        strategy: What correlates the noise.
        sampling: Who takes part when.
        secure: Discrete noise from the system's CSPRNG, for banded strategies only.

    Raises:
        PrivacyError: A parameter is out of range, the strategy has more bands than rounds between participations,
            or secure mode has no noise for it.
    """

    clip_norm: float
    noise_multiplier: float
    strategy: Banded | BinaryTree
    sampling: RoundRobinSampling
    secure: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "clip_norm", "noise_multiplier")
        if self.strategy.rounds < self.sampling.rounds:
            raise PrivacyError(
                f"the strategy has {self.strategy.rounds}", where="rounds", value=self.sampling.rounds
            )
        if isinstance(self.strategy, Banded) and self.strategy.bands > self.sampling.separation:
            raise PrivacyError(
                f"clients come back after {self.sampling.separation} rounds",
                where="bands",
                value=self.strategy.bands,
                remedy=f"Use {self.sampling.separation} or fewer, or smaller cohorts",
            )
        if self.secure and not isinstance(self.strategy, Banded):
            raise PrivacyError(
                "secure mode has no noise for a tree", where="mechanism", value="tree", remedy='Use "banded"'
            )

    @property
    def whole_run(self) -> bool:
        """All rounds are one release."""
        return True

    @cached_property
    def fresh(self) -> float:
        """Standard deviation of the noise drawn in each round, before it is correlated."""
        return self.noise_multiplier * self.clip_norm

    @cached_property
    def run_multiplier(self) -> float:
        """Noise multiplier of the one Gaussian mechanism that the whole run is."""
        bound = self.strategy.sensitivity(self.sampling.participations, self.sampling.separation)
        return effective_noise_multiplier(self.fresh, self.clip_norm, bound.value)

    @property
    def _secure_noise(self) -> SecureCorrelatedNoise:
        assert isinstance(self.strategy, Banded)
        return SecureCorrelatedNoise(self.strategy, self.fresh)

    def initialize(self, dimension: int) -> State:
        """What the noise of later rounds depends on."""
        noise = self._secure_noise if self.secure else CorrelatedNoise(self.strategy)
        return noise.initialize(dimension)

    def bound(self, state: State) -> float | None:
        """``clip_norm``."""
        return self.clip_norm

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """``clip_norm``, less what the noise's grid may add in secure mode."""
        return clip_with_room(self.clip_norm, self._room(dimension))

    def stddev(self, state: State, survivors: float) -> float:
        """Of the noise drawn in this round; what is added also holds parts of earlier rounds' noise."""
        return self.fresh

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """One Gaussian for the whole run, for those who see nothing but noised models."""
        return (ObservedRelease(MODELS_ONLY, Release(self.sampling, self.run_multiplier, 1)),)

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Clip to ``clip_norm`` less what encoding and the noise's grid may add."""
        return clip_by_l2(update, clip_with_room(self.clip_norm, slack + self._room(len(update))))

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """Add this round's row of the correlated noise."""
        if self.secure:
            return self._secure_noise.release(state, terms.round, total, source)
        if not np.isfinite(total).all():
            raise PrivacyError("the sum is not finite, although every update in it was checked")
        drawn = gaussian(self.fresh, len(total), source)
        noise, following = CorrelatedNoise(self.strategy).step(state, terms.round, drawn)
        return total + noise, following

    def _room(self, dimension: int) -> float:
        return self._secure_noise.room(dimension) if self.secure else 0.0
