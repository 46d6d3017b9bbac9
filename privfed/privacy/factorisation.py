"""Strategies of correlated noise: lower-triangular matrices ``C`` that factor the prefix sums, ``A = B·C``.

Round t releases the sum of its clipped updates ``X_t`` plus row t of ``C⁻¹·Z``, where the rows of ``Z`` ``[T, d]``
are independent Gaussian noise. What all rounds release together is a function of ``C·X + Z`` and the other way
round: one Gaussian mechanism (Denisov et al. 2022, Theorem 2.1: also when ``X_t`` depends on earlier releases,
since ``C`` is lower triangular). The prefix sums, which is where the model is after t rounds of plain SGD, carry
the noise ``B·Z`` with ``B = A·C⁻¹``. Only prefix sums count as error here: server momentum and a learning rate
that falls are run on top of them, and no strategy is fitted to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from privfed.privacy.correlated_sensitivity import Bound, banded_sensitivity, gram_sensitivity
from privfed.privacy.errors import PrivacyError
from privfed.privacy.toeplitz import best_coefficients

Array = NDArray[np.float64]

ENTRY_BITS = 16
"""Entries of banded strategies are multiples of ``2^-ENTRY_BITS``, so that integer noise can use the same ones."""
SMALLEST_DIAGONAL = 2.0**-8
"""Smallest entry on the diagonal of a banded strategy."""


class Strategy(Protocol):
    """One way to correlate the noise of ``rounds`` rounds."""

    @property
    def rounds(self) -> int:
        """Rounds that it is made for: ``T``."""
        ...

    def matrix(self) -> Array:
        """``C``: lower triangular, its diagonal positive, ``[T, T]``."""
        ...

    def sensitivity(self, participations: int, separation: int) -> Bound:
        """How far one client can move ``C·X`` when each update has norm 1 at most, in L2 norm of all of it.

        Neighbours differ in one client's updates, which are zero in one of the two runs. For replaced updates
        double it.

        Args:
            participations: Rounds that the client takes part in, at most.
            separation: Rounds from one participation to the next, at least; 1 for no limit.

        Raises:
            PrivacyError: An argument is below 1.
        """
        ...

    def describe(self) -> str:
        """In the words of a report."""
        ...


@dataclass(frozen=True)
class Banded:
    """``C[t, s] = c[t - s] / norm[s]`` on ``bands`` diagonals (Choquette-Choo et al. 2023, "(Amplified) Banded").

    Attributes:
        rounds: ``T``.
        coefficients: ``c``, starting with a positive one.
        normalised: Whether columns are scaled to norm 1. The last ``bands - 1`` columns of a Toeplitz matrix are
            cut off by its end and so shorter; scaled up, the last rounds have less noise at the same sensitivity.
    """

    rounds: int
    coefficients: tuple[float, ...]
    normalised: bool = True

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)
        if not 1 <= self.bands <= self.rounds:
            raise PrivacyError(f"must be from 1 to {self.rounds}, the rounds", where="bands", value=self.bands)
        if not all(map(math.isfinite, self.coefficients)):
            raise PrivacyError("must be finite", where="coefficients")
        if self.diagonals[0].min() < SMALLEST_DIAGONAL:  # which rounds divide by
            raise PrivacyError(f"the first one is below {SMALLEST_DIAGONAL:g} of their norm", where="coefficients")

    @property
    def bands(self) -> int:
        """Diagonals that are not zero: row t of ``C`` reaches back to column ``t - bands + 1``."""
        return len(self.coefficients)

    @cached_property
    def diagonals(self) -> Array:
        """``diagonals[j, s] = C[s + j, s]``, zero beyond the last row, ``[bands, T]``."""
        inside = np.arange(self.bands)[:, None] + np.arange(self.rounds) < self.rounds
        entries = np.where(inside, np.array(self.coefficients)[:, None], 0.0)
        if self.normalised:
            entries /= np.sqrt(np.square(entries).sum(axis=0))
        rounded: Array = np.rint(entries * 2.0**ENTRY_BITS) / 2.0**ENTRY_BITS
        rounded.setflags(write=False)
        return rounded

    def row(self, t: int) -> Array:
        """``C[t, t], C[t, t-1], …`` of row ``t`` from 0, as far as the band and the first round allow."""
        back = np.arange(min(self.bands, t + 1))
        entries: Array = self.diagonals[back, t - back]
        return entries

    def matrix(self) -> Array:
        """``C``, ``[T, T]``."""
        dense = np.zeros((self.rounds, self.rounds))
        for j, diagonal in enumerate(self.diagonals):
            s = np.arange(self.rounds - j)
            dense[s + j, s] = diagonal[: self.rounds - j]
        return dense

    def sensitivity(self, participations: int, separation: int) -> Bound:
        """Exact where ``bands <= separation``: then a client's columns do not overlap."""
        if self.bands <= separation:
            return banded_sensitivity(np.square(self.diagonals).sum(axis=0), participations, separation)
        matrix = self.matrix()
        return gram_sensitivity(matrix.T @ matrix, participations, separation)

    def describe(self) -> str:
        """In the words of a report."""
        if self.bands == 1:
            return "independent noise"
        return f"banded matrix factorisation, {self.bands} bands over {self.rounds} rounds"


@dataclass(frozen=True)
class BinaryTree:
    """Binary-tree aggregation with Honaker's estimate from below (Honaker 2015; Kairouz et al. 2021).

    Every node of a binary tree over the rounds is a noisy sum of its rounds. A prefix sum is the sum of the nodes
    of its binary decomposition, each of them not as it is, but averaged with the sum of its two children's
    estimates by inverse variances: at level l, of 2^l rounds, an estimate has variance ``v(l) = 2^l / (2^(l+1) -
    1)``. No later node is used, so this is the best unbiased estimate that the noisy nodes finished by then allow.

    Of the nodes that round t finishes only the topmost is ever used again, and the fresh noise of all of them
    enters its estimate together, with variance ``s(k)²``, ``s(0) = 1``, ``s(l)² = v(l)² + (1-v(l))²·s(l-1)²``,
    where 2^k is the largest power of two that divides t. So one noise vector a round is enough, ``B`` is square
    and lower triangular, and ``C = B⁻¹·A`` is an ordinary strategy of exactly what is released. Its sensitivity is
    below that of the tree with all its ``2T - 1`` nodes, which are not released (3.08 for 3.32 at 1,024 rounds,
    one participation).

    Attributes:
        rounds: ``T``; any number, not powers of two only.
    """

    rounds: int

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    @property
    def levels(self) -> int:
        """Levels of nodes that are ever finished."""
        return self.rounds.bit_length()

    @cached_property
    def weights(self) -> Array:
        """``v``: weight of a node's noisy sum in its estimate; also the estimate's variance; ``[levels]``."""
        size = 2.0 ** np.arange(self.levels)
        return np.asarray(size / (2 * size - 1))

    @cached_property
    def fresh_stddevs(self) -> Array:
        """``s``: of the fresh noise in an estimate, by level, ``[levels]``."""
        variance = [1.0]
        for v in self.weights[1:]:
            variance.append(v**2 + (1 - v) ** 2 * variance[-1])
        return np.sqrt(variance)

    @staticmethod
    def level(t: int) -> int:
        """Of the topmost node that round ``t``, from 1, finishes."""
        return (t & -t).bit_length() - 1

    def matrix(self) -> Array:
        """``C``, all of it 0 or more, ``[T, T]``.

        Row t, solved for its fresh noise, is the estimate of the topmost node, less the share that the estimates
        of its left child, that node's right child's left child and so on have in it.
        """
        dense = np.zeros((self.rounds, self.rounds))
        for t in range(1, self.rounds + 1):
            top = self.level(t)
            start, children = t - 2**top, 1.0
            for level in range(top, 0, -1):
                children *= 1 - self.weights[level]
                dense[t - 1, start : start + 2 ** (level - 1)] = 1 - children
                start += 2 ** (level - 1)
            dense[t - 1, t - 1] = 1.0
            dense[t - 1] /= self.fresh_stddevs[top]
        return dense

    def sensitivity(self, participations: int, separation: int) -> Bound:
        """By search: exact in most cases, else an upper bound."""
        matrix = self.matrix()
        return gram_sensitivity(matrix.T @ matrix, participations, separation)

    def describe(self) -> str:
        """In the words of a report."""
        return f"binary tree over {self.rounds} rounds, estimated from below"


@dataclass(frozen=True)
class Error:
    """Standard deviation of the noise in prefix sums at noise multiplier 1 and clip norm 1.

    Attributes:
        root_mean_square: Over all rounds.
        largest: Of any round.
    """

    root_mean_square: float
    largest: float


def identity(rounds: int) -> Banded:
    """Independent noise in every round: DP-SGD without amplification."""
    return Banded(rounds, (1.0,))


def tree(rounds: int) -> BinaryTree:
    """Binary-tree aggregation."""
    return BinaryTree(rounds)


def banded(rounds: int, bands: int) -> Banded:
    """The banded strategy of least mean squared error of the prefix sums.

    Of all banded Toeplitz matrices, before its columns are normalised: within 3 % of the best matrix there is
    (Denisov et al. 2022) with ``bands = rounds`` and one participation. More bands, up to the separation of
    participations, have less error; noise takes memory for ``bands - 1`` vectors.

    Raises:
        PrivacyError: ``bands`` is not from 1 to ``rounds``.
    """
    _check_rounds(rounds)
    if not 1 <= bands <= rounds:
        raise PrivacyError(f"must be from 1 to {rounds}, the rounds", where="bands", value=bands)
    return Banded(rounds, best_coefficients(rounds, bands))


def prefix_error(strategy: Strategy, participations: int, separation: int) -> Error:
    """Of all prefix sums, each coordinate, per unit of clip norm and noise multiplier: ``sensitivity · |rows of
    B|``.

    Strategies compare by it at equal privacy. Dense: ``T³/3`` multiplications.
    """
    matrix = strategy.matrix()
    factor = solve_triangular(matrix.T, np.triu(np.ones(matrix.shape)), lower=False)  # B, transposed
    variances = np.square(factor).sum(axis=0)
    sensitivity = strategy.sensitivity(participations, separation).value
    return Error(sensitivity * math.sqrt(variances.mean()), sensitivity * math.sqrt(variances.max()))


def _check_rounds(rounds: int) -> None:
    if not (isinstance(rounds, int) and rounds >= 1):
        raise PrivacyError("must be an integer of at least 1", where="rounds", value=rounds)
