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


def keystream(key: bytes) -> CipherContext:
    """AES-256-CTR (NIST SP 800-38A, section 6.5); encrypting zeros yields the stream.

    The counter starts at the same place always because every key is derived for one stream and used for no other.
    """
    if _gcm_is_faster():
        # GCM encrypts by counter mode (NIST SP 800-38D, section 7.1): the same bytes. Its tag is of no use here.
        return Cipher(algorithms.AES256(key), modes.GCM(bytes(12))).encryptor()
    return _counter_mode(key, FIRST_BLOCK)


def _counter_mode(key: bytes, counter: int) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(counter.to_bytes(AES_BLOCK_BYTES, "big"))).encryptor()


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
    thread takes some of the keys, and all but one sum theirs into a vector of their own.

    Args:
        vector: ``[dimension]``, uint32 or uint64, contiguous, writable.
        added: Keys whose stream is added.
        subtracted: Keys whose stream is subtracted.
        workers: Most threads to use; ``cryptography`` and NumPy let go of the interpreter's lock.
    """
    keys = len(added) + len(subtracted)
    parts = max(1, min(workers, keys, keys * vector.nbytes // LEAST_BYTES_PER_WORKER))
    if parts == 1:
        _mask(vector, added, subtracted)
        return
    sums = [vector, *(np.zeros_like(vector) for _ in range(parts - 1))]
    with ThreadPoolExecutor(parts) as pool:
        # The second kind is dealt from the other end, so that nobody gets one key more of each.
        jobs = [
            pool.submit(_mask, part, added[i::parts], subtracted[parts - 1 - i :: parts])
            for i, part in enumerate(sums)
        ]
        for done in jobs:
            done.result()
    for part in sums[1:]:
        vector += part


def _mask(vector: NDArray[Any], added: Sequence[bytes], subtracted: Sequence[bytes]) -> None:
    streams: list[tuple[CipherContext, np.ufunc]] = [(keystream(key), np.add) for key in added]
    streams += [(keystream(key), np.subtract) for key in subtracted]
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
