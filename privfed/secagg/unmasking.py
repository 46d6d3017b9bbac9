"""From revealed shares to secrets, each checked against what its owner committed to; and whose share was wrong."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from privfed.secagg import shamir
from privfed.secagg.errors import CorruptShareError

ATTEMPTS = 2000
"""Subsets of shares tried to find the wrong ones; enough for one bad holder always, and for several mostly."""


class SecretRecovery:
    """Puts secrets together; the same holders' Lagrange coefficients are computed once.

    Args:
        points: Where each client's share is evaluated.
        threshold: Shares that give back a secret.
    """

    def __init__(self, points: Mapping[int, int], threshold: int) -> None:
        self._points, self._threshold = points, threshold
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def recover(
        self, owner: int, shares: Mapping[int, int], is_right: Callable[[bytes], bool], what: str
    ) -> bytes:
        """The 32-byte secret of ``owner`` that ``is_right`` accepts.

        Args:
            owner: Whose secret it is.
            shares: By holder, at least the threshold.
            is_right: Whether a secret is the one that was committed to.
            what: Its name, for the error.

        Raises:
            CorruptShareError: The first shares do not give the secret; names the holder whose share is wrong, if
                others suffice to tell, and else the owner.
        """
        holders = sorted(shares)
        secret = self._combine(holders[: self._threshold], shares)
        if secret is not None and is_right(secret):
            return secret
        for chosen in self._subsets(holders):
            secret = self._combine(chosen, shares)
            if secret is not None and is_right(secret):
                wrong = self._wrong(chosen, holders, shares)
                raise CorruptShareError(f"revealed a wrong share of client {owner}'s {what}", offender=wrong)
        if len(holders) > self._threshold:
            raise CorruptShareError(f"no {self._threshold} shares give the {what} it committed to", offender=owner)
        raise CorruptShareError(
            f"the {what} does not match what it committed to: its dealing or a holder's share is wrong",
            offender=owner,
        )

    def _combine(self, holders: Sequence[int], shares: Mapping[int, int]) -> bytes | None:
        key = tuple(holders)
        if key not in self._weights:
            self._weights[key] = shamir.weights_at_zero([self._points[holder] for holder in holders])
        value = shamir.combine(self._weights[key], [shares[holder] for holder in holders])
        return None if value >> (8 * shamir.SECRET_BYTES) else value.to_bytes(shamir.SECRET_BYTES, "big")

    def _subsets(self, holders: Sequence[int]) -> Iterator[list[int]]:
        """Up to ``ATTEMPTS`` sets of holders, first each one that leaves out one of the first by a spare one."""
        first, spare = list(holders[: self._threshold]), holders[self._threshold :]
        if not spare:
            return
        for out in first:
            yield sorted([holder for holder in first if holder != out] + [spare[0]])
        # Which subsets are tried is no secret and decides nothing but who is named.
        draw = random.Random(len(holders))  # noqa: S311
        for _ in itertools.repeat(None, ATTEMPTS):
            yield sorted(draw.sample(list(holders), self._threshold))

    def _wrong(self, right: Sequence[int], holders: Sequence[int], shares: Mapping[int, int]) -> int:
        """First holder whose share is not on the polynomial through the right ones."""
        at = [self._points[holder] for holder in right]
        values = [shares[holder] for holder in right]
        for holder in holders:
            if holder not in right and shamir.interpolate(at, values, self._points[holder]) != shares[holder]:
                return holder
        raise AssertionError("the first shares were wrong and yet lie on the right polynomial")
