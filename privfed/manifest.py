"""What ties a run's files together: the hash of each in ``manifest.json``, and a signature on that.

Hashes find accidents, and the edit of one file. Whoever can rewrite every file can rewrite the hashes too, so that
only a signature (Ed25519, RFC 8032) by a key that is kept elsewhere shows that a report is the one that was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privfed.errors import PrivFedError
from privfed.files import write_text

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
VERSION = 1
_CONTEXT = b"privfed manifest 1\n"
"""Before what is signed, so that a signature of another purpose is none of this one."""
_NEVER = (MANIFEST, SIGNATURE, "report.pdf")
"""A printed page has the day of its printing in it."""
MAKE_KEYS = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


@dataclass(frozen=True)
class Sealed:
    """A manifest as it was read.

    Attributes:
        files: SHA-256 by name.
        text: As it stands in its file.
    """

    files: Mapping[str, str]
    text: str


def files_of(folder: Path) -> list[Path]:
    """What a manifest covers: the folder's own files, but neither checkpoints nor TensorBoard's."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith((".", "events.out.tfevents")) and path.name not in _NEVER
    )


def manifest_text(folder: Path, coming: Mapping[str, str] | None = None, besides: Collection[str] = ()) -> str:
    """The manifest of ``folder`` once the texts in ``coming`` are there, without the files named ``besides``."""
    texts = {name: _sha256(text.encode()) for name, text in (coming or {}).items()}
    there = {path.name: _sha256(path.read_bytes()) for path in files_of(folder) if path.name not in texts}
    files = {name: digest for name, digest in sorted({**there, **texts}.items()) if name not in besides}
    return _canonical({"version": VERSION, "files": files})


def renewed(sealed: Sealed, texts: Mapping[str, str]) -> str:
    """The manifest with other hashes for these texts alone."""
    files = {**sealed.files, **{name: _sha256(text.encode()) for name, text in texts.items()}}
    return _canonical({"version": VERSION, "files": dict(sorted(files.items()))})


def seal(folder: Path, besides: Collection[str] = ()) -> bool:
    """Write the manifest anew; returns whether a signature was removed, since it does not fit any more."""
    text, path = manifest_text(folder, besides=besides), folder / MANIFEST
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") == text:
        return False
    signed = (folder / SIGNATURE).exists()
    (folder / SIGNATURE).unlink(missing_ok=True)
    write_text(path, text)
    return signed


def read_manifest(folder: Path) -> Sealed:
    """Read a manifest; every byte of it counts.

    Raises:
        PrivFedError: It is missing, or not in the one form that is written.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        tree = json.loads(text)
        files = tree["files"]
        whole = _canonical({"version": VERSION, "files": files}) == text and all(
            isinstance(name, str) and isinstance(digest, str) for name, digest in files.items()
        )
    except OSError:
        raise PrivFedError("is missing", where=str(path)) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise PrivFedError("is not what was written", where=str(path))
    return Sealed(files, text)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key to sign with, from PEM without a passphrase.

    Raises:
        PrivFedError: It is missing, encrypted, or another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(_key_bytes(path, "--sign"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PrivFedError(
            "is no Ed25519 private key in PEM without a passphrase",
            where=f"--sign {path}",
            remedy=f"Make one: {MAKE_KEYS}",
        )
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key from PEM.

    Raises:
        PrivFedError: It is missing, or another kind of key.
    """
    try:
        key = serialization.load_pem_public_key(_key_bytes(path, "--key"))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise PrivFedError(
            "is no Ed25519 public key in PEM", where=f"--key {path}", remedy=f"Make one: {MAKE_KEYS}"
        )
    return key


def signature_text(manifest: str, key: Ed25519PrivateKey) -> str:
    """What goes into ``manifest.sig`` for this manifest."""
    signature = key.sign(_CONTEXT + manifest.encode())
    return _canonical(
        {"algorithm": "Ed25519", "public_key": fingerprint(key.public_key()), "signature": signature.hex()}
    )


def check_signature(folder: Path, sealed: Sealed, trusted: Ed25519PublicKey | None) -> str:
    """The key that signed the manifest, in hexadecimal.

    Args:
        folder: The run's.
        sealed: Its manifest.
        trusted: The only key that counts; any when not given.

    Raises:
        PrivFedError: There is no signature, it is not by the trusted key, or it does not fit.
    """
    path = folder / SIGNATURE
    try:
        text = path.read_bytes().decode()
        values = json.loads(text)
        if _canonical(values) != text or values["algorithm"] != "Ed25519":
            raise ValueError
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(values["public_key"]))
        signature = bytes.fromhex(values["signature"])
    except OSError:
        raise PrivFedError("is missing", where=str(path)) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise PrivFedError("is no signature that this program writes", where=str(path)) from None
    if trusted is not None and fingerprint(trusted) != fingerprint(key):
        raise PrivFedError("is by another key", where=str(path), value=fingerprint(key))
    try:
        key.verify(signature, _CONTEXT + sealed.text.encode())
    except InvalidSignature:
        raise PrivFedError(f"does not fit {MANIFEST}", where=str(path)) from None
    return fingerprint(key)


def fingerprint(key: Ed25519PublicKey) -> str:
    """The key itself, 64 hexadecimal digits."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def _key_bytes(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PrivFedError(f"cannot be read: {error.strerror}", where=f"{option} {path}") from None


def _canonical(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
