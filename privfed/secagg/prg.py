"""Masks: an AES-256-CTR keystream added straight into a ring vector, block by cache-sized block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

BLOCK_BYTES = 256 * 1024
"""Keystream and target of one block stay in the second-level cache while every mask passes over them."""

_ZEROS = bytes(BLOCK_BYTES)


def keystream(key: bytes, initial_counter: bytes = bytes(16)) -> CipherContext:
    """AES-256-CTR (NIST SP 800-38A, section 6.5); encrypting zeros yields the stream.

    The counter starts at zero because every key is derived for one stream and used for no other.
    """
    return Cipher(algorithms.AES256(key), modes.CTR(initial_counter)).encryptor()


def apply_masks(vector: NDArray[Any], added: Sequence[bytes], subtracted: Sequence[bytes]) -> None:
    """Add and subtract the keystreams of 32-byte keys in place, modulo the width of the ring.

    The stream is read as little-endian integers on every machine.

    Args:
        vector: ``[dimension]``, uint32 or uint64, contiguous, writable.
        added: Keys whose stream is added.
        subtracted: Keys whose stream is subtracted.
    """
    streams = [(keystream(key), np.add) for key in added] + [(keystream(key), np.subtract) for key in subtracted]
    block = min(BLOCK_BYTES // vector.itemsize, len(vector))
    scratch = np.empty(block, dtype=vector.dtype.newbyteorder("<"))
    scratch_bytes = scratch.view(np.uint8).data
    zeros = memoryview(_ZEROS)
    for start in range(0, len(vector), block):
        target = vector[start : start + block]
        mask, size = scratch[: len(target)], target.nbytes
        source, sink = zeros[:size], scratch_bytes[:size]
        for stream, operation in streams:
            stream.update_into(source, sink)
            operation(target, mask, out=target)
