"""Several coordinates in one 64-bit word, in mixed radix: what a ring of 64 bits has room for, and no more.

With every coordinate of a cohort's sum in ``[-half, half]`` and ``radix = 2 * half + 1``, a word holds ``count``
signed digits, ``d[0] + d[1] * radix + d[2] * radix**2 + ...``. Words of clients add up modulo ``2**64`` to the
word of the sums: while these stay in range no digit carries into the next, and with ``radix**count <= 2**64`` the
words of different sums differ. Their masks are uniform modulo ``2**64``, as those of any other ring vector.

Three digits a word take 21 1/3 bits a coordinate for keystream and wire, where a ring of 22 bits takes 32 in
memory and has to be packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64
MIN_COUNT, MAX_COUNT = 3, 8
"""With two, a ring of 32 bits or fewer does as well; with more than eight there are no 8 bits left."""

_BLOCK = 1 << 14


def largest_half(count: int) -> int:
    """Largest sum, up or down, for which ``count`` digits fit into a word."""
    radix = round(2 ** (WORD_BITS / count))
    while radix**count > 2**WORD_BITS:
        radix -= 1
    return (radix - 1) // 2


@dataclass(frozen=True)
class Lanes:
    """Coordinates ``[dimension]`` in words ``[length]``: lane 0 has the first ``length`` of them, and so on.

    Attributes:
        count: Coordinates in a word.
        half: Largest sum of a coordinate, up or down: at most ``largest_half(count)``.
        dimension: Coordinates in all; the last lane may be shorter than the others.
    """

    count: int
    half: int
    dimension: int

    @property
    def length(self) -> int:
        """Words."""
        return -(-self.dimension // self.count)

    @property
    def radix(self) -> int:
        """What one lane is to the one below."""
        return 2 * self.half + 1

    def add(self, words: NDArray[np.uint64], start: int, digits: NDArray[Any]) -> None:
        """Add signed integers ``[n]``, coordinates ``start`` to ``start + n``, to ``words`` ``[length]``."""
        room = np.empty(min(_BLOCK, len(digits)), np.int64)
        signed = words.view(np.int64)  # adds up to the same bits
        for lane, place, part in self._parts(start, len(digits)):
            target, scaled = signed[place], room[: part.stop - part.start]
            scaled[...] = digits[part]
            if lane:
                np.multiply(scaled, self.radix**lane, out=scaled)
            np.add(target, scaled, out=target)

    def blocks(self, words: NDArray[np.uint64]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """Of ``words`` ``[length]``, which coordinates are in each block, and their signed integers.

        They are from ``-half`` to ``half`` wherever ``words`` is a sum that this is for.
        """
        radix, offset = np.uint64(self.radix), self.half * sum(self.radix**lane for lane in range(self.count))
        for start in range(0, self.length, _BLOCK):
            rest = words[start : start + _BLOCK] + np.uint64(offset)
            for lane in range(self.count):
                # What is left for the last lane is its digit.
                above = rest // radix if lane < self.count - 1 else np.zeros_like(rest)
                first = lane * self.length + start
                place = slice(first, min(first + len(rest), (lane + 1) * self.length, self.dimension))
                digits = (rest - above * radix).view(np.int64)
                digits -= self.half
                yield place, digits[: max(place.stop - place.start, 0)]
                rest = above

    def _parts(self, start: int, size: int) -> Iterator[tuple[int, slice, slice]]:
        """Blocks of coordinates of one lane: the lane, where its words are, and where the block is in its row."""
        done = 0
        while done < size:
            lane, at = divmod(start + done, self.length)
            taken = min(size - done, self.length - at, _BLOCK)
            yield lane, slice(at, at + taken), slice(done, done + taken)
            done += taken
