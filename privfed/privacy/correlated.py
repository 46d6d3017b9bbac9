"""The noise of correlated strategies, round by round, from the few vectors that later rounds still need.

Both classes are pure: a state goes in and a state comes out, a tuple of arrays, to be checkpointed with the model.
A state is as secret as the sums are: with the releases it gives them away. Rows are counted from 1 and count
releases. A row is used once: after a round that is done again with fresh noise, or from another state, both
releases spend (``correlated_accounting``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError
from privfed.privacy.factorisation import ENTRY_BITS, Banded, BinaryTree
from privfed.privacy.noise import discrete_gaussian
from privfed.privacy.randomness import RandomSource, SeededSource

Vector = NDArray[np.float64]
State = tuple[NDArray[Any], ...]

GRID_BITS = 20
"""The grid that secure sums are rounded to is so many bits finer than the fresh noise's standard deviation."""
ROOM_FOR_NOISE = 2**44
"""More grid steps than secure noise ever has: 2^37 is the largest standard deviation."""


@dataclass(frozen=True)
class CorrelatedNoise:
    """Floating-point noise ``C⁻¹·Z`` (research mode).

    Attributes:
        strategy: What correlates it.
    """

    strategy: Banded | BinaryTree

    def initialize(self, dimension: int) -> State:
        """The state before row 1: how many rows are used, and ``memory`` arrays, ``[d]`` or (of a tree) empty."""
        return (np.array(0), *[np.zeros(0 if isinstance(self.strategy, BinaryTree) else dimension)] * self.memory)

    @property
    def memory(self) -> int:
        """Vectors ``[d]`` kept between rounds, at most: ``bands - 1``, or one for each level of a tree."""
        return self.strategy.levels if isinstance(self.strategy, BinaryTree) else self.strategy.bands - 1

    def step(self, state: State, row: int, fresh: Vector) -> tuple[Vector, State]:
        """Row ``row`` of ``C⁻¹·Z`` ``[d]`` and the next state, from row ``row`` of ``Z``.

        Args:
            state: After the row before.
            row: From 1.
            fresh: Independent Gaussian noise ``[d]``, the same standard deviation in every round.

        Raises:
            PrivacyError: The row is not the state's next one, or beyond the rounds that the strategy is made for.
        """
        check_row(state, row, self.strategy.rounds)
        kept = state[1:]
        if isinstance(self.strategy, BinaryTree):
            noise, kept = _tree_step(self.strategy, row, kept, fresh)
        else:
            entries = self.strategy.row(row - 1)
            noise = (fresh - weighted_sum(entries[1:], kept)) / entries[0]
            kept = remember(kept, noise)
        return noise, (np.array(row), *kept)


@dataclass(frozen=True)
class SecureCorrelatedNoise:
    """Noise on the integers, from the system's CSPRNG, for banded strategies only.

    Adding a rounded ``C⁻¹·Z`` to a sum would not do: its low bits are not those of any distribution that a proof
    speaks of. What is proven is ``Y = C·X + Z`` on one grid: ``X`` are sums rounded to multiples of ``grid``, the
    entries of ``C`` are multiples of ``2^-ENTRY_BITS``, so ``C·X`` is on the grid ``grid · 2^-ENTRY_BITS``
    exactly, and ``Z`` is discrete Gaussian on that same grid. Each row of ``Y`` then has the Rényi divergences of
    a Gaussian at most (Canonne, Kamath & Steinke 2020, Theorem 4), the rows' shifts are bounded together by the
    sensitivity whatever the releases before, and so they compose to those of one Gaussian (Feldman & Zrnic 2021,
    Theorem 3.1). What is released is ``C⁻¹·Y``, solved row by row from rows of ``Y`` and *earlier releases*, never
    from true sums: whatever floating point does to it is post-processing. In exact arithmetic it is ``X + C⁻¹·Z``.

    Rounding can lengthen a client's part of each sum by ``room``, for which the clip must leave room.

    A tree is refused. Its one noise vector a round stands for several nodes' noise, weighted by numbers on no
    common grid.

    Attributes:
        strategy: What correlates the noise.
        stddev: Of the fresh noise, in units of the sums; rounded up to a step of the noise's grid.
    """

    strategy: Banded
    stddev: float

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Banded):
            raise PrivacyError(
                "secure mode has no noise for this strategy", value=self.strategy, remedy="Use a banded strategy"
            )
        if not (math.isfinite(self.stddev) and self.stddev > 0):
            raise PrivacyError("must be a positive number", where="stddev", value=self.stddev)

    @property
    def grid(self) -> float:
        """Step of the grid of the sums: a power of two."""
        return math.ldexp(1.0, math.floor(math.log2(self.stddev)) - GRID_BITS)

    def room(self, dimension: int) -> float:
        """What rounding adds to the L2 distance of neighbouring sums ``[d]`` at most."""
        return math.sqrt(dimension) * self.grid

    @cached_property
    def largest(self) -> int:
        """Magnitude of a sum, in steps, up to which no row of ``C·X + Z`` leaves 63 bits."""
        magnitudes = np.abs(self.strategy.diagonals).max(axis=1)  # of any entry on each diagonal
        return (2**62 - ROOM_FOR_NOISE) // int(_steps(magnitudes, 2.0**-ENTRY_BITS).sum())

    def initialize(self, dimension: int) -> State:
        """The state before row 1: rows used, ``bands - 1`` rounded sums, and as many releases, each ``[d]``."""
        kept = self.strategy.bands - 1
        return (np.array(0), *[np.zeros(dimension, np.int64)] * kept, *[np.zeros(dimension)] * kept)

    def release(self, state: State, row: int, total: Vector, source: RandomSource) -> tuple[Vector, State]:
        """The noised sum ``[d]`` of row ``row``, from 1, and the next state.

        Args:
            state: After the row before.
            row: From 1.
            total: The sum of clipped updates ``[d]``.
            source: Of fresh noise.

        Raises:
            PrivacyError: The row is not the state's next one or beyond the strategy's rounds, the sum is not
                finite or too large for the grid, or the source is a seed.
        """
        check_row(state, row, self.strategy.rounds)
        if isinstance(source, SeededSource):
            raise PrivacyError("secure mode draws no noise from a seed", remedy="Pass a SystemSource")
        if not np.isfinite(total).all():
            raise PrivacyError("the sum is not finite, although every update in it was checked")
        if np.abs(total).max(initial=0.0) > (self.largest - 1) * self.grid:
            raise PrivacyError(
                f"the sum exceeds {self.largest * self.grid:g}, which the noise's grid cannot hold",
                where="noise_multiplier",
                value=self.stddev,
                remedy="Use more noise, or research mode",
            )
        kept = self.strategy.bands - 1
        sums, releases = state[1 : 1 + kept], state[1 + kept :]
        entries = self.strategy.row(row - 1)
        noise_grid = self.grid * 2.0**-ENTRY_BITS
        own = _steps(total, self.grid)
        # Integers from here to `noised`: this row of C·X + Z.
        noised = discrete_gaussian(math.ceil(self.stddev / noise_grid), len(total), source)
        for entry, value in zip(_steps(entries, 2.0**-ENTRY_BITS), (own, *sums[::-1]), strict=False):
            noised += entry * value
        released = (noised * noise_grid - weighted_sum(entries[1:], releases)) / entries[0]
        return released, (np.array(row), *remember(sums, own), *remember(releases, released))


def check_row(state: State, row: int, rounds: int) -> None:
    """Refuse a row that is not the state's next one, or that the strategy does not have."""
    if row != int(state[0]) + 1:
        raise PrivacyError(f"the state is after row {int(state[0])}", where="row", value=row)
    if row > rounds:
        raise PrivacyError(
            f"the noise is made for {rounds} rounds",
            where="row",
            value=row,
            remedy="More rounds need a strategy for them from the start, or a second release that composes",
        )


def weighted_sum(entries: Vector, vectors: State) -> Vector | float:
    """``entries[0] · vectors[-1] + entries[1] · vectors[-2] + …``, as far as ``entries`` go."""
    total: Vector | float = 0.0
    for entry, vector in zip(entries, vectors[::-1], strict=False):
        total = total + entry * vector
    return total


def remember(vectors: State, newest: NDArray[Any]) -> State:
    """The same number of vectors, the newest last; it is given away as well, and so made read-only."""
    if vectors:
        newest.setflags(write=False)
    return (*vectors[1:], newest) if vectors else ()


def _tree_step(tree: BinaryTree, row: int, nodes: State, fresh: Vector) -> tuple[Vector, State]:
    """What round ``row`` changes in the noise of the prefix sum, and the noise of that sum's nodes by level.

    The nodes that round ``row`` merges leave the prefix's binary decomposition (their arrays become empty), and
    the topmost node that it finishes joins it.
    """
    top = tree.level(row)
    estimate, merged = np.zeros_like(fresh), np.zeros_like(fresh)
    for level in range(top):
        # The estimates of a node's children are its left child, finished before, and the right one, just finished.
        estimate = (1 - tree.weights[level + 1]) * (nodes[level] + estimate)
        merged += nodes[level]
    estimate += tree.fresh_stddevs[top] * fresh
    kept = tuple(
        estimate if level == top else np.zeros(0) if level < top else node for level, node in enumerate(nodes)
    )
    return estimate - merged, kept


def _steps(values: Vector, grid: float) -> NDArray[np.int64]:
    steps: NDArray[np.int64] = np.rint(values / grid).astype(np.int64)
    return steps
