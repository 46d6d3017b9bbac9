"""Who is who: Ed25519 identities (RFC 8032) and the caller's directory of them.

The directory is the root of all trust here. Whoever fills it, and it must not be the server, decides whose keys
count as whose; an entry that the server made up is a client that the server plays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privfed.secagg.errors import ParameterError
from privfed.secagg.messages import KEY_BYTES


class Identity:
    """A client's long-term signing key; its ``repr`` shows the public key only."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """Fresh identity from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, private: bytes) -> Identity:
        """Identity of a private key, 32 bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(private))

    def sign(self, content: bytes) -> bytes:
        """Signature over ``content``, 64 bytes."""
        return self._private.sign(content)

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()}, private=<redacted>)"


class Directory(Mapping[int, bytes]):
    """Client id → Ed25519 public key, 32 bytes; read-only.

    Raises:
        ParameterError: A key is no Ed25519 key, or stands for two clients.
    """

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self._keys = {client: bytes(key) for client, key in keys.items()}
        owners: dict[bytes, int] = {}
        for client, key in self._keys.items():
            if len(key) != KEY_BYTES:
                raise ParameterError(
                    f"directory: client {client}'s key must be {KEY_BYTES} bytes (got {len(key)})"
                )
            if key in owners:
                raise ParameterError(
                    f"directory: clients {owners[key]} and {client} have one key. Give each its own"
                )
            owners[key] = client
        self._parsed: dict[int, Ed25519PublicKey] = {}

    def verify(self, client: int, signature: bytes, content: bytes) -> bool:
        """Whether ``signature`` is ``client``'s over ``content``; no for whoever is not in the directory."""
        if client not in self._keys:
            return False
        try:
            if client not in self._parsed:
                self._parsed[client] = Ed25519PublicKey.from_public_bytes(self._keys[client])
            self._parsed[client].verify(signature, content)
        except (InvalidSignature, ValueError):
            return False
        return True

    def __getitem__(self, client: int) -> bytes:
        return self._keys[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"Directory({len(self._keys)} clients)"
