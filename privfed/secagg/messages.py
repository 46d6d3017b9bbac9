"""The seven messages of the protocol, frozen; Bonawitz et al. 2017, figure 4.

``size`` is how many bytes the fields of a client's message take: 8 for an identifier, 32 for a key or commitment,
33 for a Shamir share, and the length of what is already bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ID_BYTES, KEY_BYTES, SHARE_BYTES = 8, 32, 33


@dataclass(frozen=True)
class AdvertiseKeys:
    """Client to server: the client's two public keys, 32 bytes each.

    The private half of ``mask_key`` is revealed when its owner vanishes; that of ``channel_key`` never is.
    """

    sender: int
    mask_key: bytes
    channel_key: bytes

    @property
    def size(self) -> int:
        """Bytes of the fields."""
        return ID_BYTES + len(self.mask_key) + len(self.channel_key)


@dataclass(frozen=True)
class Roster:
    """Server to every client that advertised: all advertised keys, by ascending sender."""

    entries: tuple[AdvertiseKeys, ...]


@dataclass(frozen=True)
class ShareKeys:
    """Client to server: commitment to its self-mask seed; by recipient, the sealed shares of seed and mask key."""

    sender: int
    commitment: bytes
    sealed: Mapping[int, bytes]

    def __post_init__(self) -> None:
        _freeze(self, "sealed")

    @property
    def size(self) -> int:
        """Bytes of the fields."""
        return ID_BYTES + len(self.commitment) + sum(ID_BYTES + len(box) for box in self.sealed.values())


@dataclass(frozen=True)
class Inbox:
    """Server to every client that shared: by sender, the shares sealed for this client."""

    recipient: int
    sealed: Mapping[int, bytes]

    def __post_init__(self) -> None:
        _freeze(self, "sealed")


@dataclass(frozen=True, eq=False)
class MaskedInput:
    """Client to server: its ring vector ``[dimension]`` under all masks; read-only."""

    sender: int
    vector: NDArray[Any]

    def __post_init__(self) -> None:
        if isinstance(self.vector, np.ndarray):
            view = self.vector.view()
            view.flags.writeable = False
            object.__setattr__(self, "vector", view)

    @property
    def size(self) -> int:
        """Bytes of the fields."""
        return ID_BYTES + int(self.vector.nbytes)


@dataclass(frozen=True)
class UnmaskRequest:
    """Server to every survivor: whose input arrived, and who shared but sent none; both ascending."""

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class UnmaskShares:
    """Survivor to server: shares of the survivors' self-mask seeds and of the dropped clients' mask keys."""

    sender: int
    seed_shares: Mapping[int, int] = field(repr=False)
    key_shares: Mapping[int, int] = field(repr=False)

    def __post_init__(self) -> None:
        _freeze(self, "seed_shares", "key_shares")

    @property
    def size(self) -> int:
        """Bytes of the fields."""
        return ID_BYTES + (ID_BYTES + SHARE_BYTES) * (len(self.seed_shares) + len(self.key_shares))


ToServer = AdvertiseKeys | ShareKeys | MaskedInput | UnmaskShares
ToClient = Roster | Inbox | UnmaskRequest
Message = ToServer | ToClient


def _freeze(message: object, *names: str) -> None:
    for name in names:
        object.__setattr__(message, name, MappingProxyType(dict(getattr(message, name))))
