"""The client half of the mechanism, and what is kept of its results, wherever the clients are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
        shares: Weight of each client's update, by client, which multiplies the vector and goes behind it; ``None``
            for equal weights.
    """

    mechanism: Mechanism
    state: MechanismState = field(repr=False)
    slack: float
    terms: Terms
    streams: Streams = field(repr=False)
    shares: NDArray[np.float64] | None = None

    def __call__(self, client: int, delta: NDArray[np.float32]) -> Contribution | None:
        """What ``client`` sends for its update ``[d]``; ``None`` when that is not finite."""
        source = self.streams.source(Purpose.CLIENT_NOISE, self.terms.round, client)
        try:
            sent = self.mechanism.on_client(self.state, delta, self.slack, self.terms, source)
        except NonFiniteUpdateError:
            return None
        if not math.isfinite(sent.norm_before):
            return None
        return sent if self.shares is None else self._weighed(sent, float(self.shares[client]))

    def _weighed(self, sent: Contribution, share: float) -> Contribution:
        vector = np.append(share * sent.vector.astype(np.float64), share)
        return Contribution(vector, sent.norm_before, sent.was_clipped)


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
class CollectedHalves:
    """A ``Fold``: updates through the client half, and into a sum where there is one that needs none afterwards.

    Attributes:
        half: What is done to each.
        encoded: The sum; ``None`` where vectors must be there together.
        halves: What was taken in.
    """

    half: ClientHalf
    encoded: EncodedSum | None
    halves: Halves = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """As ``Fold``."""
        return self.encoded is None

    def take(self, chunk: ClientUpdates) -> None:
        """Keep the chunk's vectors, or add them up."""
        self.halves.update(halves_of(chunk, self._half))

    def taken(self) -> tuple[NDArray[Any] | None, float, Halves]:
        """The sum in the ring ``[length]``, seconds of encoding, and what is told of each client."""
        if self.encoded is None:
            return None, 0.0, self.halves
        return self.encoded.total, self.encoded.seconds, self.halves

    def merge(self, taken: tuple[NDArray[Any] | None, float, Halves]) -> None:
        """Add up what a copy added up elsewhere, or keep what it kept."""
        total, seconds, halves = taken
        if self.encoded is not None:
            self.encoded.merge(total, seconds)
            self.halves.update(halves)
            return
        for client, (half, loss_sum, correct, seen) in halves.items():
            if half is not None and half.vector is not None:
                half = replace(half, vector=half.vector.copy())  # it may lie in memory that others wait for
            self.halves[client] = half, loss_sum, correct, seen

    def _half(self, client: int, delta: NDArray[np.float32]) -> Half | None:
        sent = self.half(client, delta)
        if sent is None:
            return None
        if self.encoded is None:
            return Half(sent.norm_before, sent.was_clipped, sent.vector)
        self.encoded.add(client, sent.unscaled, sent.factor, sent.longest)
        return Half(sent.norm_before, sent.was_clipped)
