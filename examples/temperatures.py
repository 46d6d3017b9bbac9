"""Local and global averages as federated analytics: in the clear, under masking, under differential privacy.

Each sensor keeps its readings and sends the average of them. Of these the server learns, in turn: each one; their
sum and nothing else; their sum with noise, which hides what any one sensor sent. Run it:
``python examples/temperatures.py``, or with readings of your own: ``... "[[1, 1, 1], [13]]"``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privfed.privacy.accounting import Guarantee, account
from privfed.privacy.calibration import noise_multiplier_for
from privfed.privacy.noise import discrete_gaussian
from privfed.privacy.randomness import RandomSource, SystemSource
from privfed.privacy.sampling import KnownCohorts
from privfed.secagg import ProtocolSum

STEPS = 2**16
"""Of the grid for each degree: what is a multiple of ``1 / STEPS`` is summed exactly."""

TWO_SIDED_95 = 1.959964
"""Standard deviations to either side within which noise lies in 95 of 100 cases."""


@dataclass(frozen=True)
class PrivateMean:
    """A noised mean.

    Attributes:
        value: What is published.
        margin: The noise is within this of zero in 95 of 100 cases; what clipping does comes on top.
        guarantee: Of the publication, with all that ε depends on.
    """

    value: float
    margin: float
    guarantee: Guarantee


def local_means(readings: Sequence[Sequence[float]]) -> list[float]:
    """What each sensor computes of its own readings, and sends."""
    return [sum(own) / len(own) for own in readings]


def clear_mean(readings: Sequence[Sequence[float]]) -> float:
    """The server sees every local mean."""
    means = local_means(readings)
    return sum(means) / len(means)


def masked_sum(values: Sequence[int]) -> int:
    """Sum of integers, one of each client; the server sees masked numbers and the sum (Bonawitz et al. 2017)."""
    inputs = {client: np.array([value], np.int64).view(np.uint64) for client, value in enumerate(values)}
    return int(ProtocolSum().sum(inputs, dropouts={}).total.view(np.int64)[0])


def masked_mean(readings: Sequence[Sequence[float]]) -> float:
    """The server sees the sum of the local means, on a grid."""
    return masked_sum([round(mean * STEPS) for mean in local_means(readings)]) / STEPS / len(readings)


def private_mean(
    readings: Sequence[Sequence[float]],
    low: float,
    high: float,
    epsilon: float,
    delta: float,
    source: RandomSource | None = None,
) -> PrivateMean:
    """The masked mean with noise; a sensor's mean counts as no less than ``low`` and no more than ``high``.

    Measured from the middle of the range, a mean is at most half of it: so far the sum moves when one sensor sends
    the middle in place of its own. The number of sensors is taken to be known.
    """
    middle, bound = (low + high) / 2, (high - low) / 2
    limit = math.floor(bound * STEPS)
    steps = [round((min(high, max(low, mean)) - middle) * STEPS) for mean in local_means(readings)]
    total = masked_sum([min(limit, max(-limit, step)) for step in steps])
    multiplier = noise_multiplier_for(epsilon, KnownCohorts(), 1, delta)
    stddev = math.ceil(multiplier * limit)
    noised = total + int(discrete_gaussian(stddev, 1, source or SystemSource())[0])
    return PrivateMean(
        middle + noised / STEPS / len(readings),
        TWO_SIDED_95 * stddev / STEPS / len(readings),
        account(multiplier, KnownCohorts(), 1, delta),
    )


def main() -> None:
    """The readings on the command line, or the two sensors of the introduction."""
    readings = json.loads(sys.argv[1]) if len(sys.argv) > 1 else [[1, 1, 1], [13]]
    print(f"readings          {readings}")
    print(f"local means       {local_means(readings)}")
    print(f"in the clear      {clear_mean(readings):g}  (the server sees every local mean)")
    print(f"under masking     {masked_mean(readings):g}  (the server sees masked numbers, and their sum)")
    rng = np.random.default_rng(1)
    hundred = [list(rng.normal(15, 5, 24)) for _ in range(100)]
    for title, group in ((f"{len(readings)} sensors", readings), ("100 sensors", hundred)):
        mean = private_mean(group, -10.0, 40.0, epsilon=1.0, delta=1e-6)
        print(f"with noise        {mean.value:.2f} ± {mean.margin:.2f} (95 %) of {clear_mean(group):.2f}, {title}")
    print(mean.guarantee.statement({"release"}))
    print("Against server, which adds the noise to the sum: ε = ∞.")


if __name__ == "__main__":
    main()
