"""A Merkle tree over what the cohort advertised: one root for all, and a short path that shows one leaf is in it.

A client that finds its own fresh keys under the root knows that nobody could compute the root, or anything drawn
from it, before it spoke. Leaves, inner nodes and the leaves of absent clients are hashed with different prefixes
(after RFC 6962, section 2.1); the tree is padded to a power of two with absent leaves. What everything is bound to
is the root together with the server's own key; the graph is drawn from the root without it, so that the key gives
the server no say in the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_LEAF, _NODE, _TOP = b"\x00", b"\x01", b"\x03"
ABSENT = hashlib.sha256(b"\x02").digest()


def leaf(content: bytes) -> bytes:
    """Hash of what one client advertised, 32 bytes."""
    return hashlib.sha256(_LEAF + content).digest()


class Tree:
    """All levels, from the leaves up.

    Args:
        leaves: At least one; for each client of the session in its order, ``ABSENT`` for who said nothing.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [[*leaves, *[ABSENT] * (2 ** depth(len(leaves)) - len(leaves))]]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            self._levels.append([_join(below[i], below[i + 1]) for i in range(0, len(below), 2)])

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self._levels[-1][0]

    def path(self, index: int) -> tuple[bytes, ...]:
        """Siblings on the way from leaf ``index`` to the root."""
        return tuple(level[(index >> height) ^ 1] for height, level in enumerate(self._levels[:-1]))


def depth(size: int) -> int:
    """Length of every path in a tree of ``size`` leaves."""
    return (size - 1).bit_length()


def root_above(own_leaf: bytes, path: Sequence[bytes], index: int, size: int) -> bytes | None:
    """The root that has ``own_leaf`` as leaf ``index`` of ``size``; ``None`` for a path of the wrong length."""
    if len(path) != depth(size):
        return None
    value = own_leaf
    for height, sibling in enumerate(path):
        value = _join(sibling, value) if (index >> height) & 1 else _join(value, sibling)
    return value


def top(root: bytes, server_key: bytes) -> bytes:
    """Root and server's key in one, 32 bytes."""
    return hashlib.sha256(_TOP + root + server_key).digest()


def _join(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
