"""Vectors of integers modulo ``2**bits``.

They are held in the narrowest of uint16, uint32 and uint64, and added up modulo that: ``2**bits`` divides it, so
that nothing is lost before ``reduce``. ``privfed.secagg.packing`` has their form on the wire.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import packing
from privfed.secagg.errors import InputError, ParameterError

MIN_BITS, MAX_BITS = 8, 64


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


class RingVector:
    """Integers ``[length]`` in ``[0, 2**bits)``, read-only.

    Args:
        bits: From 8 to 64.
        values: Of type ``dtype_of(bits)``.

    Raises:
        InputError: Wrong type or shape.
    """

    def __init__(self, bits: int, values: NDArray[Any]) -> None:
        if not isinstance(values, np.ndarray) or values.ndim != 1 or not MIN_BITS <= bits <= MAX_BITS:
            raise InputError(f"input vector: must be one row of elements of {MIN_BITS} to {MAX_BITS} bits")
        if values.dtype != dtype_of(bits):
            raise InputError(f"input vector: of {bits} bits, must be {dtype_of(bits)} (got {values.dtype})")
        self.bits, self.length = bits, len(values)
        self.values = _read_only(values)

    @classmethod
    def unpack(cls, bits: int, length: int, packed: bytes | memoryview) -> RingVector:
        """The vector that ``packed``, of ``packed_bytes``, is the form of; its elements are read when asked for.

        Raises:
            ValueError: The bits that fill up a plane are not zero.
        """
        vector = cls.__new__(cls)
        vector.bits, vector.length, vector.packed = bits, length, memoryview(packed)
        packing.check_filling(vector.packed, length, bits)
        return vector

    @cached_property
    def values(self) -> NDArray[Any]:
        """Of type ``dtype_of(bits)``; of full widths that were unpacked, a view of the packed form."""
        dtype = dtype_of(self.bits)
        blocks = packing.unpacked(self.packed, self.length, self.bits, dtype)
        if self.bits == 8 * dtype.itemsize:
            ((_, values),) = blocks
            return _read_only(values.astype(dtype, copy=False))
        values = np.empty(self.length, dtype)
        for start, block in blocks:
            values[start : start + len(block)] = block
        return _read_only(values)

    @cached_property
    def packed(self) -> memoryview:
        """The packed form.

        Raises:
            ValueError: An element is out of range.
        """
        return packing.pack(self.values, self.bits)

    def add_to(self, total: NDArray[Any]) -> None:
        """Add it to ``total`` ``[length]``, of the same type, in place."""
        if "values" in vars(self):
            np.add(total, self.values, out=total)
            return
        for start, block in packing.unpacked(self.packed, self.length, self.bits, total.dtype):
            target = total[start : start + len(block)]
            np.add(target, block, out=target)


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view
