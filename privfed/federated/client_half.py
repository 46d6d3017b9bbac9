"""The client half of the mechanism, with its results added up in a ring, wherever the clients are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.federated.client_work import ClientUpdates
from privfed.federated.encoding import EncodedSum
from privfed.federated.streams import Purpose, Streams
from privfed.privacy.errors import NonFiniteUpdateError
from privfed.privacy.mechanisms import Contribution, Mechanism, Terms
from privfed.privacy.mechanisms import State as MechanismState


@dataclass(frozen=True, eq=False)
class ClientHalf:
    """What happens to an update before it is sent; a client's randomness is its own, wherever it is.

    Attributes:
        mechanism: Whose half it is.
        state: The mechanism's, as the round begins.
        slack: By how much encoding may lengthen a vector.
        terms: Of the round.
        streams: Each client's randomness.
    """

    mechanism: Mechanism
    state: MechanismState = field(repr=False)
    slack: float
    terms: Terms
    streams: Streams = field(repr=False)

    def __call__(self, client: int, delta: NDArray[np.float32]) -> Contribution | None:
        """What ``client`` sends for its update ``[d]``; ``None`` when that is not finite."""
        source = self.streams.source(Purpose.CLIENT_NOISE, self.terms.round, client)
        try:
            sent = self.mechanism.on_client(self.state, delta, self.slack, self.terms, source)
        except NonFiniteUpdateError:
            return None
        return sent if math.isfinite(sent.norm_before) else None


@dataclass(frozen=True, eq=False)
class Half:
    """What the client half made of an update.

    Attributes:
        norm: L2 norm before the clip.
        was_clipped: Whether it was longer than the bound.
        vector: What is sent; ``None`` where that is in a sum already.
        change: Of a control variate.
    """

    norm: float
    was_clipped: bool
    vector: NDArray[Any] | None = None
    change: NDArray[np.float64] | None = None


Halves = dict[int, tuple[Half | None, float, float, float]]
"""By client: its half, ``None`` where the update is not finite; loss sum, right answers and examples seen."""


def halves_of(chunk: ClientUpdates, half: Callable[[int, NDArray[np.float32]], Half | None]) -> Halves:
    """``half`` of each update."""
    counts = zip(chunk.loss_sum.tolist(), chunk.correct.tolist(), chunk.seen.tolist(), strict=True)
    updates = zip(chunk.clients, chunk.deltas, counts, strict=True)
    return {client: (half(client, delta), *known) for client, delta, known in updates}


@dataclass(frozen=True, eq=False)
class HalvesInRing:
    """A ``Fold``: updates through the client half, into a sum that needs none of them afterwards."""

    half: ClientHalf
    encoded: EncodedSum
    halves: Halves = field(default_factory=dict)

    def take(self, chunk: ClientUpdates) -> None:
        """Add the chunk's vectors up."""
        self.halves.update(halves_of(chunk, self._add))

    def taken(self) -> tuple[NDArray[Any] | None, float, Halves]:
        """The sum in the ring ``[length]``, seconds of encoding, and what is told of each client."""
        return self.encoded.total, self.encoded.seconds, self.halves

    def merge(self, taken: tuple[NDArray[Any] | None, float, Halves]) -> None:
        """Add up what a copy added up elsewhere."""
        total, seconds, halves = taken
        self.encoded.merge(total, seconds)
        self.halves.update(halves)

    def _add(self, client: int, delta: NDArray[np.float32]) -> Half | None:
        sent = self.half(client, delta)
        if sent is None:
            return None
        self.encoded.add(client, sent.unscaled, sent.factor, sent.longest)
        return Half(sent.norm_before, sent.was_clipped)
