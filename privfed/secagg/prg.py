"""Masks: an AES-256-CTR keystream added straight into a ring vector, block by cache-sized block."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

BLOCK_BYTES = 256 * 1024
"""Keystream and target of one block stay in the second-level cache while every mask passes over them."""

AES_BLOCK_BYTES = 16
FIRST_BLOCK = 2
"""Counter of a stream's first block: where GCM with a nonce of zeros begins to encrypt."""

LEAST_BYTES_PER_WORKER = 8 * BLOCK_BYTES
"""Keystream below which starting a thread costs more than it saves."""

_ZEROS = bytes(BLOCK_BYTES)


def keystream(key: bytes, block: int = 0) -> CipherContext:
    """AES-256-CTR (NIST SP 800-38A, section 6.5) from ``block`` on; encrypting zeros yields the stream.

    The counter starts at the same place always because every key is derived for one stream and used for no other.
    """
    if not block and _gcm_is_faster():
        # GCM encrypts by counter mode (NIST SP 800-38D, section 7.1): the same bytes. Its tag is of no use here.
        return Cipher(algorithms.AES256(key), modes.GCM(bytes(12))).encryptor()
    return _counter_mode(key, block)


def _counter_mode(key: bytes, block: int) -> CipherContext:
    counter = (FIRST_BLOCK + block).to_bytes(AES_BLOCK_BYTES, "big")
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()


@cache
def _gcm_is_faster() -> bool:
    """Whether this machine has it so: OpenSSL has wider instructions for GCM, where the processor does."""
    sink, seconds = bytearray(BLOCK_BYTES), {}
    for mode in (modes.GCM(bytes(12)), modes.CTR(bytes(AES_BLOCK_BYTES))):
        stream = Cipher(algorithms.AES256(bytes(32)), mode).encryptor()
        tries = []
        for _ in range(5):
            started = time.perf_counter()
            stream.update_into(_ZEROS, sink)
            tries.append(time.perf_counter() - started)
        seconds[mode.name] = min(tries)
    return seconds["GCM"] < seconds["CTR"]


def apply_masks(
    vector: NDArray[Any], added: Sequence[bytes], subtracted: Sequence[bytes], workers: int = 1
) -> None:
    """Add and subtract the keystreams of 32-byte keys in place, modulo the width of the ring.

    The stream is read as little-endian integers on every machine. The result does not depend on ``workers``: each
    thread takes one part of the vector, and of every stream just that part.

    Args:
        vector: ``[dimension]``, uint32 or uint64, contiguous, writable.
        added: Keys whose stream is added.
        subtracted: Keys whose stream is subtracted.
        workers: Most threads to use; ``cryptography`` and NumPy let go of the interpreter's lock.
    """
    total_bytes = vector.nbytes * (len(added) + len(subtracted))
    parts = max(1, min(workers, total_bytes // LEAST_BYTES_PER_WORKER, vector.nbytes // BLOCK_BYTES))
    if parts == 1:
        _mask_part(vector, 0, added, subtracted)
        return
    # Whole cipher blocks to each part, so that its streams begin at a whole counter.
    step = -(-len(vector) // (parts * AES_BLOCK_BYTES)) * AES_BLOCK_BYTES
    with ThreadPoolExecutor(parts) as pool:
        for done in [
            pool.submit(_mask_part, vector[start : start + step], start * vector.itemsize, added, subtracted)
            for start in range(0, len(vector), step)
        ]:
            done.result()


def _mask_part(part: NDArray[Any], offset: int, added: Sequence[bytes], subtracted: Sequence[bytes]) -> None:
    """Mask ``part``, which begins ``offset`` bytes into the vector, a multiple of the cipher's block."""
    first = offset // AES_BLOCK_BYTES
    streams: list[tuple[CipherContext, np.ufunc]] = [(keystream(key, first), np.add) for key in added]
    streams += [(keystream(key, first), np.subtract) for key in subtracted]
    block = min(BLOCK_BYTES // part.itemsize, len(part))
    scratch = np.empty(block, dtype=part.dtype.newbyteorder("<"))
    scratch_bytes = scratch.view(np.uint8).data
    zeros = memoryview(_ZEROS)
    for start in range(0, len(part), block):
        target = part[start : start + block]
        mask, size = scratch[: len(target)], target.nbytes
        source, sink = zeros[:size], scratch_bytes[:size]
        for stream, operation in streams:
            stream.update_into(source, sink)
            operation(target, mask, out=target)
