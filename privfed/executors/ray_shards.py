"""Where the examples are: each client's home is one actor, to which they go when it first trains the client.

The population is cut into blocks as a cohort is cut into parts, and the blocks are dealt out to the actors: most
of a part's clients are at home with whoever trains it. Those who are not come along for that one job: a part is
trained by one actor, as the bits of a float sum ask for. The head alone has everybody, perhaps mapped from disk;
so what a dead actor had is sent to the next one in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.executors.parts import cut

_ALIGNMENT = 64
"""Bytes; TensorFlow takes such memory without a copy."""
_SPARE = 4
"""A job's rows find room for a quarter more than the largest so far: graphs are built anew for more."""


@dataclass(frozen=True, eq=False)
class Sent:
    """Examples of clients on their way to an actor.

    Attributes:
        clients: Whose, rising, ``[k]``.
        kept: Whether the actor is their home, ``[k]``.
        features: One client after the other, ``[n, *input_shape]``.
        labels: Likewise, ``[n]``.
    """

    clients: NDArray[np.int64]
    kept: NDArray[np.bool_]
    features: NDArray[Any]
    labels: NDArray[np.int32]


class Shards:
    """The head's side: whose home is where, and who has arrived there.

    Args:
        features: Of the population, see ``check_population``.
        labels: Likewise.
        offsets: Likewise.
        blocks: That the clients are cut into, with about as many examples each.
        seats: Places for actors, which the blocks are dealt out to.

    Attributes:
        sent_bytes: Of examples, to whomever, since it was made.
    """

    def __init__(
        self,
        features: NDArray[Any],
        labels: NDArray[np.int32],
        offsets: NDArray[np.int64],
        blocks: int,
        seats: int,
    ) -> None:
        self._features, self._labels, self._offsets = features, labels, offsets
        self._home = np.zeros(len(offsets) - 1, np.int32)
        for i, block in enumerate(cut(np.diff(offsets), blocks)):
            self._home[block] = i % seats
        self._arrived = np.zeros(len(self._home), bool)
        self._seats = seats
        self.sent_bytes = 0

    def forget(self, seat: int) -> None:
        """The actor there is a new one, and has nobody."""
        self._arrived[self._home == seat] = False

    def seat_of(self, clients: NDArray[np.int64]) -> int:
        """Where most of the examples of ``clients`` are at home."""
        sizes = self._offsets[clients + 1] - self._offsets[clients]
        return int(np.bincount(self._home[clients], sizes + 1, self._seats).argmax())

    def at_home(self, clients: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """``clients`` by their home, without homes of nobody."""
        homes = self._home[clients]
        order = np.argsort(homes, kind="stable")
        groups = np.split(clients[order], np.flatnonzero(np.diff(homes[order])) + 1)
        return [group for group in groups if len(group)]

    def for_job(self, seat: int, clients: NDArray[np.int64]) -> Sent:
        """What the actor at ``seat`` lacks of ``clients``, as of now: it gets them in the order of the calls."""
        ids = np.sort(clients)
        ids = ids[(self._home[ids] != seat) | ~self._arrived[ids]]
        kept = self._home[ids] == seat
        self._arrived[ids[kept]] = True
        spans = [slice(*span) for span in zip(self._offsets[ids], self._offsets[ids + 1], strict=True)]
        features, labels = (
            np.concatenate([array[:0], *(array[span] for span in spans)])
            for array in (self._features, self._labels)
        )
        self.sent_bytes += features.nbytes + labels.nbytes
        return Sent(ids, kept, features, labels)


class Examples:
    """An actor's side: examples of the clients at home with it, and of one job's laid out beside each other.

    Args:
        offsets: Of the population, ``[clients + 1]``.
    """

    def __init__(self, offsets: NDArray[np.int64]) -> None:
        self._offsets, self._room = offsets, 0
        self._kept: dict[int, tuple[NDArray[Any], NDArray[np.int32]]] = {}

    @property
    def kept_bytes(self) -> int:
        """Of the clients at home."""
        return sum(array.nbytes for arrays in self._kept.values() for array in arrays)

    def lay_out(
        self, clients: NDArray[np.int64], sent: Sent
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int32]]:
        """Sorted ``clients``, and arrays that begin with their examples; what is kept of ``sent`` is copied."""
        held = np.sort(clients)
        arrived = self._take(sent)
        needed = int((self._offsets[held + 1] - self._offsets[held]).sum())
        if needed > self._room or not self._room:
            self._room = needed + needed // _SPARE + 1
        mine = [self._kept[c] if c in self._kept else arrived[c] for c in held.tolist()]
        features, labels = (
            _joined([arrays[i] for arrays in mine], like, self._room)
            for i, like in enumerate((sent.features, sent.labels))
        )
        return held, features, labels

    def _take(self, sent: Sent) -> dict[int, tuple[NDArray[Any], NDArray[np.int32]]]:
        arrived, first = {}, 0
        for client, kept in zip(sent.clients.tolist(), sent.kept.tolist(), strict=True):
            last = first + int(self._offsets[client + 1] - self._offsets[client])
            arrays = sent.features[first:last], sent.labels[first:last]
            if kept:
                self._kept[client] = arrays[0].copy(), arrays[1].copy()
            else:
                arrived[client] = arrays
            first = last
        return arrived


def _joined(arrays: list[NDArray[Any]], like: NDArray[Any], rows: int) -> NDArray[Any]:
    """``arrays`` behind each other, in aligned memory for so many ``rows``; what is not used stays untouched."""
    shape = (rows, *like.shape[1:])
    size = int(np.prod(shape)) * like.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    joined: NDArray[Any] = memory[start : start + size].view(like.dtype).reshape(shape)
    if arrays:
        np.concatenate(arrays, out=joined[: sum(map(len, arrays))])
    return joined
