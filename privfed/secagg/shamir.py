"""Shamir's t-of-n secret sharing (Shamir 1979) over a prime just above ``2**256``: any 32 bytes are an element.

The server adds up the same holders' shares of many secrets, hence the split into weights (once) and sums (each).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from privfed.secagg.errors import ParameterError

PRIME = 2**256 + 297
"""The smallest prime above ``2**256``."""

SECRET_BYTES = 32


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[int]:
    """Shares of ``secret`` (32 bytes), one for each of ``points``; any ``threshold`` of them give it back.

    Raises:
        ParameterError: Points are not distinct and in ``[1, PRIME)``, too few, or the secret is not 32 bytes.
    """
    _check_points(points)
    if len(secret) != SECRET_BYTES:
        raise ParameterError(f"secret: must be {SECRET_BYTES} bytes (got {len(secret)})")
    if not 1 <= threshold <= len(points):
        raise ParameterError(f"threshold: must be in [1, {len(points)}], the number of shares (got {threshold})")
    # Highest power first, as Horner's rule takes them. A leading zero is legal: secrecy needs uniformity.
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return [_evaluate(coefficients, point) for point in points]


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange coefficients at zero for shares held at ``points``; all inverted by one inversion.

    Raises:
        ParameterError: Points are not distinct and in ``[1, PRIME)``.
    """
    _check_points(points)
    product = _product(points)
    # Each point stands in its own denominator once: what its own numerator lacks of the product of all.
    denominators = [own * _product([other - own for other in points if other != own]) for own in points]
    return [product * inverse % PRIME for inverse in _invert_all(denominators)]


def interpolate(points: Sequence[int], values: Sequence[int], at: int) -> int:
    """Value at ``at`` of the polynomial through ``values`` at ``points``; ``at`` is none of them."""
    return combine(weights_at_zero([(point - at) % PRIME for point in points]), values)


def combine(weights: Sequence[int], shares: Sequence[int]) -> int:
    """Secret as an integer in ``[0, PRIME)``; wrong shares give a wrong secret, which the caller must check."""
    return sum(weight * share for weight, share in zip(weights, shares, strict=True)) % PRIME


def _product(factors: Sequence[int]) -> int:
    # Points are small, so reducing now and then is cheaper than at every step.
    product = 1
    for start in range(0, len(factors), 32):
        product = product * math.prod(factors[start : start + 32]) % PRIME
    return product


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = value * point + coefficient
        if value.bit_length() > 1024:
            value %= PRIME
    return value % PRIME


def _invert_all(values: Sequence[int]) -> list[int]:
    # Montgomery's trick: the inverse of the running product, peeled from the back.
    products = [1]
    for value in values:
        products.append(products[-1] * value % PRIME)
    inverse = pow(products[-1], -1, PRIME)
    inverses = []
    for value, product in zip(reversed(values), reversed(products[:-1]), strict=True):
        inverses.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return inverses[::-1]


def _check_points(points: Sequence[int]) -> None:
    if not points or len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise ParameterError(f"points: must be distinct and positive (got {list(points)[:8]})")
