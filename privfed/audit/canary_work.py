"""How canaries take part: what they send, beside what the population's clients train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.federated.client_work import ClientUpdates, ClientWork, ClippedSum, Conditions

Vector = NDArray[np.float32]


class Auditor(Protocol):
    """Who is told what happens in a round."""

    def begins(self, weights: Vector) -> None:
        """A round begins at ``weights`` ``[d]``."""
        ...

    def sends(self, canary: int | None) -> None:
        """The next update handed over is this canary's; ``None`` for a client's."""
        ...

    def summed(self, survivors: int, canaries: Sequence[int], longest: float) -> None:
        """Updates were clipped and added up unseen; ``longest`` is a client's, drawn at random, after the clip."""
        ...


class RandomUpdates(ClientWork):
    """Local training of ``update`` canaries: there is none, they send their direction."""

    def __init__(self, directions: Vector, length: float) -> None:
        self._directions, self._length = directions, np.float32(length)

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """All updates at once; no example was seen."""
        if not clients:
            return
        nothing = np.zeros(len(clients))
        deltas = self._length * self._directions[list(clients)]
        yield ClientUpdates(tuple(clients), deltas, nothing.astype(np.int64), nothing, nothing, nothing)


class Silenced(ClientWork):
    """Local training of which some clients send zeros, as they do in a neighbouring run by the zero-out relation.

    Args:
        work: What they would send.
        silent: Who sends zeros, ``[k]``.
    """

    def __init__(self, work: ClientWork, silent: NDArray[np.bool_]) -> None:
        self._work, self._silent = work, silent

    def under(self, conditions: Conditions) -> Silenced:
        """The same in a round with these conditions."""
        return Silenced(self._work.under(conditions), self._silent)

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """See ``ClientWork``."""
        for chunk in self._work(weights, clients, seed):
            heard = ~self._silent[list(chunk.clients)]
            yield replace(chunk, deltas=np.where(heard[:, None], chunk.deltas, np.float32(0)))


class JoinedWork(ClientWork):
    """The population's local training, and that of canaries, whose identifiers begin at ``first``.

    Args:
        clients: The population's.
        canaries: The canaries', whose identifiers begin at 0.
        first: Identifier of the first canary.
        auditor: Is told of all that happens.
    """

    def __init__(self, clients: ClientWork, canaries: ClientWork, first: int, auditor: Auditor) -> None:
        self._clients, self._canaries, self._first, self._auditor = clients, canaries, first, auditor

    def under(self, conditions: Conditions) -> JoinedWork:
        """Both in a round with these conditions."""
        return JoinedWork(
            self._clients.under(conditions), self._canaries.under(conditions), self._first, self._auditor
        )

    def _begin(self, weights: Vector, clients: Sequence[int]) -> tuple[list[int], list[int]]:
        self._auditor.begins(weights)
        own = [c for c in clients if c < self._first]
        return own, [c - self._first for c in clients if c >= self._first]

    def __call__(self, weights: Vector, clients: Sequence[int], seed: Sequence[int]) -> Iterator[ClientUpdates]:
        """Clients first, canaries after them, as their identifiers are; whoever takes one has clipped the last."""
        own, canaries = self._begin(weights, clients)
        yield from self._clients(weights, own, seed)
        for chunk in self._canaries(weights, canaries, seed):
            yield from self._one_by_one(chunk)
        self._auditor.sends(None)

    def each(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        consume: Callable[[ClientUpdates], None],
    ) -> None:
        """See ``ClientWork``."""
        own, canaries = self._begin(weights, clients)
        self._clients.each(weights, own, seed, consume)

        def consume_singly(chunk: ClientUpdates) -> None:
            for one in self._one_by_one(chunk):
                consume(one)

        self._canaries.each(weights, canaries, seed, consume_singly)
        self._auditor.sends(None)

    def clipped_sum(
        self,
        weights: Vector,
        clients: Sequence[int],
        seed: Sequence[int],
        clip_norm: float | None,
        *,
        exact: bool = False,
    ) -> ClippedSum:
        """Both sums together, and one client's clipped update once more, for the auditor to measure."""
        own, canaries = self._begin(weights, clients)
        one = self._clients.clipped_sum(weights, own, seed, clip_norm, exact=exact)
        other = self._canaries.clipped_sum(weights, canaries, seed, clip_norm, exact=exact)
        columns = {
            name: np.concatenate([getattr(one, name), getattr(other, name)])
            for name in ("norms", "finite", "loss_sum", "correct", "seen")
        }
        arrived = [c for c, finite in zip(other.clients, other.finite, strict=True) if finite]
        longest = 0.0
        if own:
            again = np.random.default_rng([*seed, *b"audit"]).choice(own)
            alone = self._clients.clipped_sum(weights, [int(again)], seed, clip_norm, exact=exact)
            longest = float(np.linalg.norm(alone.total))
        self._auditor.summed(int(columns["finite"].sum()), arrived, longest)
        named = tuple(c + self._first for c in other.clients)
        return ClippedSum(one.total + other.total, (*one.clients, *named), **columns)

    def _one_by_one(self, chunk: ClientUpdates) -> Iterator[ClientUpdates]:
        """The updates of a chunk of canaries, each announced before it is handed over."""
        for i, canary in enumerate(chunk.clients):
            row = slice(i, i + 1)
            self._auditor.sends(canary)
            yield replace(
                chunk,
                clients=(canary + self._first,),
                **{n: getattr(chunk, n)[row] for n in ("deltas", "examples", "loss_sum", "correct", "seen")},
            )
