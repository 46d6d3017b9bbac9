"""Adaptive clipping: the bound follows a quantile of the update norms, estimated under the same guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution, clip_by_l2
from privfed.privacy.errors import PrivacyError
from privfed.privacy.mechanisms.base import PlainVectors, State, Terms, clip_with_room
from privfed.privacy.mechanisms.central import add_gaussian, check_positive, grid_step
from privfed.privacy.randomness import RandomSource
from privfed.privacy.sampling import SamplingScheme

HALF = 0.5
"""Bits are sent as ±1/2, so that one client moves their sum by 1/2 (Andrew et al. 2021, section 3.1)."""


@dataclass(frozen=True)
class AdaptiveClipping(PlainVectors):
    """Central Gaussian noise under a clip norm that tracks a quantile (Andrew et al. 2021, Algorithm 1).

    Each client sends, behind its clipped update, whether its norm was within the bound. The noised share of those
    moves the bound geometrically. Update and bit are one Gaussian release: with noise multipliers ``z_u`` for the
    updates and ``2 σ_b`` for the bits, ``z⁻² = z_u⁻² + (2 σ_b)⁻²`` (Theorem 1). Both are released as one vector
    whose coordinates are scaled differently, so the split is accounted exactly.

    Attributes:
        clip_norm: The bound of round 1.
        noise_multiplier: Of update and bit together: what the accountant is told.
        expected_cohort: What sums are divided by.
        quantile: Target share of updates within the bound.
        rate: Of the geometric update, ``η_C``.
        bit_stddev: Noise on the sum of bits, ``σ_b``; a twentieth of the expected cohort as in the paper's
            experiments when not given, and never so small that ``z_u`` would exceed ``1.1 z``.
        secure: Discrete noise from the system's CSPRNG.
    """

    clip_norm: float
    noise_multiplier: float
    expected_cohort: float
    quantile: float = 0.5
    rate: float = 0.2
    bit_stddev: float | None = None
    secure: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "clip_norm", "noise_multiplier", "expected_cohort", "rate")
        if not 0 <= self.quantile <= 1:
            raise PrivacyError("a quantile lies in [0, 1]", where="quantile", value=self.quantile)
        if self.bit_stddev is not None and 2 * self.bit_stddev <= self.noise_multiplier:
            raise PrivacyError(
                f"leaves no budget for the updates: more than {self.noise_multiplier / 2:g} is needed",
                where="bit_stddev",
                value=self.bit_stddev,
            )

    @property
    def bit_noise(self) -> float:
        """``σ_b``."""
        if self.bit_stddev is not None:
            return self.bit_stddev
        # z_u ≤ 1.1 z means (2 σ_b)² ≥ z² / (1 − 1/1.21).
        least = self.noise_multiplier / (2 * math.sqrt(1 - 1 / 1.21))
        return max(self.expected_cohort / 20, least)

    @property
    def update_multiplier(self) -> float:
        """``z_u``: noise on the updates over the bound in force."""
        return float((self.noise_multiplier**-2 - (2 * self.bit_noise) ** -2) ** -0.5)

    def initialize(self, dimension: int) -> State:
        """The bound of round 1."""
        return (np.array(self.clip_norm),)

    def length(self, dimension: int) -> int:
        """The update and one bit."""
        return dimension + 1

    def bound(self, state: State) -> float | None:
        """Of update and bit together."""
        return math.hypot(float(state[0]), HALF)

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """None: a bit goes with each update."""
        return None

    def moving_clip(self, state: State) -> float | None:
        """The bound in force."""
        return float(state[0])

    def with_clip(self, clip_norm: float) -> State:
        """The state of a round whose bound is ``clip_norm``."""
        return (np.array(clip_norm),)

    def reach(self, number: int, cohort: int) -> tuple[float, float]:
        """The least and the largest bound that round ``number`` can have, for cohorts of up to ``cohort`` clients.

        The bits of so many clients move it by so much a round at the most; their noise is taken as eight standard
        deviations of its sum, which it exceeds with a probability below 1e-14.
        """
        noise = 8 * self.bit_noise / self.expected_cohort * math.sqrt(number - 1)
        most = cohort * HALF / self.expected_cohort
        down = self.rate * ((number - 1) * (most + HALF - self.quantile) + noise)
        up = self.rate * ((number - 1) * (most - HALF + self.quantile) + noise)
        return self.clip_norm * math.exp(-down), self.clip_norm * math.exp(up)

    def stddev(self, state: State, survivors: float) -> float:
        """``z_u`` times the bound in force."""
        return self._update_noise(state)

    def _update_noise(self, state: State) -> float:
        return self.update_multiplier * float(state[0])

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """One Gaussian a round; the bound in force is public, since it follows from noised bits."""
        return (ObservedRelease(MODELS_ONLY, Release(sampling, self.noise_multiplier, 1)),)

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Clip to the bound in force, and say whether that was needed.

        Encoding lengthens update and bit together by ``slack`` at most; leaving room for all of it in each of them
        keeps both sensitivities.
        """
        bound = float(state[0])
        steps = math.sqrt(len(update) + 1)
        room = slack + (steps * grid_step(self._update_noise(state)) if self.secure else 0.0)
        clipped = clip_by_l2(update, clip_with_room(bound, room))
        bit_room = slack + (grid_step(self.bit_noise) if self.secure else 0.0)
        if bit_room > HALF / 2:
            raise PrivacyError(
                "rounding would drown the bit of adaptive clipping",
                where="clip_norm",
                value=bound,
                remedy="Use a wider ring (ring_bits = 64)",
            )
        bit = math.copysign(HALF - bit_room, bound - clipped.norm_before)
        vector = np.append(clipped.vector, np.float32(bit)).astype(np.float32)
        return Contribution(vector, clipped.norm_before, clipped.was_clipped)

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """Noise both sums; the noised share within the bound moves it for the next round."""
        noised = add_gaussian(total[:-1], self._update_noise(state), source, secure=self.secure)
        bits = add_gaussian(total[-1:], self.bit_noise, source, secure=self.secure)
        within = float(bits[0]) / self.expected_cohort + HALF
        moved = float(state[0]) * math.exp(-self.rate * (within - self.quantile))
        return noised, (np.array(moved),)
