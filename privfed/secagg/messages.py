"""The messages of the protocol, frozen; Bonawitz et al. 2017, figure 4, with the malicious setting's signatures.

What other clients are shown ends with its sender's Ed25519 signature: over the rest of the message, or, for
``ConsistencySignature``, over the list it was shown. What only the server ever sees ends with a tag, by a key that
only sender and server can derive, which takes a twentieth of the time of a hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from privfed.secagg.ring import RingVector

ID_BYTES, KEY_BYTES, SHARE_BYTES, SIGNATURE_BYTES, DIGEST_BYTES, TAG_BYTES = 8, 32, 33, 64, 32, 16
SEALED_BYTES = 12 + 2 * SHARE_BYTES + 16
"""A nonce, two shares and a tag of AES-GCM."""


@dataclass(frozen=True)
class AdvertiseKeys:
    """Client to server: its two public keys, 32 bytes each, and the digest of the model that it was given.

    The private half of ``mask_key`` is revealed when its owner vanishes; that of ``channel_key`` never is.
    """

    sender: int
    mask_key: bytes
    channel_key: bytes
    model_digest: bytes
    signature: bytes = b""


@dataclass(frozen=True)
class Roster:
    """Server to every client that advertised: what its neighbours advertised, by ascending sender.

    ``top`` is a hash of ``server_key``, with which the recipient makes its tags, and of the
    Merkle root of all advertisements, the graph's seed, which the recipient finds from its own by way of ``path``.
    """

    recipient: int
    top: bytes
    server_key: bytes
    path: tuple[bytes, ...]
    entries: tuple[AdvertiseKeys, ...]


@dataclass(frozen=True)
class ShareKeys:
    """Client to server: commitment to its self-mask seed; by neighbour, the sealed shares of seed and mask key."""

    sender: int
    commitment: bytes
    sealed: Mapping[int, bytes]
    tag: bytes = b""

    def __post_init__(self) -> None:
        _freeze(self, "sealed")


@dataclass(frozen=True)
class Inbox:
    """Server to every client that shared: by neighbour, the shares sealed for this client."""

    recipient: int
    sealed: Mapping[int, bytes]

    def __post_init__(self) -> None:
        _freeze(self, "sealed")


@dataclass(frozen=True, eq=False)
class MaskedInput:
    """Client to server: its ring vector ``[dimension]`` under all masks.

    ``included`` has a token for every neighbour whose pairwise mask is in the vector; only the two know it.
    """

    sender: int
    vector: RingVector
    included: Mapping[int, bytes]
    tag: bytes = b""

    def __post_init__(self) -> None:
        _freeze(self, "included")


@dataclass(frozen=True)
class SurvivorList:
    """Server to every client whose input arrived: all clients whose input arrived, ascending."""

    survivors: tuple[int, ...]


@dataclass(frozen=True)
class ConsistencySignature:
    """Client to server: its signature on session, roster, model and the survivor list as it was shown to it."""

    sender: int
    signature: bytes = b""


@dataclass(frozen=True)
class UnmaskRequest:
    """Server to every client that signed the list: the signatures of its neighbours on the same list.

    ``included`` has the tokens of all its surviving neighbours: the mask it shares with each is in its vector.
    """

    recipient: int
    signatures: Mapping[int, bytes]
    included: Mapping[int, bytes]

    def __post_init__(self) -> None:
        _freeze(self, "signatures", "included")


@dataclass(frozen=True)
class UnmaskShares:
    """Survivor to server: shares of the survivors' self-mask seeds and of the dropped clients' mask keys."""

    sender: int
    seed_shares: Mapping[int, int] = field(repr=False)
    key_shares: Mapping[int, int] = field(repr=False)
    tag: bytes = b""

    def __post_init__(self) -> None:
        _freeze(self, "seed_shares", "key_shares")


ToServer = AdvertiseKeys | ShareKeys | MaskedInput | ConsistencySignature | UnmaskShares
ToClient = Roster | Inbox | SurvivorList | UnmaskRequest
Message = ToServer | ToClient


def _freeze(message: object, *names: str) -> None:
    for name in names:
        object.__setattr__(message, name, MappingProxyType(dict(getattr(message, name))))
