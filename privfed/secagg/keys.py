"""Key pairs, derived keys, commitments and sealed shares, each bound to session, round, ids and purpose."""

from __future__ import annotations

import hmac
import os
import struct
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privfed.secagg.errors import BrokenSealError, KeyRefusedError, MalformedMessageError
from privfed.secagg.messages import KEY_BYTES, SHARE_BYTES
from privfed.secagg.params import SecAggParams
from privfed.secagg.shamir import PRIME

NONCE_BYTES, TAG_BYTES = 12, 16
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES

_LABEL = b"privfed.secagg/1"


class Purpose(Enum):
    """What a derived value is for; no two purposes ever share a key."""

    PAIR_MASK = b"pair mask"
    SELF_MASK = b"self mask"
    CHANNEL = b"channel"
    COMMITMENT = b"commitment"


def binding(params: SecAggParams, purpose: Purpose, first: int, second: int) -> bytes:
    """Unambiguous encoding of session, round, purpose and two ids: every variable part carries its length."""
    session, name = params.session, purpose.value
    lengths = bytes((len(session), len(name)))
    return _LABEL + lengths + session + name + struct.pack(">QQQ", params.round_number, first, second)


def hkdf_sha256(secret: bytes, info: bytes, *, salt: bytes | None = None, length: int = KEY_BYTES) -> bytes:
    """HKDF with SHA-256 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


class KeyPair:
    """An X25519 key pair (RFC 7748); its ``repr`` shows the public key only."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> KeyPair:
        """Fresh pair from the operating system's generator."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, private: bytes) -> KeyPair:
        """Pair of a private key, 32 bytes."""
        return cls(X25519PrivateKey.from_private_bytes(private))

    def private_bytes(self) -> bytes:
        """The private key, 32 bytes, to be shared and never logged."""
        return self._private.private_bytes_raw()

    def exchange(self, public: bytes, *, owner: int) -> bytes:
        """Shared secret with the owner of ``public``, 32 bytes.

        Raises:
            KeyRefusedError: ``public`` is not 32 bytes or has low order, so that the secret would be known to all.
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise KeyRefusedError(
                "public key is not a point of full order on Curve25519", offender=owner
            ) from None

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()}, private=<redacted>)"


def pair_mask_key(params: SecAggParams, pair: KeyPair, own: int, peer: int, peer_public: bytes) -> bytes:
    """Keystream key that ``own`` and ``peer`` have in common, 32 bytes; the same from either side.

    Raises:
        KeyRefusedError: The peer's key is unusable.
    """
    info = binding(params, Purpose.PAIR_MASK, min(own, peer), max(own, peer))
    return hkdf_sha256(pair.exchange(peer_public, owner=peer), info)


def self_mask_key(params: SecAggParams, seed: bytes, owner: int) -> bytes:
    """Keystream key of a client's own mask, 32 bytes."""
    return hkdf_sha256(seed, binding(params, Purpose.SELF_MASK, owner, owner))


def commit_to_seed(params: SecAggParams, seed: bytes, owner: int) -> bytes:
    """SHA-256 commitment to a self-mask seed, 32 bytes: hiding, since the seed is 256 random bits; binding."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(binding(params, Purpose.COMMITMENT, owner, owner) + seed)
    return digest.finalize()


def matches(expected: bytes, actual: bytes) -> bool:
    """Whether two public values are equal, in constant time."""
    return hmac.compare_digest(expected, actual)


def channel_key(params: SecAggParams, shared: bytes, sender: int, recipient: int) -> bytes:
    """AES-256-GCM key of one direction between two clients, from their channel secret."""
    return hkdf_sha256(shared, binding(params, Purpose.CHANNEL, sender, recipient))


def seal(params: SecAggParams, key: bytes, sender: int, recipient: int, seed_share: int, key_share: int) -> bytes:
    """Two shares under AES-256-GCM: nonce, ciphertext, tag; bound to session, round, sender and recipient."""
    nonce = os.urandom(NONCE_BYTES)
    plain = seed_share.to_bytes(SHARE_BYTES, "big") + key_share.to_bytes(SHARE_BYTES, "big")
    return nonce + AESGCM(key).encrypt(nonce, plain, binding(params, Purpose.CHANNEL, sender, recipient))


def unseal(params: SecAggParams, key: bytes, sender: int, recipient: int, sealed: bytes) -> tuple[int, int]:
    """The seed share and the key share that ``sender`` sealed for ``recipient``.

    Raises:
        MalformedMessageError: Wrong length, or a share outside of the field.
        BrokenSealError: Not what ``sender`` sealed for ``recipient`` in this session and round.
    """
    if len(sealed) != SEALED_BYTES:
        raise MalformedMessageError(
            f"sealed shares must be {SEALED_BYTES} bytes (got {len(sealed)})", offender=sender
        )
    nonce, box = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        plain = AESGCM(key).decrypt(nonce, box, binding(params, Purpose.CHANNEL, sender, recipient))
    except InvalidTag:
        raise BrokenSealError(f"sealed shares for client {recipient} do not open", offender=sender) from None
    shares = int.from_bytes(plain[:SHARE_BYTES], "big"), int.from_bytes(plain[SHARE_BYTES:], "big")
    if max(shares) >= PRIME:
        raise MalformedMessageError("a sealed share lies outside of the field", offender=sender)
    return shares
