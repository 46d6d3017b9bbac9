"""How a cohort is cut into parts, whose sums are added in one order: what the bits of a float sum depend on.

Whoever trains a part, thread or machine, gets the bits that everybody else would get.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def cut(sizes: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Positions of clients of ``sizes`` examples, in ``parts`` consecutive parts of about the same work.

    There are fewer where a part would have nobody.
    """
    # A client costs something even without examples; the middle of its work decides whose it is.
    work = np.cumsum(sizes + 1) - (sizes + 1) / 2
    owner = (work * parts / max(1, (sizes + 1).sum())).astype(int)
    found = np.split(np.arange(len(owner)), np.searchsorted(owner, np.arange(1, parts)))
    return [part for part in found if len(part)]


def total_of(totals: Iterable[NDArray[np.float64]], dimension: int) -> NDArray[np.float64]:
    """The sum of the parts' sums ``[dimension]``, one after the other."""
    total = np.zeros(dimension)
    for part in totals:
        total += part
    return total
