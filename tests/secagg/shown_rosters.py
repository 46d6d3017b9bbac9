"""Rosters as a server would send them, true or not."""

from __future__ import annotations

from typing import Any

from privfed.secagg import merkle, wire
from privfed.secagg.messages import AdvertiseKeys, Roster


def roster_of(session: Any, recipient: int, entries: dict[int, AdvertiseKeys]) -> Roster:
    """What a server that shows ``entries`` to everybody would send ``recipient``; complete graphs only."""
    ids = session.params.client_ids
    tree = merkle.Tree([merkle.leaf(wire.encode(entries[i])) if i in entries else merkle.ABSENT for i in ids])
    others = tuple(entry for sender, entry in sorted(entries.items()) if sender != recipient)
    key = session.server._pair.public
    return Roster(recipient, merkle.top(tree.root, key), key, tree.path(ids.index(recipient)), others)
