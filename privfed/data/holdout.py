"""Clients set aside: drawn by a seed, so that how a model does on people it never met can be measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.population import Offsets, Population
from privfed.errors import SettingError

Rows = slice | NDArray[np.int64]
"""Rows of packed arrays; a slice where they are consecutive, which then need not be copied."""


@dataclass(frozen=True, eq=False)
class ClientSplit:
    """Numbers of the clients to train on and of those held out, each rising; every client is in one of them."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]


def draw_clients(available: int, count: int, seed: int) -> NDArray[np.int64]:
    """Numbers of ``count`` of ``available`` clients, drawn uniformly without replacement, rising, ``[count]``."""
    if count == available:
        return np.arange(available, dtype=np.int64)
    rng = np.random.default_rng([seed, *b"natural clients"])
    return np.sort(rng.choice(available, count, replace=False)).astype(np.int64)


def draw_held_out(clients: int, held_out: float | int, seed: int) -> ClientSplit:
    """Split ``clients`` by a seeded uniform draw.

    Args:
        clients: How many there are.
        held_out: How many to hold out, as an integer, or which share of them, as a float; rounded to the nearest.
        seed: The same seed gives the same split. The draw has a stream of its own.

    Raises:
        SettingError: Not at least one client on either side.
    """
    if isinstance(held_out, bool):
        raise SettingError("is a number or a share of clients", where="data.held_out_clients", value=held_out)
    if isinstance(held_out, int):
        count = held_out
    elif 0 < held_out < 1:
        count = round(held_out * clients)
    else:
        raise SettingError(
            "a share of the clients lies between 0 and 1",
            where="data.held_out_clients",
            value=held_out,
            remedy="Write a whole number to hold out so many",
        )
    if not 0 < count < clients:
        raise SettingError(
            f"leaves {clients - count} of {clients} clients for training and {count} held out: each needs one",
            where="data.held_out_clients",
            value=held_out,
        )
    chosen = np.random.default_rng([seed, *b"held-out clients"]).permutation(clients)
    return ClientSplit(np.sort(chosen[count:]), np.sort(chosen[:count]))


def hold_out_clients(
    population: Population, held_out: float | int, seed: int = 0
) -> tuple[Population, Population]:
    """The clients to train on and those held out, as two populations with the same test set.

    No example is in both. Each holds a copy of its clients' rows; to evaluate held-out clients of a population
    that is mapped from a file without copying, pass ``draw_held_out``'s numbers to ``evaluate_clients``.

    Raises:
        SettingError: As ``draw_held_out``.
        DataError: One side has no example.
    """
    split = draw_held_out(population.clients, held_out, seed)
    return take_clients(population, split.training), take_clients(population, split.held_out)


def take_clients(population: Population, clients: NDArray[np.int64]) -> Population:
    """A population of some clients, in the order given; client ``clients[i]`` becomes client ``i``."""
    order, offsets = rows_of_clients(population.offsets, clients)
    return replace(
        population,
        features=take_rows(population.features, order),
        labels=take_rows(population.labels, order),
        offsets=offsets,
    )


def rows_of_clients(offsets: Offsets, clients: NDArray[np.int64], cap: int | None = None) -> tuple[Rows, Offsets]:
    """Rows that ``clients`` own under ``offsets``, the first ``cap`` of each, and the offsets of those rows."""
    first = offsets[:-1][clients]
    owned = offsets[1:][clients] - first
    sizes = owned if cap is None else np.minimum(owned, cap)
    ends = np.cumsum(sizes, dtype=np.int64)
    taken = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    total = int(taken[-1])
    some = np.flatnonzero(sizes)
    start = int(first[some[0]]) if some.size else 0
    if np.array_equal(first[some], start + taken[:-1][some]):
        return slice(start, start + total), taken
    return np.arange(total) + np.repeat(first - taken[:-1], sizes), taken


def take_rows(array: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """``array[rows]``; the array itself for all rows, a view for consecutive ones, else a copy."""
    if isinstance(rows, slice) and (rows.start, rows.stop) == (0, len(array)):
        return array
    taken: NDArray[Any] = array[rows]
    return taken
