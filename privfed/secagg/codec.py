"""Fixed point in an integer ring, with a scale at which the sum of a whole cohort cannot overflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import ring
from privfed.secagg.errors import CodecError, ParameterError
from privfed.secagg.exact import Words, exact_square_sum, floor_log2, power_of_two
from privfed.secagg.lanes import MAX_COUNT, MIN_COUNT, WORD_BITS, Lanes, largest_half
from privfed.secagg.rounding import (
    BLOCK,
    Float32Rounding,
    Float64Rounding,
    Rounding,
    round_magnitudes,
    sum_of_squares,
)

ONE = np.float32(1)

MIN_STEPS = 2**8
"""Fewest steps of the grid between zero and the clip norm: below, rounding drowns the update."""

MAX_SLACK_SHARE = Fraction(1, 16)
"""Largest share of the clip norm that may be given up to rounding."""

LANES_MAY_TAKE = 1.1
"""Bits on the wire, over those of the narrowest ring, at which lanes are worth their shorter masks."""

_FLOAT32_DIGITS = 24
_FLOAT32_INEXACT = 2.0 ** (2 - _FLOAT32_DIGITS)
"""Share by which scaling in float32, a factor included, may lengthen a vector."""


@dataclass(frozen=True)
class FixedPointCodec:
    """Real vectors of bounded L2 norm to and from integers modulo ``2**ring_bits``.

    Build it with ``for_cohort``, ``in_lanes`` or ``narrowest``, which choose the scale and state what holds of it.

    Attributes:
        cohort_size: Most vectors that may be summed before decoding.
        clip_norm: L2 bound of what is encoded, rounding included.
        dimension: Length of the vectors.
        ring_bits: From 8 to 64.
        scale: Steps of the grid per unit: a power of two, and in lanes a number of float32.
        lanes: How several coordinates share an element of the ring; ``None`` where each has its own.
    """

    cohort_size: int
    clip_norm: float
    dimension: int
    ring_bits: int
    scale: float
    lanes: Lanes | None = None

    @classmethod
    def for_cohort(
        cls, cohort_size: int, clip_norm: float, dimension: int, ring_bits: int = 32
    ) -> FixedPointCodec:
        """Codec with the finest grid on which the sum of a cohort cannot overflow.

        The scale is the largest power of two with ``cohort_size * (clip_norm * scale + 1) < 2**(ring_bits - 1)``.
        As ``encode`` keeps every integer vector's L2 norm, and so each coordinate, at most ``clip_norm * scale``,
        no coordinate of the sum leaves the signed range.

        Raises:
            ParameterError: An argument is out of range, or the grid is too coarse: fewer than 256 steps in the
                clip norm, or rounding may lengthen a vector by more than a sixteenth of the clip norm.
        """
        ring.check_bits(ring_bits)
        _check_arguments(cohort_size, clip_norm, dimension)
        # Twice the largest power of two that fits is too much, and half of it is not: exact, in rationals.
        room = (Fraction(2 ** (ring_bits - 1), cohort_size) - 1) / Fraction(clip_norm)
        if room <= 0:
            raise _too_coarse(cohort_size, dimension, ring_bits, "not one step fits")
        exponent = floor_log2(room)
        if Fraction(2) ** exponent == room:
            exponent -= 1
        scale = power_of_two(1, exponent, clip_norm)
        codec = cls(cohort_size, float(clip_norm), dimension, ring_bits, scale)
        codec._check_fineness()
        return codec

    @classmethod
    def in_lanes(cls, cohort_size: int, clip_norm: float, dimension: int, count: int) -> FixedPointCodec:
        """Codec that puts ``count`` coordinates, 3 to 8, into each word of a 64-bit ring, on the finest grid.

        The scale is the largest number of float32 at which ``cohort_size`` vectors of integers, none longer than
        ``clip_norm * scale``, leave no lane.

        Raises:
            ParameterError: As in ``for_cohort``, or there are no so many lanes.
        """
        if not MIN_COUNT <= count <= MAX_COUNT:
            raise ParameterError(f"lanes: must be from {MIN_COUNT} to {MAX_COUNT} (got {count})")
        _check_arguments(cohort_size, clip_norm, dimension)
        steps = largest_half(count) // cohort_size
        if not steps:
            raise _too_coarse(cohort_size, dimension, WORD_BITS // count, "not one step fits")
        room = steps / Fraction(clip_norm)
        exponent = floor_log2(room) - _FLOAT32_DIGITS + 1
        mantissa = math.floor(room / Fraction(2) ** exponent)
        scale = power_of_two(mantissa, exponent, clip_norm)
        lanes = Lanes(count, cohort_size * steps, dimension)
        codec = cls(cohort_size, float(clip_norm), dimension, WORD_BITS, scale, lanes)
        codec._check_fineness()
        return codec

    @classmethod
    def narrowest(
        cls, cohort_size: int, clip_norm: float, dimension: int, value_bits: int = 16
    ) -> FixedPointCodec:
        """Codec on the narrowest ring on which one client's values take ``value_bits`` bits: sign and magnitude.

        The clip norm is more than ``2**(value_bits - 2)`` steps of the grid, and the sum of a cohort cannot
        overflow: a thousand clients' 16-bit values take a ring of 26 bits. Where coordinates can share words with
        at most a tenth more on the wire, they do: those of 80 clients or fewer, but for very few.

        Raises:
            ParameterError: An argument is out of range, or no ring of 64 bits or fewer is wide enough.
        """
        plain = cls._narrowest_ring(cohort_size, clip_norm, dimension, value_bits)
        for count in range(MAX_COUNT, MIN_COUNT - 1, -1):
            if WORD_BITS / count > LANES_MAY_TAKE * plain.ring_bits:
                break
            try:
                codec = cls.in_lanes(cohort_size, clip_norm, dimension, count)
            except ParameterError:
                continue  # too coarse
            if codec._exact_bound > 2 ** (value_bits - 2):
                return codec
        return plain

    @classmethod
    def _narrowest_ring(
        cls, cohort_size: int, clip_norm: float, dimension: int, value_bits: int
    ) -> FixedPointCodec:
        for ring_bits in range(max(value_bits, ring.MIN_BITS), ring.MAX_BITS):
            try:
                codec = cls.for_cohort(cohort_size, clip_norm, dimension, ring_bits)
            except ParameterError:
                continue  # too coarse, or what the widest ring refuses as well
            if codec._exact_bound > 2 ** (value_bits - 2):
                return codec
        return cls.for_cohort(cohort_size, clip_norm, dimension, ring.MAX_BITS)

    @property
    def rounding_slack(self) -> float:
        """Most that encoding adds to a norm as measured in float64: clip to ``clip_norm`` less this.

        ``sqrt(dimension) / scale`` for the rounding to the grid, and for the measuring, whose relative error is at
        most ``dimension * 2**-54``, twice that: next to nothing, but more than a step of a 64-bit grid. Where the
        scale is no power of two, scaling in float32, a factor included, is right to ``2**-22``.
        """
        inexact = (self.dimension + 8) * 2.0**-53 + (_FLOAT32_INEXACT if self.lanes else 0.0)
        return math.sqrt(self.dimension) / self.scale + self.clip_norm * inexact

    @property
    def length(self) -> int:
        """Elements of the ring that a vector takes."""
        return self.lanes.length if self.lanes else self.dimension

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of a ring element."""
        return ring.dtype_of(self.ring_bits)

    def encode(
        self,
        update: NDArray[np.float32] | NDArray[np.float64],
        uniforms: Words | Callable[[int], Words],
    ) -> NDArray[Any]:
        """Round stochastically to the grid: each coordinate to one of its two neighbours, unbiased to ``2**-64``.

        Args:
            update: ``[dimension]``, L2 norm at most ``clip_norm - rounding_slack``.
            uniforms: Independent uniform 64-bit words ``[dimension]``, or what gives that many.

        Returns:
            Ring vector ``[length]``, negative numbers wrapped.

        Raises:
            CodecError: Wrong shape or type, NaN or infinity, or the integer vector is longer than ``clip_norm``.
        """
        self._check_update(update)
        words = uniforms(self.dimension) if callable(uniforms) else uniforms
        if words.shape != (self.dimension,) or words.dtype != np.uint64:
            raise CodecError(
                f"uniforms: must be uint64 of shape ({self.dimension},) (got {words.dtype} {words.shape})"
            )
        bound = self._exact_bound
        # Scaling by a power of two is exact, by another number right to 2**-53; and everything below is exact:
        # magnitudes first, signs at the end.
        with np.errstate(over="ignore"):
            magnitudes = np.abs(update.astype(np.float64)) * self.scale
        largest = float(magnitudes.max())
        if not largest <= bound:
            raise self._refusal(update)
        steps = round_magnitudes(magnitudes, words)
        self._check_norm(steps, bound)
        signed = steps.astype(np.int64)
        np.negative(signed, out=signed, where=update < 0)
        if self.lanes:
            words = np.zeros(self.length, self.dtype)
            self.lanes.add(words, 0, signed)
            return words
        encoded: NDArray[Any] = signed.astype(self.dtype)
        ring.reduce(encoded, self.ring_bits)
        return encoded

    def add_encoded(
        self,
        total: NDArray[Any],
        update: NDArray[np.float32] | NDArray[np.float64],
        key: bytes,
        factor: np.float32 = ONE,
        longest: float | None = None,
    ) -> None:
        """Encode ``factor * update`` and add it to the ring vector ``total`` in place, with no vector in between.

        Rounding is as in ``encode``, by the keystream of ``key``: the same key gives the same integers. Of float32
        vectors on a ring of 32 bits or fewer, or in lanes, up to 16 bits decide each rounding: means are right to
        ``2**-16`` steps, or on fine grids to ``2**-29`` of the update.

        Args:
            total: ``[length]`` of type ``dtype``; added modulo the width of that, to be reduced when all is in.
            update: As in ``encode``, after the multiplication; of float32 that rounds to float32.
            key: 32 bytes, used for nothing else.
            factor: What clips the update; 1 when it is clipped already.
            longest: L2 norm that ``factor * update`` does not exceed, of whoever has measured it; ``None`` to have
                it measured here.

        Raises:
            CodecError: As in ``encode``; ``total`` may then hold a part of the update.
        """
        self._check_update(update)
        self._check_total(total)
        rounding = self._rounding(update, key, factor, longest)
        with np.errstate(over="ignore", invalid="ignore"):
            for start, steps in self._rounded(update, rounding, factor):
                if self.lanes:
                    self.lanes.add(total, start, steps)
                    continue
                target = total[start : start + BLOCK]
                same = steps.view(self.dtype) if steps.itemsize == target.itemsize else steps
                np.add(target, same, out=target, casting="unsafe")
        if not rounding.longest() <= self._bound:
            again = self._rounded(update, self._rounding(update, key, factor, longest), factor)
            blocks = [np.abs(steps.astype(np.int64)) for _, steps in again]
            self._check_norm(np.concatenate(blocks).astype(np.uint64), self._exact_bound)

    def _rounding(self, update: NDArray[Any], key: bytes, factor: np.float32, longest: float | None) -> Rounding:
        # float32 has the range, and int32 the room: half of the ring holds two clients at least, a lane 21 bits.
        narrow = bool(self.lanes) or (self.ring_bits <= 32 and self.cohort_size > 1)
        if (
            narrow
            and update.dtype == np.float32
            and abs(math.log2(self.scale)) < 100 > -math.log2(factor * self.scale)
        ):
            # Of what float32 rounds on the way, only the product that clips is the caller's to have measured, and
            # only where scaling adds nothing to it.
            rounds = bool(self.lanes) or (longest is None and factor != 1)
            if longest is None:
                longest = float(factor) * math.sqrt(sum_of_squares(update))
            length = longest * self.scale * (1 + rounds * _FLOAT32_INEXACT)
            if not length <= self._bound * (1 + 2.0**-20):  # false for what is not a number
                raise self._refusal(update * factor)
            # Where the scale is a power of two, one multiplication rounds as two would; lanes have a larger slack.
            return Float32Rounding(factor * np.float32(self.scale), length, self.dimension, key)
        return Float64Rounding(self.scale, self._bound, key, self.ring_bits)

    def _rounded(
        self, update: NDArray[Any], rounding: Rounding, factor: np.float32
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Where each block of ``update`` starts, and its steps."""
        apart = factor != 1 and not isinstance(rounding, Float32Rounding)
        for start in range(0, self.dimension, BLOCK):
            block = update[start : start + BLOCK]
            steps = rounding(block * factor if apart else block)
            if steps is None:
                raise self._refusal(update * factor)
            yield start, steps

    def to_signed(self, total: NDArray[Any]) -> NDArray[np.int64]:
        """Signed integers ``[dimension]`` of a ring vector ``[length]``, reduced or not.

        The upper half of the ring is negative. Of a lane that is what every sum of a cohort is right in.

        Raises:
            CodecError: Wrong shape or type.
        """
        signed = np.empty(self.dimension, np.int64)
        for place, block in self._signed(total):
            signed[place] = block
        return signed

    def decode(self, total: NDArray[Any]) -> NDArray[np.float64]:
        """Real vector ``[dimension]`` of a ring vector ``[length]``; exact as far as float64 goes.

        Raises:
            CodecError: Wrong shape or type.
        """
        decoded = np.empty(self.dimension)
        for place, block in self._signed(total):
            np.divide(block, self.scale, out=decoded[place])
        return decoded

    def _signed(self, total: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """Which coordinates are in each block, and their signed integers."""
        self._check_total(total)
        if self.lanes:
            yield from self.lanes.blocks(total)
            return
        for start in range(0, self.dimension, BLOCK):
            place = slice(start, min(start + BLOCK, self.dimension))
            yield place, ring.to_signed(total[place], self.ring_bits)

    def _check_fineness(self) -> None:
        steps, bits = self._exact_bound, self.ring_bits if self.lanes is None else WORD_BITS // self.lanes.count
        if steps < MIN_STEPS:
            why = f"the clip norm is only {float(steps):.3g} steps"
            raise _too_coarse(self.cohort_size, self.dimension, bits, why)
        # slack / clip_norm = sqrt(dimension) / steps, compared in squares to stay exact.
        if self.dimension > (MAX_SLACK_SHARE * steps) ** 2:
            why = f"rounding may take {math.sqrt(self.dimension) / float(steps):.1%} of the clip norm"
            raise _too_coarse(self.cohort_size, self.dimension, bits, why)

    def _check_update(self, update: NDArray[Any]) -> None:
        if update.shape != (self.dimension,) or update.dtype not in (np.float32, np.float64):
            raise CodecError(
                f"update: must be float32 or float64 of shape ({self.dimension},) "
                f"(got {update.dtype} {update.shape})"
            )

    def _check_total(self, total: NDArray[Any]) -> None:
        if total.shape != (self.length,) or total.dtype != self.dtype:
            raise CodecError(
                f"total: must be {self.dtype} of shape ({self.length},) (got {total.dtype} {total.shape})"
            )

    def _check_norm(self, steps: Words, bound: Fraction) -> None:
        approximate = steps.astype(np.float64)
        # The exact sum is several times slower.
        squared = float(np.dot(approximate, approximate))
        if squared * (1 + (self.dimension + 8) * 2.0**-51) <= bound**2:
            return
        squared = exact_square_sum(steps)
        if squared > bound**2:
            raise self._too_long(math.sqrt(squared))

    def _refusal(self, update: NDArray[Any]) -> CodecError:
        """Of an update that is not finite, or of which a part alone is too long."""
        if bad := int((~np.isfinite(update)).sum()):
            return CodecError(
                f"update: {bad} of {self.dimension} coordinates are NaN or infinite. Drop this client"
            )
        with np.errstate(over="ignore"):
            return self._too_long(float(np.abs(update.astype(np.float64)).max()) * self.scale)

    @cached_property
    def _bound(self) -> float:
        return float(self._exact_bound)

    @cached_property
    def _exact_bound(self) -> Fraction:
        return Fraction(self.clip_norm) * Fraction(self.scale)

    def _too_long(self, steps: float) -> CodecError:
        return CodecError(
            f"update: its norm on the grid, at least {steps / self.scale:.9g}, exceeds the clip norm "
            f"{self.clip_norm}. "
            f"Clip to {self.clip_norm - self.rounding_slack:.9g}, which leaves room for rounding"
        )


def _check_arguments(cohort_size: int, clip_norm: float, dimension: int) -> None:
    if cohort_size < 1:
        raise ParameterError(f"cohort_size: must be at least 1 (got {cohort_size})")
    if dimension < 1:
        raise ParameterError(f"dimension: must be at least 1 (got {dimension})")
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ParameterError(f"clip_norm: must be positive and finite (got {clip_norm})")


def _too_coarse(cohort_size: int, dimension: int, ring_bits: int, why: str) -> ParameterError:
    remedy = "Use a larger ring_bits, up to 64, or a smaller cohort" if ring_bits < 64 else "Use a smaller cohort"
    return ParameterError(
        f"ring_bits: {ring_bits} bits are too coarse for {cohort_size} clients of dimension {dimension}: "
        f"{why}. {remedy}"
    )
