"""Mean salary by secret sharing: nobody tells theirs, and the mean survives colleagues who leave half way.

Everybody splits the salary into shares, one for each colleague, of which any ``threshold`` together give it back
and fewer say nothing (Shamir 1979). Everybody adds up the shares received: that is a share of the sum. Any
``threshold`` of these give the sum. Run it: ``python examples/salaries.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from privfed.secagg.shamir import PRIME, SECRET_BYTES, combine, split, weights_at_zero


def shares_of(salary: int, threshold: int, colleagues: Sequence[int]) -> dict[int, int]:
    """A share for each of ``colleagues``, whose numbers start at 1."""
    secret = salary.to_bytes(SECRET_BYTES, "big")
    return dict(zip(colleagues, split(secret, threshold, colleagues), strict=True))


def mean_salary(salaries: Mapping[int, int], threshold: int, gone: Collection[int] = ()) -> float:
    """The mean of all ``salaries`` by colleague, although those who are ``gone`` left after handing out shares.

    Raises:
        ValueError: Fewer than ``threshold`` are left: nobody learns anything.
    """
    everybody = sorted(salaries)
    received: dict[int, list[int]] = {colleague: [] for colleague in everybody}
    for salary in salaries.values():
        for colleague, share in shares_of(salary, threshold, everybody).items():
            received[colleague].append(share)
    left = [colleague for colleague in everybody if colleague not in gone][:threshold]
    if len(left) < threshold:
        raise ValueError(f"{len(left)} are left and {threshold} are needed: the sum stays hidden")
    sums = [sum(received[colleague]) % PRIME for colleague in left]
    return combine(weights_at_zero(left), sums) / len(everybody)


def main() -> None:
    """Five colleagues."""
    salaries = {1: 48_000, 2: 61_500, 3: 39_900, 4: 75_250, 5: 52_350}
    print(f"five salaries, of which any three colleagues can compute the mean: {mean_salary(salaries, 3):,.2f}")
    print(f"with colleagues 2 and 5 gone: {mean_salary(salaries, 3, gone={2, 5}):,.2f}")
    print("two shares of colleague 1's salary:")
    for colleague, share in list(shares_of(salaries[1], 3, sorted(salaries)).items())[:2]:
        print(f"  for {colleague}: {share % 10**12:,} (last twelve digits), as likely for any other salary")
    print("what it does not hide: the mean itself. With four salaries known, it tells the fifth.")


if __name__ == "__main__":
    main()
