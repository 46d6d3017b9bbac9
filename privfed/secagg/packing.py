"""The form of ring vectors on the wire, written and read in blocks that stay in the cache.

Elements of ``bits`` bits are packed in planes, one for each power of two in ``bits``: with 26 = 16 + 8 + 2, the
lowest 16 bits of every element come first, then of every element the next 8, then the next 2. Each plane is filled
up with zeros to whole bytes. A plane of 8 bits or more is little-endian; below that, the first element is in the
lowest bits of a byte. Full widths are packed as they are, and not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 15
"""Elements, of which a plane has whole bytes: a multiple of 8."""

_WIDTHS = (64, 32, 16, 8, 4, 2, 1)


def packed_bytes(length: int, bits: int) -> int:
    """Bytes of a packed vector ``[length]``."""
    return sum(_size(length, width) for width in _WIDTHS if bits & width)


def pack(values: NDArray[Any], bits: int) -> memoryview:
    """The packed form of ``values`` ``[length]``, of the ring's type.

    Raises:
        ValueError: An element is out of range.
    """
    if bits == 8 * values.itemsize:
        return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).data
    packed = np.empty(packed_bytes(len(values), bits), np.uint8)
    planes = list(_planes(len(values), bits))
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        if int(block.max()) >> bits:
            raise ValueError(f"input vector: an element has more than {bits} bits")
        for plane in planes:
            plane.write(block, packed[plane.bytes_of(start, len(block))])
    return packed.data


def check_filling(packed: memoryview, length: int, bits: int) -> None:
    """Refuse a second form of the same vector.

    Raises:
        ValueError: The bits that fill up a plane are not zero.
    """
    for plane in _planes(length, bits):
        if used := length * plane.width % 8:
            last = packed[plane.first + _size(length, plane.width) - 1]
            if last >> used:
                raise ValueError("the vector is not filled up with zeros")


def unpacked(packed: memoryview, length: int, bits: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, Any]]:
    """Where each block starts, and its elements, in space that the next block uses; full widths are views."""
    data = np.frombuffer(packed, np.uint8)
    if bits == 8 * dtype.itemsize:
        yield 0, data.view(dtype.newbyteorder("<"))
        return
    lowest, *others = _planes(length, bits)
    room, shifted = np.empty((2, min(BLOCK, length)), dtype)
    for start in range(0, length, BLOCK):
        size = min(BLOCK, length - start)
        block, part = room[:size], shifted[:size]
        block[...] = lowest.read(data[lowest.bytes_of(start, size)], size)
        for plane in others:
            part[...] = plane.read(data[plane.bytes_of(start, size)], size)
            np.left_shift(part, dtype.type(plane.shift), out=part)
            np.bitwise_or(block, part, out=block)
        yield start, block


@dataclass(frozen=True)
class _Plane:
    """Bits ``shift`` to ``shift + width`` of every element, from byte ``first`` of the packed form."""

    width: int
    shift: int
    first: int

    def bytes_of(self, start: int, size: int) -> slice:
        """Where a block of ``size`` elements is; ``start`` is a multiple of 8."""
        at = self.first + start * self.width // 8
        return slice(at, at + _size(size, self.width))

    def write(self, block: NDArray[Any], target: NDArray[np.uint8]) -> None:
        part = block >> block.dtype.type(self.shift) if self.shift else block
        if self.width >= 8:
            target.view(f"<u{self.width // 8}")[...] = part
            return
        together = 8 // self.width
        few = np.zeros(len(target) * together, np.uint8)
        np.bitwise_and(part, block.dtype.type((1 << self.width) - 1), out=few[: len(part)], casting="unsafe")
        # All that share a byte are the bytes of one integer, and are moved together in halving steps.
        wide = few.view(f"<u{together}")
        for step in self._steps():
            wide |= wide >> wide.dtype.type((8 - self.width) * step)
        target[...] = wide

    def read(self, source: NDArray[np.uint8], size: int) -> NDArray[Any]:
        if self.width >= 8:
            return source.view(f"<u{self.width // 8}")
        wide = source.astype(f"<u{8 // self.width}")
        for step in reversed(self._steps()):
            wide |= wide << wide.dtype.type((8 - self.width) * step)
            wide &= wide.dtype.type(self._mask(step))
        return wide.view(np.uint8)[:size]

    def _steps(self) -> list[int]:
        return [step for step in (1, 2, 4) if step * self.width < 8]

    def _mask(self, step: int) -> int:
        group = (1 << (step * self.width)) - 1
        return sum(group << (8 * at) for at in range(0, 8 // self.width, step))


def _planes(length: int, bits: int) -> Iterator[_Plane]:
    shift = first = 0
    for width in _WIDTHS:
        if bits & width:
            yield _Plane(width, shift, first)
            shift, first = shift + width, first + _size(length, width)


def _size(length: int, width: int) -> int:
    return -(-length * width // 8)
