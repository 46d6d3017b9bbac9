"""Noise that the clients bring: a grid, shares of noise, and a ring that their sum does not leave.

Each client rotates its clipped update, scales it to the grid, rounds it at random, and adds its share of discrete
noise; secure aggregation adds up modulo ``2**ring_bits``; the server undoes the scale and the rotation::

    update ──rotate──▶ ──scale──▶ ──round──▶ ──+ noise──▶ ring ══ sum ══▶ ──unscale──▶ ──rotate back──▶ noised sum

The server so holds a sum with the noise of all survivors in it, and never one without. (Kairouz, Liu & Steinke
2021, Algorithms 1 and 2; Agarwal, Kairouz & Liu 2021 with Skellam noise.) Whatever wraps in the ring costs
accuracy, never privacy, since reduction comes after the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError
from privfed.privacy.noise import discrete_gaussian
from privfed.privacy.randomness import RandomSource
from privfed.privacy.rotation import Rotation, padded_dimension
from privfed.privacy.rounding import BETA, MAX_NORM, conditional_round, rounded_norm_bound
from privfed.privacy.skellam import MIN_VARIANCE, skellam

Integers = NDArray[np.int64]
Noise = Literal["discrete_gaussian", "skellam"]

NOISES: tuple[Noise, ...] = ("discrete_gaussian", "skellam")
RING_BITS = range(8, 65)
FINEST: dict[Noise, int] = {"discrete_gaussian": 2**20, "skellam": 2**16}
"""Most grid steps in the standard deviation of one share: a finer grid gains nothing, or costs large tables."""
MAX_INFLATION = 2.0
"""Where rounding more than doubles the sensitivity, the ring is too narrow to be of use."""
WRAP_BITS = 40
"""A round wraps in any coordinate with a probability below 2⁻⁴⁰."""


@dataclass(frozen=True)
class DistributedParams:
    """What all clients of a round agree on. Build it with ``for_cohort``, which chooses the scale.

    Attributes:
        noise: ``discrete_gaussian`` or ``skellam``.
        clip_norm: L2 bound of an update, in units of the model.
        dimension: Coordinates of an update.
        padded: Coordinates after the rotation: the next power of two.
        scale: Grid steps per unit.
        local_stddev: Of one client's share of the noise, in grid steps. (Of the discrete Gaussian, strictly its
            parameter, which is above the standard deviation by less than a part in 10⁶.)
        cohort_size: Most clients whose vectors may be summed.
        ring_bits: Sums are modulo ``2**ring_bits``.
        beta: Of the conditional rounding.

    Raises:
        PrivacyError: A value is out of range.
    """

    noise: Noise
    clip_norm: float
    dimension: int
    padded: int
    scale: float
    local_stddev: float
    cohort_size: int
    ring_bits: int = 32
    beta: float = BETA

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise PrivacyError(f"must be one of {', '.join(NOISES)}", where="noise", value=self.noise)
        for name in ("clip_norm", "scale", "local_stddev"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise PrivacyError("must be a positive number", where=name, value=value)
        if self.padded != padded_dimension(self.dimension):
            raise PrivacyError(f"must be {padded_dimension(self.dimension)}", where="padded", value=self.padded)
        if self.cohort_size < 1:
            raise PrivacyError("must be at least 1", where="cohort_size", value=self.cohort_size)
        if self.ring_bits not in RING_BITS:
            raise PrivacyError("must be from 8 to 64", where="ring_bits", value=self.ring_bits)
        if self.noise == "discrete_gaussian" and self.local_stddev != int(self.local_stddev):
            raise PrivacyError("must be whole steps", where="local_stddev", value=self.local_stddev)
        rounded_norm_bound(self.clip_norm * self.scale, self.padded, self.beta)

    @classmethod
    def for_cohort(
        cls,
        noise: Noise,
        clip_norm: float,
        dimension: int,
        noise_multiplier: float,
        expected_survivors: int,
        cohort_size: int | None = None,
        ring_bits: int = 32,
        beta: float = BETA,
    ) -> DistributedParams:
        """Shares that add up to ``noise_multiplier · clip_norm``, on the finest grid whose sums do not wrap.

        With ``b = cohort_size · clip_norm · scale``, a coordinate of the rotated sum is sub-Gaussian with variance
        ``b² / padded`` over the choice of the signs, and at most ``b`` for any signs; the rounding adds at most
        ``cohort_size`` steps; the noise has the tail of its moment generating function. The scale is such that by
        Chernoff's bound, for all coordinates together, a sum leaves the ring with a probability below 2⁻⁴⁰,
        provided that the updates do not depend on the signs.

        Args:
            noise: Which distribution.
            clip_norm: L2 bound of an update.
            dimension: Coordinates of an update.
            noise_multiplier: Standard deviation of the noise of ``expected_survivors`` clients over ``clip_norm``.
            expected_survivors: Clients whose shares are to add up to it. With fewer there is less noise.
            cohort_size: Most clients in a sum; by default ``expected_survivors``.
            ring_bits: From 8 to 64.
            beta: Of the conditional rounding.

        Raises:
            PrivacyError: An argument is out of range, or the ring is too narrow: a share would have less than one
                step (discrete Gaussian), or rounding would more than double the sensitivity.
        """
        if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
            raise PrivacyError("must be a positive number", where="noise_multiplier", value=noise_multiplier)
        if not (math.isfinite(clip_norm) and clip_norm > 0):
            raise PrivacyError("must be a positive number", where="clip_norm", value=clip_norm)
        cohort_size = expected_survivors if cohort_size is None else cohort_size
        if not 1 <= expected_survivors <= cohort_size:
            raise PrivacyError(
                f"must be from 1 to the cohort size, {cohort_size}",
                where="expected_survivors",
                value=expected_survivors,
            )
        if noise not in NOISES or ring_bits not in RING_BITS:
            raise PrivacyError("must be a known noise on a ring of 8 to 64 bits", value=(noise, ring_bits))
        padded = padded_dimension(dimension)
        share = noise_multiplier * clip_norm / math.sqrt(expected_survivors)
        steps = _finest_share(noise, clip_norm / share, padded, cohort_size, ring_bits)
        if steps == 0:
            raise _too_narrow(ring_bits, cohort_size, noise, "no grid keeps the sum inside")
        params = cls(noise, clip_norm, dimension, padded, steps / share, steps, cohort_size, ring_bits, beta)
        if params.inflation > MAX_INFLATION:
            why = f"rounding multiplies the sensitivity by {params.inflation:.3g}"
            raise _too_narrow(ring_bits, cohort_size, noise, why)
        return params

    @property
    def norm_bound(self) -> float:
        """L2 bound of a client's integer vector before the noise, in steps: the sensitivity for zeroing it out."""
        return rounded_norm_bound(self.clip_norm * self.scale, self.padded, self.beta)

    @property
    def l1_bound(self) -> float:
        """Its L1 bound: by Cauchy-Schwarz, and since an integer is at most its square."""
        return min(math.sqrt(self.padded) * self.norm_bound, self.norm_bound**2)

    @property
    def inflation(self) -> float:
        """What rounding multiplies the sensitivity by, at worst."""
        return self.norm_bound / (self.clip_norm * self.scale)

    def stddev(self, survivors: int) -> float:
        """Of the noise on each coordinate of the decoded sum, in units of the model; rounding comes on top."""
        return math.sqrt(survivors) * self.local_stddev / self.scale

    def noise_multiplier(self, survivors: int) -> float:
        """``stddev(survivors) / clip_norm``."""
        return self.stddev(survivors) / self.clip_norm

    def encode(self, update: NDArray[Any], rotation: Rotation, source: RandomSource) -> Integers:
        """One client's noised integers ``[padded]``, not yet reduced into the ring.

        Args:
            update: ``[dimension]``, float32 or float64, clipped to ``clip_norm``. A longer one is shortened here,
                so that the guarantee does not hang on it.
            rotation: Of this round.
            source: The client's own randomness: whoever knows it can take the noise off again.

        Raises:
            NonFiniteUpdateError: NaN or infinity in the update.
            PrivacyError: Wrong shape or type.
        """
        self._check(rotation)
        steps = rotation.apply(update).astype(np.float64) * self.scale
        integers = conditional_round(steps, self.clip_norm * self.scale, source, self.beta)
        integers += self.draw(source)
        return integers

    def draw(self, source: RandomSource) -> Integers:
        """One client's share of the noise, ``[padded]``, in steps."""
        if self.noise == "skellam":
            return skellam(self.local_stddev**2, self.padded, source)
        return discrete_gaussian(int(self.local_stddev), self.padded, source)

    def decode(self, total: NDArray[Any], rotation: Rotation) -> NDArray[np.float64]:
        """The noised sum of updates, ``[dimension]``.

        Args:
            total: Integers ``[padded]`` of any type, right modulo ``2**ring_bits``.
            rotation: Of this round.

        Raises:
            PrivacyError: Wrong shape or type.
        """
        self._check(rotation)
        if total.shape != (self.padded,) or total.dtype.kind not in "iu":
            raise PrivacyError(
                f"must be integers of shape ({self.padded},) (got {total.dtype} {total.shape})", where="total"
            )
        return rotation.invert(centred(total, self.ring_bits).astype(np.float64) / self.scale)

    def _check(self, rotation: Rotation) -> None:
        if rotation.dimension != self.dimension:
            raise PrivacyError(
                f"must be of dimension {self.dimension}", where="rotation", value=rotation.dimension
            )


def centred(values: NDArray[Any], ring_bits: int) -> Integers:
    """The representatives from ``-2**(ring_bits-1)`` to ``2**(ring_bits-1) - 1`` of integers."""
    if ring_bits == 64:
        return values.astype(np.int64)
    half = 2 ** (ring_bits - 1)
    # Adding may wrap around modulo 2⁶⁴, of which 2**ring_bits is a divisor.
    shifted = (values.astype(np.uint64) + np.uint64(half)) & np.uint64(2 * half - 1)
    result: Integers = shifted.astype(np.int64) - half
    return result


def _finest_share(noise: Noise, clip_per_share: float, padded: int, cohort_size: int, ring_bits: int) -> float:
    """Most steps that the standard deviation of a share may have; 0 where none will do.

    Whole numbers from 1 on, for the sampler of the discrete Gaussian; below, for Skellam noise, powers of 2^(1/8).
    """

    def fits(steps: float) -> bool:
        return _reach(noise, steps, clip_per_share, padded, cohort_size) < 2.0 ** (ring_bits - 1)

    low, high = 0, min(FINEST[noise], int(MAX_NORM / clip_per_share))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(float(middle)) else (low, middle - 1)
    if low or noise == "discrete_gaussian":
        return float(low)
    finest = [2 ** (-eighths / 8) for eighths in range(1, 8 * 10)]
    return next((s for s in finest if s**2 >= MIN_VARIANCE and s * clip_per_share <= MAX_NORM and fits(s)), 0.0)


def _reach(noise: Noise, steps: float, clip_per_share: float, padded: int, cohort_size: int) -> float:
    """What a coordinate of the sum exceeds with a probability below ``2**-WRAP_BITS / padded``, in steps.

    Chernoff: ``P(S ≥ T) ≤ exp(log E exp(tS) - tT)`` for every ``t``, and the same for ``-S``.
    """
    nats = (WRAP_BITS + 1 + math.log2(padded)) * math.log(2)
    largest = cohort_size * clip_per_share * steps
    variance = cohort_size * steps**2
    reaches = []
    for hard, spread in ((0.0, largest**2 / padded), (largest, 0.0)):
        # The best t for a Gaussian, and smaller ones: with little noise the tail is more like a Poisson's.
        t = math.sqrt(2 * nats / (spread + variance)) * np.geomspace(1, 1e-3, 61 if noise == "skellam" else 1)
        with np.errstate(over="ignore"):
            tail = variance * (np.cosh(t) - 1 if noise == "skellam" else np.square(t) / 2)
        reaches.append(hard + float(((nats + spread * np.square(t) / 2 + tail) / t).min()))
    return min(reaches) + cohort_size + 1


def _too_narrow(ring_bits: int, cohort_size: int, noise: str, why: str) -> PrivacyError:
    other = "Skellam noise, " if noise == "discrete_gaussian" else ""
    return PrivacyError(
        f"too narrow for the sum of {cohort_size} clients with {noise} noise: {why}",
        where="ring_bits",
        value=ring_bits,
        remedy=f"Use a wider ring, {other}or a smaller cohort",
    )
