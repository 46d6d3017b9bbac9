"""What all parties of one session agree on before the first message."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import ring
from privfed.secagg.bounds import Adversary, Guarantee, guarantee_for
from privfed.secagg.errors import InputError, ParameterError

MIN_SESSION_BYTES, MAX_SESSION_BYTES = 16, 64


def majority(cohort_size: int) -> int:
    """Smallest threshold that is allowed: ``n // 2 + 1``, and at least 2."""
    return max(2, cohort_size // 2 + 1)


def check_threshold(threshold: int, holders: int) -> None:
    """Refuse a threshold below a majority of those who hold shares of one secret.

    With half of them or less, a server could show two disjoint halves different survivor lists and so collect
    both shares of one client; with 1, any single share is the secret (Bonawitz et al. 2017, section 6.2).

    Raises:
        ParameterError: ``threshold`` is below 2 or not above half of ``holders``.
    """
    if threshold < majority(holders):
        raise ParameterError(
            f"threshold: must be at least 2 and above half of the {holders} clients (got {threshold}). "
            f"Use {majority(holders)} or more"
        )


@dataclass(frozen=True)
class SecAggParams:
    """One session: who takes part, how many are needed, and what is summed.

    Attributes:
        session: Identifier of the session, 16 to 64 bytes, never used before; binds every derived key.
        round_number: Round of the training, not negative; binds every derived key.
        client_ids: Strictly ascending, each in ``[0, 2**64)``.
        threshold: Of the clients that hold a secret's shares, how many are needed: at least 2 and above half.
        dimension: Length of the summed vectors.
        ring_bits: From 8 to 64; sums are modulo ``2**ring_bits``.
        degree: Neighbours of each client on the ring, even; ``None`` joins everybody to everybody.
        guarantee: What ``for_cohort`` promises of threshold and degree; no part of what is agreed on.

    Raises:
        ParameterError: A value is out of range.
    """

    session: bytes
    round_number: int
    client_ids: tuple[int, ...]
    threshold: int
    dimension: int
    ring_bits: int = 32
    degree: int | None = None
    guarantee: Guarantee | None = field(default=None, compare=False)

    @classmethod
    def for_cohort(
        cls,
        cohort: int | Sequence[int],
        dimension: int,
        *,
        corrupt: float = 0.1,
        dropped: float = 0.1,
        adversary: Adversary = Adversary.ACTIVE,
        security_bits: int = 40,
        correctness_bits: int = 30,
        grinding_bits: int = 40,
        session: bytes | None = None,
        round_number: int = 0,
        ring_bits: int = 32,
    ) -> SecAggParams:
        """Session with as few neighbours, and as low a threshold, as ``guarantee_for`` finds for the cohort.

        Args:
            cohort: The clients' identifiers, or how many there are, from 0.
            dimension: Length of the summed vectors.
            corrupt: As in ``guarantee_for``, and so are ``dropped``, ``adversary`` and the three numbers of bits.
            session: A fresh random identifier unless given.
            round_number: As above.
            ring_bits: As above.

        Raises:
            ParameterError: A value is out of range, or the cohort cannot tolerate both shares.
        """
        ids = tuple(range(cohort)) if isinstance(cohort, int) else tuple(sorted(cohort))
        chosen = guarantee_for(
            len(ids),
            corrupt,
            dropped,
            adversary=adversary,
            security_bits=security_bits,
            correctness_bits=correctness_bits,
            grinding_bits=grinding_bits,
        )
        return cls(
            session=secrets.token_bytes(MIN_SESSION_BYTES) if session is None else session,
            round_number=round_number,
            client_ids=ids,
            threshold=chosen.threshold,
            dimension=dimension,
            ring_bits=ring_bits,
            degree=None if chosen.neighbours == len(ids) - 1 else chosen.neighbours,
            guarantee=chosen,
        )

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
        if self.degree is not None and (self.degree < 2 or self.degree % 2):
            raise ParameterError(f"degree: must be even and at least 2 (got {self.degree})")
        check_threshold(self.threshold, self.holders)
        if self.threshold > self.holders:
            raise ParameterError(f"threshold: {self.threshold} is more than the {self.holders} clients there are")
        if self.dimension < 1:
            raise ParameterError(f"dimension: must be at least 1 (got {self.dimension})")
        ring.check_bits(self.ring_bits)

    @property
    def holders(self) -> int:
        """Clients that hold shares of one secret: its owner and the neighbours, or all where that is fewer."""
        everybody = len(self.client_ids)
        return everybody if self.degree is None else min(self.degree + 1, everybody)

    @property
    def neighbours(self) -> int:
        """Neighbours of each client."""
        return max(self.holders - 1, 0)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that is agreed on, 32 bytes; bound into every key and signature of the session."""
        count = len(self.client_ids)
        digest = hashlib.sha256(b"privfed.secagg/4 params" + bytes((len(self.session),)) + self.session)
        digest.update(struct.pack(">QQQ", self.round_number, self.threshold, self.dimension))
        digest.update(struct.pack(f">QQQ{count}Q", self.ring_bits, self.neighbours, count, *self.client_ids))
        return digest.digest()

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of a ring element."""
        return ring.dtype_of(self.ring_bits)

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
