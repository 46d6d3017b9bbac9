"""What sums a cohort's integers, by mode of secure aggregation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from privfed.errors import SettingError
from privfed.secagg import HomomorphicSum, ProtocolSum, RingSum, SecureSum

MakeSum = Callable[[int, int, bytes, int], SecureSum]
"""``(round, threshold, model, ring_bits)`` to the sum of one round."""


def secure_sum_of(mode: str) -> MakeSum:
    """The sum of ``mode``: ``ring``, ``protocol`` or ``bfv``.

    Raises:
        SettingError: It needs a library that is not installed: better told before anything is begun.
    """
    if mode == "bfv" and importlib.util.find_spec("tenseal") is None:
        raise SettingError(
            "homomorphic encryption needs TenSEAL, which is not installed",
            where="secure_aggregation.mode",
            value=mode,
            remedy="Run: pip install 'privfed[homomorphic]'",
        )
    return SECURE_SUMS[mode]


def _plain(round_number: int, threshold: int, model: bytes, ring_bits: int) -> SecureSum:
    return RingSum(threshold, ring_bits)


def _masked(round_number: int, threshold: int, model: bytes, ring_bits: int) -> SecureSum:
    return ProtocolSum(round_number, threshold, model=model, ring_bits=ring_bits)


def _encrypted(round_number: int, threshold: int, model: bytes, ring_bits: int) -> SecureSum:
    return HomomorphicSum(threshold, ring_bits)


SECURE_SUMS: dict[str, MakeSum] = {"ring": _plain, "protocol": _masked, "bfv": _encrypted}
