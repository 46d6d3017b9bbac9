"""Vectors of integers modulo ``2**bits``: how they are held, and how they are packed for the wire.

They are held in the narrowest of uint16, uint32 and uint64, and added up modulo that: ``2**bits`` divides it, so
that nothing is lost before ``reduce``. They are packed in planes, one for each power of two in ``bits``: with 26 =
16 + 8 + 2, the lowest 16 bits of every element come first, then of every element the next 8, then the next 2. Each
plane is filled up with zeros to whole bytes. A plane of 8 bits or more is little-endian; below that, the first
element is in the lowest bits of a byte. Full widths are packed as they are, and not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg.errors import InputError, ParameterError

MIN_BITS, MAX_BITS = 8, 64
_PLANES = (64, 32, 16, 8, 4, 2, 1)


def check_bits(bits: int) -> None:
    """Refuse a ring that there is not.

    Raises:
        ParameterError: ``bits`` is not from 8 to 64.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ParameterError(f"ring_bits: must be from {MIN_BITS} to {MAX_BITS} (got {bits})")


def dtype_of(bits: int) -> np.dtype[Any]:
    """NumPy type of an element."""
    return np.dtype(np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)


def reduce(vector: NDArray[Any], bits: int) -> None:
    """Take ``vector``, of the ring's type, modulo ``2**bits`` in place."""
    if bits < 8 * vector.itemsize:
        np.bitwise_and(vector, vector.dtype.type((1 << bits) - 1), out=vector)


def to_signed(vector: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """``vector`` ``[length]`` of the ring's type, reduced or not, with the upper half of the ring negative."""
    # The ring's sign bit to the top and back, so that it fills what is above it.
    unused = 8 * vector.itemsize - bits
    signed = (vector << vector.dtype.type(unused)).view(f"i{vector.itemsize}")
    wide: NDArray[np.int64] = (signed >> signed.dtype.type(unused)).astype(np.int64)
    return wide


def packed_bytes(length: int, bits: int) -> int:
    """Bytes of a packed vector ``[length]``."""
    return sum(-(-length * width // 8) for width, _ in _planes(bits))


@dataclass(frozen=True, eq=False)
class RingVector:
    """Integers ``[length]`` in ``[0, 2**bits)``, read-only.

    Attributes:
        bits: From 8 to 64.
        values: Of type ``dtype_of(bits)``.

    Raises:
        InputError: Wrong type or shape.
    """

    bits: int
    values: NDArray[Any]

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, np.ndarray) or values.ndim != 1 or not MIN_BITS <= self.bits <= MAX_BITS:
            raise InputError(f"input vector: must be one row of elements of {MIN_BITS} to {MAX_BITS} bits")
        if values.dtype != dtype_of(self.bits):
            raise InputError(
                f"input vector: of {self.bits} bits, must be {dtype_of(self.bits)} (got {values.dtype})"
            )
        view = values.view()
        view.flags.writeable = False
        object.__setattr__(self, "values", view)

    @cached_property
    def packed(self) -> bytes | memoryview:
        """The packed form.

        Raises:
            ValueError: An element is out of range.
        """
        if self.bits < 8 * self.values.itemsize and self.values.size and int(self.values.max()) >> self.bits:
            raise ValueError(f"input vector: an element has more than {self.bits} bits")
        planes = [_write_plane(self.values, width, shift) for width, shift in _planes(self.bits)]
        return planes[0] if len(planes) == 1 else b"".join(planes)

    @classmethod
    def unpack(cls, bits: int, length: int, packed: bytes | memoryview) -> RingVector:
        """The vector that ``packed``, of ``packed_bytes``, is the form of; full widths are views of it.

        Raises:
            ValueError: The bits that fill up a plane are not zero.
        """
        data, dtype, at = memoryview(packed), dtype_of(bits), 0
        values: NDArray[Any] | None = None
        for width, shift in _planes(bits):
            size = -(-length * width // 8)
            plane = _read_plane(data[at : at + size], width, length)
            at += size
            if values is None:
                values = plane.astype(dtype, copy=False)
            else:
                wide = plane.astype(dtype)
                np.left_shift(wide, dtype.type(shift), out=wide)
                np.bitwise_or(values, wide, out=values)
        assert values is not None  # there is a plane
        vector = cls(bits, values)
        vars(vector)["packed"] = data  # the one packed form there is
        return vector


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """Width of each plane, and where in an element it begins."""
    shift = 0
    for width in _PLANES:
        if bits & width:
            yield width, shift
            shift += width


def _write_plane(values: NDArray[Any], width: int, shift: int) -> bytes | memoryview:
    part = values >> values.dtype.type(shift) if shift else values
    if width >= 8:
        little = np.ascontiguousarray(part, dtype=f"<u{width // 8}")
        return little.view(np.uint8).data
    per_byte = 8 // width
    few = np.zeros(-(-len(part) // per_byte) * per_byte, np.uint8)
    np.bitwise_and(part, values.dtype.type((1 << width) - 1), out=few[: len(part)], casting="unsafe")
    packed = few[::per_byte].copy()
    for place in range(1, per_byte):
        packed |= few[place::per_byte] << np.uint8(place * width)
    return packed.data


def _read_plane(data: memoryview, width: int, length: int) -> NDArray[Any]:
    if width >= 8:
        return np.frombuffer(data, f"<u{width // 8}")
    per_byte = 8 // width
    packed = np.frombuffer(data, np.uint8)
    few = np.empty((len(packed), per_byte), np.uint8)
    for place in range(per_byte):
        few[:, place] = (packed >> np.uint8(place * width)) & np.uint8((1 << width) - 1)
    flat = few.ravel()
    if flat[length:].any():
        raise ValueError("the vector is not filled up with zeros")
    return flat[:length]
