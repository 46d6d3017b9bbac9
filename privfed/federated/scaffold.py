"""SCAFFOLD's control variates (Karimireddy et al. 2020, Algorithm 1, option II).

Every client steps along its gradient plus ``c - cᵢ``: the server's variate less its own. After ``K`` steps with
rate ``η`` and the update ``Δ`` its own becomes ``cᵢ - c - Δ/(Kη)``. What it sends is ``Δ`` and, behind it, ``η``
times the change of ``cᵢ``, in one vector: so both are clipped, encoded and masked together, and a client changes
its own by what it sent. The server adds the mean of the changes over *all* clients to ``c``, which stays the mean
of all ``cᵢ``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Variates:
    """The state: held by the server, and by each client for itself.

    Attributes:
        server: ``c``, ``[d]``.
        clients: ``cᵢ`` of each client that was ever in a sum, ``[d]``; zero for the others.
    """

    server: Vector
    clients: Mapping[int, Vector] = field(default_factory=dict)

    def corrections(self, clients: Sequence[int]) -> Vector:
        """``c - cᵢ`` of each client, ``[clients, d]``."""
        rows = np.tile(self.server, (len(clients), 1))
        for row, client in zip(rows, clients, strict=True):
            if client in self.clients:
                row -= self.clients[client]
        return rows

    def sent(self, delta: Vector, steps: int, rate: float) -> Vector:
        """The update ``[d]`` of a client after so many steps, and behind it its change of variate, ``[2·d]``.

        A client without steps has nothing to say of either.
        """
        change = -np.float32(rate) * self.server - delta / np.float32(steps) if steps else np.zeros_like(delta)
        return np.concatenate([delta, change])

    def after(
        self, changes: Mapping[int, NDArray[np.float64]], total: NDArray[np.float64], rate: float, population: int
    ) -> Variates:
        """After a round.

        Args:
            changes: What each survivor sent of its variate, ``[d]``.
            total: The sum of them as the server has it.
            rate: Of the clients in this round.
            population: Clients in all.
        """
        clients = dict(self.clients)
        for client, change in changes.items():
            before = clients.get(client, np.zeros_like(self.server))
            clients[client] = (before + change / rate).astype(np.float32)
        return Variates((self.server + total / (rate * population)).astype(np.float32), clients)

    def as_arrays(self) -> dict[str, NDArray[np.generic]]:
        """For a checkpoint."""
        ids = sorted(self.clients)
        rows = np.stack([self.clients[c] for c in ids]) if ids else np.zeros((0, len(self.server)), np.float32)
        return {"server": self.server, "ids": np.array(ids, np.int64), "clients": rows}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Variates:
        """From what ``as_arrays`` gave."""
        server, rows = (np.asarray(arrays[name], np.float32) for name in ("server", "clients"))
        return cls(server, dict(zip(arrays["ids"].tolist(), rows, strict=True)))


@dataclass(frozen=True, eq=False)
class Scaffold:
    """What a round must know to keep them.

    Attributes:
        rate: The clients' learning rate, before the round's factor.
        steps: Local steps of each client of the population, ``[clients]``.
    """

    rate: float
    steps: NDArray[np.int64]
