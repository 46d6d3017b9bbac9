"""What all parties of one session agree on before the first message."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg.errors import InputError, ParameterError

RingVector = NDArray[np.uint32] | NDArray[np.uint64]

RING_DTYPES: dict[int, np.dtype[Any]] = {32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
MIN_SESSION_BYTES, MAX_SESSION_BYTES = 16, 64


def majority(cohort_size: int) -> int:
    """Smallest threshold that is allowed: ``n // 2 + 1``, and at least 2."""
    return max(2, cohort_size // 2 + 1)


def check_threshold(threshold: int, cohort_size: int) -> None:
    """Refuse a threshold below a majority.

    With half the cohort or less, a server could run two disjoint halves to different survivor lists and so collect
    both shares of one client; with 1, any single share is the secret (Bonawitz et al. 2017, section 6.2).

    Raises:
        ParameterError: ``threshold`` is below 2 or not above half of ``cohort_size``.
    """
    if threshold < majority(cohort_size):
        raise ParameterError(
            f"threshold: must be at least 2 and above half of the {cohort_size} clients (got {threshold}). "
            f"Use {majority(cohort_size)} or more"
        )


@dataclass(frozen=True)
class SecAggParams:
    """One session: who takes part, how many are needed, and what is summed.

    Attributes:
        session: Identifier of the session, 16 to 64 bytes, never used before; binds every derived key.
        round_number: Round of the training, not negative; binds every derived key.
        client_ids: Strictly ascending, each in ``[0, 2**64)``.
        threshold: Clients needed at every stage, above half of the cohort and at least 2.
        dimension: Length of the summed vectors.
        ring_bits: 32 or 64; sums are modulo ``2**ring_bits``.

    Raises:
        ParameterError: A value is out of range.
    """

    session: bytes
    round_number: int
    client_ids: tuple[int, ...]
    threshold: int
    dimension: int
    ring_bits: int = 32

    def __post_init__(self) -> None:
        ids = self.client_ids
        if not isinstance(self.session, bytes) or not MIN_SESSION_BYTES <= len(self.session) <= MAX_SESSION_BYTES:
            raise ParameterError(
                f"session: must be {MIN_SESSION_BYTES} to {MAX_SESSION_BYTES} bytes (got {self.session!r}). "
                f"Use secrets.token_bytes({MIN_SESSION_BYTES})"
            )
        if not 0 <= self.round_number < 2**64:
            raise ParameterError(f"round_number: must be in [0, 2**64) (got {self.round_number})")
        if any(b <= a for a, b in itertools.pairwise(ids)):
            raise ParameterError("client_ids: must be strictly ascending. Sort them and drop duplicates")
        if ids and not 0 <= ids[0] <= ids[-1] < 2**64:
            raise ParameterError(f"client_ids: must be in [0, 2**64) (got {ids[0]} to {ids[-1]})")
        check_threshold(self.threshold, len(ids))
        if self.threshold > len(ids):
            raise ParameterError(f"threshold: {self.threshold} is more than the {len(ids)} clients there are")
        if self.dimension < 1:
            raise ParameterError(f"dimension: must be at least 1 (got {self.dimension})")
        if self.ring_bits not in RING_DTYPES:
            raise ParameterError(f"ring_bits: must be one of {sorted(RING_DTYPES)} (got {self.ring_bits})")

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of a ring element."""
        return RING_DTYPES[self.ring_bits]

    @cached_property
    def points(self) -> dict[int, int]:
        """Where each client's Shamir share is evaluated: its position in ``client_ids``, from 1."""
        return {client: point for point, client in enumerate(self.client_ids, start=1)}

    def check_vector(self, vector: NDArray[Any]) -> None:
        """Refuse anything but a ring vector ``[dimension]``.

        Raises:
            InputError: Wrong type or shape.
        """
        if not isinstance(vector, np.ndarray) or vector.dtype != self.dtype or vector.shape != (self.dimension,):
            shown = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
            raise InputError(
                f"input vector: must be {self.dtype} of shape ({self.dimension},) (got {shown}). "
                f"Encode it with FixedPointCodec"
            )
