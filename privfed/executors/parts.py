"""Sums of many clients whose every bit depends on the cohort alone: not on threads, workers or machines.

A cohort is cut into parts by nothing but the cohort, the population, the training and the way to a sum. Each part
is added up in one piece of code, in order; the parts' sums are added in pairs, those in pairs, and so on: a tree
that is fixed by their number. Whoever adds up a subtree gets the bits that everybody else would get.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_EXAMPLES = 256
"""Of a part, on average, beyond the first ``FEWEST``: with fewer, adding up would be dear beside the training."""

LEAST_WORK = 1 << 24
"""Of a part likewise: examples times weights, without which starting a call would be dear."""

FEWEST = 16
"""Parts of any cohort that has as many clients: what keeps threads busy."""


class Node(NamedTuple):
    """The parts ``place << level`` up to ``(place + 1) << level``, as far as there are so many."""

    level: int
    place: int

    def parts(self, count: int) -> range:
        """Numbers of the parts, of ``count``."""
        return range(self.place << self.level, min((self.place + 1) << self.level, count))


def cut(work: NDArray[np.float64], dimension: int, least_examples: int = 1) -> Iterator[NDArray[np.int64]]:
    """Positions ``0 … len(work) - 1`` in consecutive parts of about the same work.

    Args:
        work: Examples that each client trains on, as often as it does, ``[clients]``.
        dimension: Weights of the model.
        least_examples: Of each part, by the way that their sum is made.
    """
    total = float(work.sum())
    count = max(FEWEST, int(min(total / LEAST_EXAMPLES, total * dimension / LEAST_WORK)))
    count = max(1, min(count, len(work), -int(-total // least_examples)))
    # A client costs something whatever it has; the middle of its work decides whose it is.
    ends = np.cumsum(work + 1)
    owner = ((ends - (work + 1) / 2) * count / max(1.0, ends[-1] if len(ends) else 1.0)).astype(np.int64)
    edges = np.flatnonzero(np.diff(owner)) + 1
    yield from (part for part in np.split(np.arange(len(work)), edges) if len(part))


def nodes(count: int, wanted: int, fewest_parts: int) -> list[Node]:
    """The tree over ``count`` parts as subtrees of one level, about ``wanted`` of them or up to twice as many.

    Args:
        count: Parts in all.
        wanted: Subtrees to share out.
        fewest_parts: That keep whoever takes a subtree busy.
    """
    level = max((max(1, count // wanted)).bit_length() - 1, (fewest_parts - 1).bit_length())
    return [Node(level, place) for place in range(-(-count >> level))]


class TreeSum:
    """The sum of ``count`` float64 vectors ``[d]``, given in any order, from any thread.

    It keeps as few as the order allows: with neighbours one after the other, the logarithm of their number.
    Vectors are added to in place, and so belong to the sum.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: dict[Node, NDArray[np.float64]] = {}
        self._lock = threading.Lock()
        self._root: NDArray[np.float64] | None = None

    def add(self, node: Node, vector: NDArray[np.float64]) -> None:
        """The sum of all parts below ``node``; a part is a node of level 0."""
        level, place = node
        while (size := -(-self._count >> level)) > 1:
            # Without a sibling, which happens at the right edge alone, a sum rises as it is.
            if place ^ 1 < size:
                with self._lock:
                    other = self._waiting.pop(Node(level, place ^ 1), None)
                    if other is None:
                        self._waiting[Node(level, place)] = vector
                        return
                # Of two numbers the order does not matter, not even for the last bit.
                vector += other
            level, place = level + 1, place >> 1
        self._root = vector

    def total(self, dimension: int) -> NDArray[np.float64]:
        """The sum of all; zeros ``[dimension]`` where there is nothing to add.

        Raises:
            ValueError: Some part is missing.
        """
        if self._root is None:
            if self._count:
                raise ValueError(f"a sum of {self._count} parts lacks some of them")
            return np.zeros(dimension)
        return self._root
