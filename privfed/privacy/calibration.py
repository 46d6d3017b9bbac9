"""How much noise a target ε needs."""

from __future__ import annotations

import math
from collections.abc import Callable

from privfed.privacy.accounting import account
from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import SamplingScheme

RESOLUTION = 1e-4
"""Noise multipliers are multiples of this."""
LARGEST = 1e5
FIRST_STEP, GROWTH = 100, 1.1
"""Where ``smallest_where`` begins, in steps of ``RESOLUTION``, and how it goes on."""


def noise_multiplier_for(epsilon: float, sampling: SamplingScheme, rounds: int, delta: float) -> float:
    """The smallest noise multiplier (in steps of ``RESOLUTION``) whose ε is at most ``epsilon``.

    Raises:
        PrivacyError: A parameter is out of range, or no noise reaches the target.
    """
    if rounds < 1:
        raise PrivacyError("must be at least 1", where="rounds", value=rounds)
    return smallest_noise(lambda z: account(z, sampling, rounds, delta).epsilon, epsilon, delta)


def smallest_noise(epsilon_of: Callable[[float], float], epsilon: float, delta: float) -> float:
    """The smallest noise multiplier (in steps of ``RESOLUTION``) with ``epsilon_of`` it at most ``epsilon``.

    Args:
        epsilon_of: The ε of a noise multiplier; falls as that rises.
        epsilon: The target.
        delta: For a first guess only.

    Raises:
        PrivacyError: The target is out of range, or no noise reaches it.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise PrivacyError("must be a positive number", where="epsilon", value=epsilon)
    if not 0 < delta < 1:
        raise PrivacyError("lies in (0, 1)", where="delta", value=delta)
    known: dict[int, float] = {}

    def excess(steps: int) -> float:
        if steps not in known:
            spent = epsilon_of(steps * RESOLUTION)
            known[steps] = (
                math.log(spent / epsilon) if 0 < spent < math.inf else math.copysign(99.0, spent - epsilon)
            )
        return known[steps]

    # ε falls roughly like 1/z: a guess from the unamplified bound, then a bracket, then regula falsi on logs.
    low = high = max(1, round(_guess(epsilon, delta) / RESOLUTION))
    while excess(low) <= 0 and low > 1:
        low = max(1, low // 2)
    while excess(high) > 0:
        if high * RESOLUTION > LARGEST:
            raise PrivacyError(
                f"no noise multiplier up to {LARGEST:g} reaches it",
                where="epsilon",
                value=epsilon,
                remedy="Ask for a larger ε, a larger δ, a lower rate or fewer rounds",
            )
        low, high = high, high * 2
    while high - low > 1 and excess(low) > 0:
        middle = _between(low, high, excess(low), excess(high))
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return round((low if excess(low) <= 0 else high) * RESOLUTION, 4)


def smallest_where(epsilon_of: Callable[[float], float], epsilon: float) -> float:
    """As ``smallest_noise`` where ``epsilon_of`` refuses too little noise, or too much, with a ``PrivacyError``.

    The smallest there is, up to the unevenness that whole grid steps bring.

    Raises:
        PrivacyError: No noise multiplier reaches the target.
    """
    refusal: PrivacyError | None = None

    def reaches(steps: int) -> bool:
        nonlocal refusal
        try:
            return epsilon_of(steps * RESOLUTION) <= epsilon
        except PrivacyError as error:
            refusal = error
            return False

    # Upwards in small steps, since in a narrow ring a much larger noise multiplier may be refused again.
    low, high = 0, FIRST_STEP
    while not reaches(high):
        low, high = high, math.ceil(high * GROWTH)
        if high * RESOLUTION > LARGEST:
            raise PrivacyError(
                f"no noise multiplier up to {LARGEST:g} reaches it ({refusal or 'all spend more'})",
                where="epsilon",
                value=epsilon,
                remedy="Ask for a larger ε, a larger δ or fewer rounds",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return round(high * RESOLUTION, 4)


def _guess(epsilon: float, delta: float) -> float:
    return max(0.5, min(math.sqrt(2 * math.log(1.25 / delta)) / epsilon, 1.5))


def _between(low: int, high: int, above: float, below: float) -> int:
    """Where a line through both ends, on logarithmic axes, crosses zero; kept off the ends, so that both move."""
    share = above / (above - below)
    middle = round(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    margin = max(1, (high - low) // 50)
    return min(max(middle, low + margin), high - margin)
