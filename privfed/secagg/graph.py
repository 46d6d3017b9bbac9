"""Who masks with whom: a ring in random order, everyone joined to the k nearest (Bell et al. 2020, section 3).

The order is drawn from a seed that no party chose alone: the Merkle root of all signed advertisements. With ``k``
at least ``n - 1`` the graph is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg.keys import Purpose, Scope
from privfed.secagg.params import SecAggParams
from privfed.secagg.prg import keystream


class Graph:
    """Neighbours of every client of a session, once the root is known.

    Args:
        params: The session.
        root: Merkle root of the advertisements, 32 bytes.
    """

    def __init__(self, params: SecAggParams, root: bytes) -> None:
        self._params = params
        self._complete = params.neighbours >= len(params.client_ids) - 1
        if not self._complete:
            seed = Scope(params, root).key(b"", Purpose.GRAPH, 0, 0)
            self._order, self._place = _ring(seed, len(params.client_ids))

    def neighbours(self, client_id: int) -> tuple[int, ...]:
        """Clients that ``client_id`` shares masks and secrets with, ascending, itself left out."""
        ids, half = self._params.client_ids, self._params.neighbours // 2
        if self._complete:
            return tuple(other for other in ids if other != client_id)
        place = int(self._place[self._params.points[client_id] - 1])
        around = [self._order[(place + step) % len(ids)] for step in range(-half, half + 1) if step]
        return tuple(sorted(ids[index] for index in around))


@lru_cache(maxsize=8)
def _ring(seed: bytes, size: int) -> tuple[Sequence[int], NDArray[Any]]:
    """Indices in random order, and each index's place in it. One draw serves all clients of a simulation.

    Sorting 64-bit words is uniform but for ties, of which there is one with probability ``size**2 / 2**65``.
    """
    words = np.frombuffer(keystream(seed).update(bytes(8 * size)), dtype="<u8")
    order = np.argsort(words, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(size)
    return order.tolist(), place
