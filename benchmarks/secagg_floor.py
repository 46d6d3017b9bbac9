"""The floor under pairwise masking: to make a keystream, and to add it.

Both are done the cheapest way: a cipher into a buffer that stays in the cache, and NumPy's addition of that buffer
to another that does. They are timed apart, so that nothing else is in it. The floor is AES-256 in the counter mode
that its library has; PrivFed takes the same bytes from GCM where that is faster, and so has a lower one besides.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privfed.secagg.prg import apply_masks, keystream

BLOCK_BYTES = 256 * 1024
BLOCKS = 256
REPEATS = 7


def seconds_per_byte(dtype: np.dtype[Any]) -> dict[str, float]:
    """CPU-seconds to make one byte of keystream and add it to ring elements, by the cipher; medians."""
    rounds = [_once(dtype) for _ in range(REPEATS)]
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def masking(dtype: np.dtype[Any], dim: int, masks: int) -> dict[str, float]:
    """CPU-seconds to mask one vector, and over the floors for the same bytes; floors and masking take turns."""
    keys = [os.urandom(32) for _ in range(masks)]
    vector = np.zeros(dim, dtype)
    seconds, over, over_fastest = [], [], []
    for _ in range(REPEATS):
        floor = _once(dtype)
        started = time.thread_time()
        apply_masks(vector, keys[::2], keys[1::2])
        seconds.append(time.thread_time() - started)
        per_byte = seconds[-1] / (masks * vector.nbytes)
        over.append(per_byte / floor["counter mode"])
        over_fastest.append(per_byte / floor["as used"])
    return {
        "masking_seconds": statistics.median(seconds),
        "masking_over_floor": statistics.median(over),
        "masking_over_own_keystream": statistics.median(over_fastest),
    }


def _once(dtype: np.dtype[Any]) -> dict[str, float]:
    key, size = os.urandom(32), BLOCKS * BLOCK_BYTES
    mask = np.zeros(BLOCK_BYTES // dtype.itemsize, dtype)
    target = np.zeros_like(mask)
    counter_mode = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    by_counter_mode, as_used = (_fill(stream, mask) for stream in (counter_mode, keystream(key)))
    started = time.thread_time()
    for _ in range(BLOCKS):
        np.add(target, mask, out=target)
    adding = time.thread_time() - started
    return {"counter mode": (by_counter_mode + adding) / size, "as used": (as_used + adding) / size}


def _fill(stream: CipherContext, buffer: np.ndarray) -> float:
    zeros, sink = bytes(BLOCK_BYTES), buffer.view(np.uint8).data
    started = time.thread_time()
    for _ in range(BLOCKS):
        stream.update_into(zeros, sink)
    return time.thread_time() - started
