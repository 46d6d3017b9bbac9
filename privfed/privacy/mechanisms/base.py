"""What every mechanism is: a client half, a server half, and the releases that an accountant must compose.

The round divides the noised sum by the expected cohort; a mechanism knows sums only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.privacy.accounting import ObservedRelease
from privfed.privacy.clipping import Contribution
from privfed.privacy.errors import PrivacyError
from privfed.privacy.randomness import RandomSource
from privfed.privacy.sampling import SamplingScheme

State = tuple[NDArray[Any], ...]
"""What a mechanism carries from round to round; arrays only, so that it can be checkpointed."""


@dataclass(frozen=True)
class Terms:
    """What both halves know of the round.

    Attributes:
        round: From 1.
        cohort: Clients sampled.
    """

    round: int
    cohort: int


class Mechanism(Protocol):
    """Bounds each client's update, and perturbs it, the sum, or both."""

    @property
    def integral(self) -> bool:
        """Whether contributions are integers already, to be summed in a ring without further encoding."""
        ...

    @property
    def whole_run(self) -> bool:
        """Whether all rounds together are one release, whose noise is correlated over them."""
        ...

    @property
    def client_noise(self) -> float:
        """Standard deviation of the noise that each client adds to its own update, per coordinate; 0 for none."""
        ...

    def initialize(self, dimension: int) -> State:
        """The state before round 1 of a model with ``dimension`` weights."""
        ...

    def length(self, dimension: int) -> int:
        """Coordinates of a contribution."""
        ...

    def bound(self, state: State) -> float | None:
        """L2 bound of the whole contribution in this round, encoding included; ``None`` for none."""
        ...

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """The L2 norm to clip an update ``[d]`` to, where that is all that the client half does; else ``None``."""
        ...

    def moving_clip(self, state: State) -> float | None:
        """The clip norm in force, where it moves by round and clients must be told it; else ``None``."""
        ...

    def stddev(self, state: State, survivors: float) -> float:
        """Standard deviation of the noise that this round draws for each coordinate of a sum of ``survivors``."""
        ...

    def on_client(
        self, state: State, update: NDArray[np.float32], slack: float, terms: Terms, source: RandomSource
    ) -> Contribution:
        """Bound ``update`` ``[d]``, leaving ``slack`` for what encoding may add.

        Raises:
            NonFiniteUpdateError: The update is not finite.
        """
        ...

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """The noised sum of updates ``[d]`` from the sum of contributions ``[d + extra]``, and the new state."""
        ...

    def as_update(self, vector: NDArray[np.float64], dimension: int, terms: Terms) -> NDArray[np.float64]:
        """A contribution, or a sum of them, in units of an update ``[d]``: what who sees it can make of it."""
        ...

    def releases(self, sampling: SamplingScheme, survivors: int | None = None) -> tuple[ObservedRelease, ...]:
        """What one round releases, to whom; observers that are not named have ε = ∞.

        Args:
            sampling: How cohorts are drawn.
            survivors: Clients whose noise is in the sum, once known; the least possible before that.
        """
        ...


class PlainVectors:
    """What mechanisms share whose contributions are updates and nothing else, noised anew in each round."""

    @property
    def integral(self) -> bool:
        """Real numbers."""
        return False

    @property
    def whole_run(self) -> bool:
        """One release a round."""
        return False

    @property
    def client_noise(self) -> float:
        """Clients add none."""
        return 0.0

    def initialize(self, dimension: int) -> State:
        """No state."""
        return ()

    def length(self, dimension: int) -> int:
        """The update and nothing else."""
        return dimension

    def moving_clip(self, state: State) -> float | None:
        """None: it stays."""
        return None

    def as_update(self, vector: NDArray[np.float64], dimension: int, terms: Terms) -> NDArray[np.float64]:
        """The first ``dimension`` coordinates."""
        return vector[:dimension]


def clip_with_room(clip_norm: float, room: float) -> float:
    """The norm to clip to, so that what rounding adds stays within ``clip_norm``.

    Raises:
        PrivacyError: Rounding would take more than half of it.
    """
    if room > clip_norm / 2:
        raise PrivacyError(
            f"rounding may add {room:g}, more than half of it",
            where="clip_norm",
            value=clip_norm,
            remedy="Use a wider ring (ring_bits = 64), a smaller cohort or a smaller model",
        )
    return clip_norm - room


class NoisedByClients(PlainVectors):
    """What mechanisms share whose updates are noised before they leave the client, by ``client_noise``."""

    def bound(self, state: State) -> float | None:
        """None: noise has no bound, so a ring of fixed width could overflow."""
        return None

    def flat_clip(self, state: State, dimension: int) -> float | None:
        """None: every client adds noise."""
        return None

    def stddev(self, state: State, survivors: float) -> float:
        """Of all survivors' noise together."""
        return self.client_noise * math.sqrt(survivors)

    def on_server(
        self, state: State, total: NDArray[np.float64], terms: Terms, source: RandomSource
    ) -> tuple[NDArray[np.float64], State]:
        """The sum as it came: the noise is in it."""
        if not np.isfinite(total).all():
            raise PrivacyError("the sum is not finite, although every update in it was checked")
        return total, state
