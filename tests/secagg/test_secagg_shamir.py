"""Secret sharing against a computation that has nothing in common with it: solving for the whole polynomial."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.secagg.errors import ParameterError
from privfed.secagg.shamir import PRIME, combine, split, weights_at_zero


def is_probable_prime(n: int) -> bool:
    """Miller and Rabin, the first 40 primes as bases: wrong with odds below ``4**-40`` for a random composite."""
    bases = [p for p in range(2, 174) if all(p % q for q in range(2, p))]
    if any(n % p == 0 for p in bases):
        return n in bases
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(
        pow(base, odd, n) == 1 or any(pow(base, odd << k, n) == n - 1 for k in range(twos)) for base in bases
    )


def solve_polynomial(points: list[int], values: list[int]) -> list[int]:
    """Coefficients, constant first, by Gauss and Jordan on the Vandermonde matrix."""
    rows = [[pow(x, k, PRIME) for k in range(len(points))] + [y] for x, y in zip(points, values, strict=True)]
    for i in range(len(rows)):
        pivot = next(r for r in range(i, len(rows)) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        inverse = pow(rows[i][i], -1, PRIME)
        rows[i] = [value * inverse % PRIME for value in rows[i]]
        for r in range(len(rows)):
            if r != i:
                rows[r] = [(a - rows[r][i] * b) % PRIME for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[-1] for row in rows]


def test_modulus_is_the_smallest_prime_above_every_32_byte_secret() -> None:
    assert is_probable_prime(PRIME)
    assert not any(is_probable_prime(n) for n in range(2**256, PRIME))


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 7), st.data())
def test_shares_lie_on_one_polynomial_of_the_right_degree(
    secret: bytes, threshold: int, data: st.DataObject
) -> None:
    points = data.draw(st.lists(st.integers(1, 2**40), min_size=threshold, max_size=10, unique=True))
    shares = split(secret, threshold, points)
    polynomial = solve_polynomial(points, shares)
    assert polynomial[0].to_bytes(32, "big") == secret
    assert not any(polynomial[threshold:])
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    weights = weights_at_zero([points[i] for i in chosen])
    assert combine(weights, [shares[i] for i in chosen]) == polynomial[0]


def test_a_known_polynomial_is_recovered_by_every_subset() -> None:
    # f(x) = 1234 + 166 x + 94 x^2, the textbook's example; here over the large prime.
    points = [1, 2, 3, 4, 5, 6]
    values = [1494, 1942, 2578, 3402, 4414, 5614]
    for subset in itertools.combinations(range(6), 3):
        weights = weights_at_zero([points[i] for i in subset])
        assert combine(weights, [values[i] for i in subset]) == 1234


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_extreme_secrets_come_back(secret: bytes) -> None:
    shares = split(secret, 3, [1, 2, 3, 4])
    assert combine(weights_at_zero([4, 1, 2]), [shares[3], shares[0], shares[1]]).to_bytes(32, "big") == secret


def test_one_share_too_few_gives_something_else() -> None:
    secret = b"\x07" * 32
    shares = split(secret, 3, [1, 2, 3])
    assert combine(weights_at_zero([1, 2]), shares[:2]) != int.from_bytes(secret, "big")


def test_sharing_twice_gives_different_shares() -> None:
    assert split(bytes(32), 2, [1, 2]) != split(bytes(32), 2, [1, 2])


def test_many_steps_of_the_evaluation_stay_reduced() -> None:
    shares = split(bytes(32), 400, list(range(1, 401)))
    assert all(0 <= share < PRIME for share in shares)
    assert combine(weights_at_zero(list(range(1, 401))), shares) == 0


@pytest.mark.parametrize("points", [[], [1, 1], [0, 1], [-1, 2], [PRIME, 1]])
def test_bad_points_are_refused(points: list[int]) -> None:
    with pytest.raises(ParameterError, match="points"):
        weights_at_zero(points)
    with pytest.raises(ParameterError, match="points"):
        split(bytes(32), 1, points)


def test_bad_secret_and_threshold_are_refused() -> None:
    with pytest.raises(ParameterError, match="secret"):
        split(bytes(31), 2, [1, 2])
    for threshold in (0, 3):
        with pytest.raises(ParameterError, match="threshold"):
            split(bytes(32), threshold, [1, 2])
