"""What a server or client has of the authority: its identity file, and the revocation list."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privfed.errors import DataError
from privfed.network.certificates import Authority, RevocationList
from privfed.network.errors import NotAdmittedError

_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\n.*?-----END \1-----\n", re.DOTALL)


@dataclass(frozen=True)
class IdentityFile:
    """What one side of a connection has: its keys, its certificate and the authority's.

    Attributes:
        tls_key: PEM, private.
        certificate: PEM.
        authority: PEM.
        signing_key: A client's Ed25519 key, 32 private bytes; ``None`` for a server.
    """

    tls_key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes
    signing_key: bytes | None = field(repr=False)


def read_identity(path: Path) -> IdentityFile:
    """Read an identity file.

    Raises:
        DataError: Missing, malformed, or others than its owner can read it.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=f"--identity {path}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise DataError(
            "others than its owner can read it",
            where=f"--identity {path}",
            value=oct(stat.S_IMODE(mode)),
            remedy="chmod 600, and issue a new one if it was read",
        )
    blocks = blocks_of(content)
    kinds = [kind for kind, _ in blocks]
    keys = [block for kind, block in blocks if kind == b"PRIVATE KEY"]
    if kinds[-2:] != [b"CERTIFICATE"] * 2 or len(keys) != len(blocks) - 2 or not 1 <= len(keys) <= 2:
        raise DataError("is no identity file", where=f"--identity {path}", remedy="Make one by privfed pki issue")
    try:
        private = [serialization.load_pem_private_key(key, None) for key in keys]
    except (ValueError, TypeError) as error:
        raise DataError(f"holds a key that cannot be read: {error}", where=f"--identity {path}") from None
    signing = [key.private_bytes_raw() for key in private if isinstance(key, Ed25519PrivateKey)]
    return IdentityFile(keys[0], blocks[-2][1], blocks[-1][1], signing[0] if signing else None)


def read_revocations(path: Path, authority: Authority) -> RevocationList:
    """Read a revocation list.

    Raises:
        DataError: Missing, malformed, or of another authority.
    """
    try:
        listed = x509.load_pem_x509_crl(path.read_bytes())
        return authority.revocations(listed.public_bytes(serialization.Encoding.DER))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=f"--revoked {path}") from None
    except (ValueError, NotAdmittedError) as error:
        raise DataError(f"is no revocation list of the authority: {error}", where=f"--revoked {path}") from None


def blocks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """What each block of PEM is, and the block."""
    return [(match[1], match[0]) for match in _PEM.finditer(content)]
