"""Key pairs, derived keys, commitments, sealed shares, tags and signed content, each bound to where it belongs."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Iterable, Sequence
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privfed.secagg.errors import BrokenSealError, KeyRefusedError, MalformedMessageError
from privfed.secagg.messages import DIGEST_BYTES, KEY_BYTES, SEALED_BYTES, SHARE_BYTES
from privfed.secagg.params import SecAggParams
from privfed.secagg.shamir import PRIME

NONCE_BYTES = 12
NO_TOP = bytes(DIGEST_BYTES)
"""Stands for the top before there is one."""

_LABEL = b"privfed.secagg/4"


class Purpose(Enum):
    """What a derived value or a signature is for; no two purposes ever share a key or a meaning."""

    PAIR_MASK = b"pair mask"
    SELF_MASK = b"self mask"
    CHANNEL = b"channel"
    INCLUDED = b"included"
    TO_SERVER = b"to server"
    COMMITMENT = b"commitment"
    GRAPH = b"graph"
    MODEL = b"model"
    MESSAGE = b"message"
    SURVIVORS = b"survivors"


class Scope:
    """Where a value belongs: the session, its round and parameters, and the top of what was advertised in it.

    Args:
        params: The session.
        top: Of the advertisements and the server's key: clients that were told different things share no key.
    """

    def __init__(self, params: SecAggParams, top: bytes = NO_TOP) -> None:
        session = params.session
        self._prefix = b"".join(
            (_LABEL, bytes((len(session),)), session, struct.pack(">Q", params.round_number), params.digest, top)
        )

    def info(self, purpose: Purpose, first: int, second: int) -> bytes:
        """Unambiguous encoding of all this, of the purpose and of two ids: every variable part has its length."""
        name = purpose.value
        return self._prefix + bytes((len(name),)) + name + struct.pack(">QQ", first, second)

    def key(self, secret: bytes, purpose: Purpose, first: int, second: int) -> bytes:
        """Key for one purpose and two ids, derived from ``secret``, 32 bytes."""
        return hkdf_sha256(secret, self.info(purpose, first, second))


def hkdf_sha256(secret: bytes, info: bytes, *, salt: bytes | None = None, length: int = KEY_BYTES) -> bytes:
    """HKDF with SHA-256 (RFC 5869), on the standard library's HMAC: a third of the time of a general class."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes((counter,)), "sha256")
        output += block
    return output[:length]


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
        """The private key, 32 bytes, to be shared and never logged; clamped, so that there is only one."""
        raw = self._private.private_bytes_raw()
        return bytes((raw[0] & 248,)) + raw[1:31] + bytes((raw[31] & 127 | 64,))

    def exchange(self, public: bytes, *, owner: int | None) -> bytes:
        """Shared secret with the owner of ``public``, 32 bytes; ``None`` is the server.

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


def pair_mask_key(scope: Scope, pair: KeyPair, own: int, peer: int, peer_public: bytes) -> bytes:
    """Keystream key that ``own`` and ``peer`` have in common, 32 bytes; the same from either side.

    Raises:
        KeyRefusedError: The peer's key is unusable.
    """
    shared = pair.exchange(peer_public, owner=peer)
    return scope.key(shared, Purpose.PAIR_MASK, min(own, peer), max(own, peer))


def self_mask_key(scope: Scope, seed: bytes, owner: int) -> bytes:
    """Keystream key of a client's own mask, 32 bytes."""
    return scope.key(seed, Purpose.SELF_MASK, owner, owner)


def commit_to_seed(scope: Scope, seed: bytes, owner: int) -> bytes:
    """SHA-256 commitment to a self-mask seed, 32 bytes: hiding, since the seed is 256 random bits; binding."""
    return hashlib.sha256(scope.info(Purpose.COMMITMENT, owner, owner) + seed).digest()


def commit_to_model(scope: Scope, model: bytes) -> bytes:
    """SHA-256 digest of the model that a round starts from, 32 bytes; binding; models need no hiding."""
    return hashlib.sha256(scope.info(Purpose.MODEL, 0, 0) + model).digest()


def message_to_sign(scope: Scope, digest: bytes, sender: int) -> bytes:
    """What a client signs under a message: where it belongs, whose it is, and the digest of its wire form."""
    return scope.info(Purpose.MESSAGE, sender, sender) + digest


def survivors_to_sign(scope: Scope, model_digest: bytes, survivors: Sequence[int]) -> bytes:
    """What all survivors sign: the session, its roster (by the scope), the model and who survived."""
    packed = hashlib.sha256(struct.pack(f">{len(survivors)}Q", *survivors)).digest()
    return scope.info(Purpose.SURVIVORS, 0, len(survivors)) + model_digest + packed


def matches(expected: bytes, actual: bytes) -> bool:
    """Whether two values are equal, in constant time."""
    return hmac.compare_digest(expected, actual)


def channel_key(scope: Scope, shared: bytes, sender: int, recipient: int) -> bytes:
    """AES-256-GCM key of one direction between two clients, from their channel secret."""
    return scope.key(shared, Purpose.CHANNEL, sender, recipient)


def inclusion_token(scope: Scope, shared: bytes, sender: int, recipient: int) -> bytes:
    """What ``sender`` gives away once the mask it has with ``recipient`` is in its vector; 32 bytes.

    Nobody but the two can compute it, from their channel secret. It keeps a server from telling ``sender`` that
    ``recipient`` has shared nothing, so that they have no mask in common, and yet having ``recipient`` unmask it.
    """
    return scope.key(shared, Purpose.INCLUDED, sender, recipient)


def tag_key(scope: Scope, shared: bytes, sender: int) -> bytes:
    """Key of ``sender``'s tags, 32 bytes, from the secret that its channel key has with the server's key.

    A client's signed advertisement says whose channel key it is; the server's is in the top.
    """
    return scope.key(shared, Purpose.TO_SERVER, sender, sender)


def tag_of(key: bytes, kind: int, pieces: Iterable[bytes | memoryview]) -> bytes:
    """GMAC with AES-256 (NIST SP 800-38D, section 6.4) of all ``pieces``, 16 bytes.

    The nonce is the message's ``kind``, of which a client sends one in a session. To forge a message of b bytes
    without the key succeeds with probability ``b * 2**-132``.
    """
    mac = Cipher(algorithms.AES256(key), modes.GCM(kind.to_bytes(NONCE_BYTES, "big"))).encryptor()
    for piece in pieces:
        mac.authenticate_additional_data(piece)
    mac.finalize()
    return mac.tag


def seal(scope: Scope, key: bytes, sender: int, recipient: int, seed_share: int, key_share: int) -> bytes:
    """Two shares under AES-256-GCM: nonce, ciphertext, tag; bound to the scope, sender and recipient."""
    nonce = os.urandom(NONCE_BYTES)
    plain = seed_share.to_bytes(SHARE_BYTES, "big") + key_share.to_bytes(SHARE_BYTES, "big")
    return nonce + AESGCM(key).encrypt(nonce, plain, scope.info(Purpose.CHANNEL, sender, recipient))


def unseal(scope: Scope, key: bytes, sender: int, recipient: int, sealed: bytes) -> tuple[int, int]:
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
        plain = AESGCM(key).decrypt(nonce, box, scope.info(Purpose.CHANNEL, sender, recipient))
    except InvalidTag:
        raise BrokenSealError(f"sealed shares for client {recipient} do not open", offender=sender) from None
    shares = int.from_bytes(plain[:SHARE_BYTES], "big"), int.from_bytes(plain[SHARE_BYTES:], "big")
    if max(shares) >= PRIME:
        raise MalformedMessageError("a sealed share lies outside of the field", offender=sender)
    return shares
