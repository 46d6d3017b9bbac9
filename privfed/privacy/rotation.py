"""The randomised Hadamard transform: it spreads a vector evenly over its coordinates and keeps every distance.

A vector that sits in few coordinates would force a coarse grid on all of them. After the rotation each coordinate
is sub-Gaussian with variance ``norm² / padded`` over the choice of the signs (Kairouz, Liu & Steinke 2021,
section 4.2), so that one scale suits all vectors of one norm.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.errors import PrivacyError

MAX_DIMENSION = 2**30
FACTOR_BITS = 6
"""Butterflies of so many levels are one matrix product, which BLAS does faster than NumPy adds."""
_BLOCK = 32
"""Rows or columns in one product: so few that BLAS leaves it to one thread: their number would show in the
bits of float32."""
DOMAIN = b"privfed rotation signs v1"


def padded_dimension(dimension: int) -> int:
    """The smallest power of two that is at least ``dimension``.

    Raises:
        PrivacyError: ``dimension`` is not from 1 to ``MAX_DIMENSION``.
    """
    if not 1 <= dimension <= MAX_DIMENSION:
        raise PrivacyError(f"must be from 1 to {MAX_DIMENSION}", where="dimension", value=dimension)
    return 1 << (dimension - 1).bit_length()


@dataclass(frozen=True)
class Rotation:
    """``H · diag(signs) / sqrt(padded)`` on zero-padded vectors: orthonormal, the same for all clients of a round.

    The signs are public, and no secret hangs on them. What hangs on their being chosen independently of the
    updates is only how evenly these spread, and so how likely a sum is to leave the ring.

    Attributes:
        dimension: Length of the vectors.
        seed: Integers that say which signs, such as the run's seed and the round; each in ``[0, 2**64)``.
    """

    dimension: int
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        padded_dimension(self.dimension)
        if not self.seed or any(not 0 <= part < 2**64 for part in self.seed):
            raise PrivacyError("must be integers in [0, 2^64), at least one", where="seed", value=self.seed)

    @property
    def padded(self) -> int:
        """Length of rotated vectors."""
        return padded_dimension(self.dimension)

    def apply(self, vector: NDArray[Any]) -> NDArray[Any]:
        """Rotate ``[dimension]`` to ``[padded]``, of the same type: float32 or float64.

        Raises:
            PrivacyError: Wrong shape or type.
        """
        self._check(vector, self.dimension)
        rotated = np.zeros(self.padded, vector.dtype)
        np.multiply(vector, self._signs(vector.dtype), out=rotated[: self.dimension])
        return hadamard_transform(rotated)

    def invert(self, rotated: NDArray[Any]) -> NDArray[Any]:
        """Back from ``[padded]`` to ``[dimension]``, of the same type.

        Raises:
            PrivacyError: Wrong shape or type.
        """
        self._check(rotated, self.padded)
        vector: NDArray[Any] = hadamard_transform(rotated)[: self.dimension] * self._signs(rotated.dtype)
        return vector

    def _signs(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        # SHAKE, so that the signs do not depend on the version of anything; those of the padding are never used.
        key = DOMAIN + len(self.seed).to_bytes(4, "little")
        key += b"".join(part.to_bytes(8, "little") for part in self.seed)
        stream = hashlib.shake_128(key).digest((self.dimension + 7) // 8)
        bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=self.dimension)
        return np.array([1, -1], dtype)[bits]

    @staticmethod
    def _check(vector: NDArray[Any], length: int) -> None:
        if vector.shape != (length,) or vector.dtype not in (np.float32, np.float64):
            raise PrivacyError(
                f"must be float32 or float64 of shape ({length},) (got {vector.dtype} {vector.shape})",
                where="vector",
            )


def hadamard_transform(vector: NDArray[Any]) -> NDArray[Any]:
    """The orthonormal Walsh-Hadamard transform (Sylvester's order) of ``[2**k]``, its own inverse.

    ``H`` of ``2**k`` is a Kronecker product of small ``H``; each factor acts along its own axis.

    Raises:
        PrivacyError: The length is no power of two.
    """
    size = len(vector)
    if size < 1 or size & (size - 1):
        raise PrivacyError("the length must be a power of two", where="vector", value=size)
    result = np.ascontiguousarray(vector)
    levels, stride = size.bit_length() - 1, 1
    while levels > 0:
        bits = min(FACTOR_BITS, levels)
        factor = _hadamard_matrix(bits, result.dtype.str)
        if stride == 1:
            rows = size >> bits
            result = result.reshape(-1, min(_BLOCK, rows), 1 << bits) @ factor  # symmetric: may stand on the right
        else:
            block = min(_BLOCK, stride)
            columns = result.reshape(-1, 1 << bits, stride // block, block).swapaxes(1, 2)
            result = np.empty(
                (size >> (bits + stride.bit_length() - 1), 1 << bits, stride // block, block), factor.dtype
            )
            np.matmul(factor, columns, out=result.swapaxes(1, 2))
        stride <<= bits
        levels -= bits
    return result.reshape(size) if size > 1 else result.copy()


@lru_cache(maxsize=4 * FACTOR_BITS)
def _hadamard_matrix(bits: int, dtype: str) -> NDArray[Any]:
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    normalised: NDArray[Any] = (matrix / np.sqrt(1 << bits)).astype(dtype)
    normalised.setflags(write=False)
    return normalised
