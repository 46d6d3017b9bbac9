"""Mutual TLS 1.3 for gRPC, and who is at the other end of a connection.

gRPC's Python interface neither sets a least version nor reads revocation lists. So it is done otherwise:

* TLS 1.2 fails in the handshake: the only cipher suite that is left for it needs an RSA certificate, and ours are
  ECDSA (the suites of TLS 1.3 are not touched by this). That is set in ``privfed.network``, and does nothing in a
  process that has imported gRPC before. So ``Gate`` looks at the version of each connection once more.
* Unknown authorities and expired certificates fail in the handshake.
* Revoked certificates fail in the handshake where the server has ``Listed`` ones: it then trusts each of those by
  itself, and not the authority, whose every signature would do. The list is looked at before each handshake.
* ``Gate`` looks at each call, and so ends what a revoked identity does on a connection that is open already.
  Without a list that is all that stands in its way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import grpc

from privfed.errors import DataError
from privfed.network.certificates import Authority, Certificate, RevocationList, check_valid, from_pem
from privfed.network.errors import NotAdmittedError
from privfed.network.identity_file import IdentityFile, blocks_of, read_revocations

TLS_VERSION = b"TLSv1.3"
_REMEMBERED = 4096
"""Certificates whose signature need not be verified again."""

MOST_LISTED = 5000
"""Certificates to trust one by one: BoringSSL takes 1.6 s to load them, and 45 s for four times as many."""


def server_credentials(identity: IdentityFile, listed: Listed | None = None) -> grpc.ServerCredentials:
    """Of a server that wants a certificate of everybody: one that is ``listed``, or any of the authority."""
    pairs = [(identity.tls_key, identity.certificate)]
    if listed is None:
        return grpc.ssl_server_credentials(pairs, identity.authority, require_client_auth=True)

    def trusting(pems: bytes) -> grpc.ServerCertificateConfiguration:
        # To trust nobody is no configuration to gRPC; the server's own is not a client's.
        return grpc.ssl_server_certificate_configuration(pairs, pems or identity.certificate)

    def newer() -> grpc.ServerCertificateConfiguration | None:
        pems = listed.changed()
        return None if pems is None else trusting(pems)

    return grpc.dynamic_ssl_server_credentials(trusting(listed.pems), newer, require_client_authentication=True)


def client_credentials(identity: IdentityFile) -> grpc.ChannelCredentials:
    """Of a client; the server's name or address must be in the server's certificate."""
    return grpc.ssl_channel_credentials(identity.authority, identity.tls_key, identity.certificate)


class Revocations:
    """A revocation list on disk, read anew when the file changes.

    Raises:
        DataError: Missing, malformed, or of another authority.
    """

    def __init__(self, path: Path, authority: Authority) -> None:
        self._path, self._authority = path, authority
        self._stamp = _stamp(path)
        self._list = read_revocations(path, authority)

    def __call__(self) -> RevocationList:
        """The list as it is now; one that cannot be read leaves the earlier one, which ends by itself."""
        stamp = _stamp(self._path)
        if stamp is not None and stamp != self._stamp:
            try:
                newer = read_revocations(self._path, self._authority)
            except DataError:
                return self._list  # half written, or damaged: it is tried again at the next call
            self._stamp = stamp
            if newer.number >= self._list.number:
                self._list = newer
        return self._list


class Listed:
    """Certificates on disk of the clients that may connect, read anew when the file changes or one is revoked.

    Attributes:
        pems: Those of them that are not revoked, one after another. Expired ones stay: TLS says so of them.

    Args:
        path: A file of certificates (``clients.pem``).
        authority: Whose they must be.
        revocations: The list as it is now.

    Raises:
        DataError: Missing, malformed, of another authority, none or too many.
    """

    def __init__(self, path: Path, authority: Authority, revocations: Callable[[], RevocationList]) -> None:
        self._path, self._authority, self._revocations = path, authority, revocations
        self._lock = threading.Lock()
        self._seen = (_stamp(path), revocations().number)
        self._certificates = self._read()
        if not self._certificates:
            raise DataError("holds no certificate", where=f"--clients {path}", remedy="Copy the authority's")
        self.pems = self._left()

    def changed(self) -> bytes | None:
        """The new ``pems`` if they are others than before; a file that cannot be read leaves the earlier ones."""
        with self._lock:
            seen = (_stamp(self._path), self._revocations().number)
            if seen == self._seen:
                return None
            if seen[0] is not None and seen[0] != self._seen[0]:
                try:
                    self._certificates = self._read()
                except DataError:
                    seen = (self._seen[0], seen[1])  # half written: it is tried again at the next handshake
            self._seen = seen
            before, self.pems = self.pems, self._left()
            return None if self.pems == before else self.pems

    def _left(self) -> bytes:
        revoked = self._revocations().serials
        return b"".join(pem for pem, serial in self._certificates.items() if serial not in revoked)

    def _read(self) -> dict[bytes, int]:
        where = f"--clients {self._path}"
        try:
            found = [pem for _, pem in blocks_of(self._path.read_bytes())]
            if len(found) > MOST_LISTED:
                raise DataError(
                    f"holds more than {MOST_LISTED} certificates",
                    where=where,
                    value=len(found),
                    remedy="Say --any-client: revoked identities are then refused at each call",
                )
            return {pem: self._authority.client(from_pem(pem)).serial for pem in found}
        except OSError as error:
            remedy = "Copy the authority's clients.pem, or say --any-client"
            raise DataError(f"cannot be read: {error.strerror}", where=where, remedy=remedy) from None
        except NotAdmittedError as error:
            raise DataError(
                f"holds what is no client's certificate of the authority: {error}", where=where
            ) from None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Gate:
    """Tells which client a connection belongs to, or refuses it.

    Args:
        authority: Whose certificates count.
        revocations: The list as it is now.
        population: Clients have numbers below this.
    """

    def __init__(self, authority: Authority, revocations: Callable[[], RevocationList], population: int) -> None:
        self._authority, self._revocations, self._population = authority, revocations, population
        self._known: dict[bytes, Certificate] = {}

    def __call__(self, connection: Mapping[str, list[bytes]]) -> Certificate:
        """The certificate of a connection, as gRPC's ``auth_context`` describes it.

        Raises:
            NotAdmittedError: Not TLS 1.3; expired or revoked since; not of a client of this population.
        """
        if connection.get("ssl_tls_version") != [TLS_VERSION]:
            raise NotAdmittedError("not TLS 1.3", "TLS 1.3 is needed")
        pem = (connection.get("x509_pem_cert") or [b""])[0]
        certificate = self._known.get(pem)
        if certificate is None:
            certificate = self._authority.client(from_pem(pem))
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[pem] = certificate
        check_valid(certificate, self._revocations(), datetime.now(timezone.utc))
        if certificate.client >= self._population:
            raise NotAdmittedError(
                "not in the population", f"there are {self._population} clients, from 0 (got {certificate.client})"
            )
        return certificate
