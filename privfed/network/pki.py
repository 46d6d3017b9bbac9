"""The authority's folder: ``privfed pki init | issue | revoke``. It belongs on no machine that serves or trains.

::

    ca.key         the authority's Ed25519 key, 0600
    ca.pem         its certificate
    revoked.pem    its revocation list, to be copied to the server
    clients.pem    every client's certificate that was not revoked, to be copied to the server as well
    issued.jsonl   a line for each certificate, and for each revocation
    client-7.pem   an identity file, 0600: both keys, both certificates; to be moved to the client
    server-H.pem   the same of a server, whose name or address is H
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privfed.errors import DataError, OutputError, SettingError
from privfed.files import replacing
from privfed.network.certificates import identity_uri
from privfed.network.identity_file import blocks_of

AUTHORITY_DAYS, CERTIFICATE_DAYS, REVOCATION_DAYS = 3650, 365, 30
_KEY, _CERTIFICATE, _REVOKED, _ISSUED, _CLIENTS = "ca.key", "ca.pem", "revoked.pem", "issued.jsonl", "clients.pem"
_BACKDATED = timedelta(minutes=5)
"""Clocks differ."""


def create(folder: Path, days: int = AUTHORITY_DAYS) -> None:
    """A new authority in ``folder``, with an empty revocation list.

    Raises:
        OutputError: There is one already, or the folder cannot be written.
    """
    if (folder / _KEY).exists():
        raise OutputError("holds an authority already", where=str(folder), remedy="Name another folder")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=str(folder)) from None
    key, now = Ed25519PrivateKey.generate(), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"privfed authority {os.urandom(8).hex()}")])
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        False,
    )
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    _write(folder / _KEY, _pem(key), private=True)
    _write(folder / _CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    _write(folder / _ISSUED, b"")
    _renew_list(folder, key, certificate, REVOCATION_DAYS)


def issue(
    folder: Path, *, client: int | None = None, server: str | None = None, days: float = CERTIFICATE_DAYS
) -> Path:
    """Keys and a certificate for a client's number, or for a server's name or address; the identity file's path.

    Raises:
        SettingError: Neither or both are given, or the name is none.
        OutputError: The identity file is there already.
        DataError: The folder holds no authority.
    """
    if (client is None) == (server is None):
        raise SettingError("one of the two is needed", where="--client, --server")
    with _authority(folder) as (key, authority):
        tls, signing, now = ec.generate_private_key(ec.SECP256R1()), None, datetime.now(timezone.utc)
        name: x509.GeneralName
        if client is not None:
            signing = Ed25519PrivateKey.generate()
            who, usage = f"client-{client}", ExtendedKeyUsageOID.CLIENT_AUTH
            name = x509.UniformResourceIdentifier(identity_uri(client, signing.public_key().public_bytes_raw()))
        else:
            assert server is not None
            who, usage, name = f"server-{server}", ExtendedKeyUsageOID.SERVER_AUTH, _server_name(server)
        path = folder / f"{who}.pem"
        if path.exists():
            raise OutputError(
                "is there already", where=str(path), remedy="Revoke it, and move the file away, to issue a new one"
            )
        certificate = (
            x509.CertificateBuilder(
                authority.subject,
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"privfed {who}"[:64])]),
                tls.public_key(),
                x509.random_serial_number(),
            )
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .sign(key, None)
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        keys = _pem(tls) + (b"" if signing is None else _pem(signing))
        _note(folder, "issued", who, certificate.serial_number, until=f"{certificate.not_valid_after_utc:%F}")
        if client is not None:
            _write(folder / _CLIENTS, b"".join([*_clients(folder), pem]))
        _write(path, keys + pem + authority.public_bytes(serialization.Encoding.PEM), private=True)
    return path


def revoke(folder: Path, client: int | None = None, server: str | None = None, days: int = REVOCATION_DAYS) -> int:
    """Revoke every certificate of a client or server, and sign a new list; how many it newly names.

    Without either the list is only renewed, for so many ``days``: after that nobody is let in any more.

    Raises:
        DataError: No certificate of theirs was issued, or the folder holds no authority.
    """
    with _authority(folder) as (key, authority):
        lines = _lines(folder)
        gone = {line["serial"] for line in lines if line["event"] == "revoked"}
        found: list[int] = []
        if client is not None or server is not None:
            who = f"client-{client}" if client is not None else f"server-{server}"
            theirs = [int(line["serial"], 16) for line in lines if line["who"] == who]
            if not theirs:
                raise DataError(f"no certificate of {who} was issued", where=str(folder))
            found = sorted({serial for serial in theirs if f"{serial:x}" not in gone})
            for serial in found:
                _note(folder, "revoked", who, serial)
        if found and client is not None:
            left = [
                pem for pem in _clients(folder) if x509.load_pem_x509_certificate(pem).serial_number not in found
            ]
            _write(folder / _CLIENTS, b"".join(left))
        _renew_list(folder, key, authority, days)
    return len(found)


@contextmanager
def _authority(folder: Path) -> Iterator[tuple[Ed25519PrivateKey, x509.Certificate]]:
    """Key and certificate, for one process at a time."""
    try:
        with (folder / _ISSUED).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            key = serialization.load_pem_private_key((folder / _KEY).read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / _CERTIFICATE).read_bytes())
            if not isinstance(key, Ed25519PrivateKey):
                raise DataError("holds a key of another kind", where=str(folder / _KEY))
            yield key, certificate
    except FileNotFoundError as error:
        raise DataError(
            "holds no authority", where=str(folder), value=error.filename, remedy="Make one by privfed pki init"
        ) from None


def _renew_list(folder: Path, key: Ed25519PrivateKey, authority: x509.Certificate, days: int) -> None:
    path, now, number = folder / _REVOKED, datetime.now(timezone.utc), 1
    if path.exists():
        earlier = x509.load_pem_x509_crl(path.read_bytes())
        number = earlier.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    builder = (
        x509.CertificateRevocationListBuilder(authority.subject, now - _BACKDATED, now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
    )  # fmt: skip
    for line in _lines(folder):
        if line["event"] == "revoked":
            when = datetime.fromisoformat(line["time"])
            entry = x509.RevokedCertificateBuilder(int(line["serial"], 16), when).build()
            builder = builder.add_revoked_certificate(entry)
    _write(path, builder.sign(key, None).public_bytes(serialization.Encoding.PEM))


def _clients(folder: Path) -> list[bytes]:
    path = folder / _CLIENTS
    return [pem for _, pem in blocks_of(path.read_bytes())] if path.exists() else []


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / _ISSUED).read_text(encoding="utf-8").splitlines()]


def _note(folder: Path, event: str, who: str, serial: int, **more: str) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = {"time": now, "event": event, "who": who, "serial": f"{serial:x}", **more}
    with (folder / _ISSUED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _server_name(server: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(server))
    except ValueError:
        pass
    if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*", server):
        raise SettingError("is neither a host's name nor an address", where="--server", value=server)
    return x509.DNSName(server)


def _pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, nothing)


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    with replacing(path, private=private) as file:
        file.write(content)
