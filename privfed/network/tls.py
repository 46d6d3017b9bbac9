"""Mutual TLS 1.3 for gRPC, and who is at the other end of a connection.

gRPC's Python interface neither sets a least version nor reads revocation lists. So it is done otherwise:

* TLS 1.2 fails in the handshake: the only cipher suite that is left for it needs an RSA certificate, and ours are
  ECDSA (the suites of TLS 1.3 are not touched by this). That is set in ``privfed.network``, and does nothing in a
  process that has imported gRPC before. So ``Gate`` looks at the version of each connection once more.
* Unknown authorities and expired certificates fail in the handshake.
* Revoked certificates pass the handshake. ``Gate`` refuses each of their calls before it is handled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import grpc

from privfed.errors import DataError
from privfed.network.certificates import Authority, Certificate, RevocationList, check_valid, from_pem
from privfed.network.errors import NotAdmittedError
from privfed.network.pki import IdentityFile, read_revocations

TLS_VERSION = b"TLSv1.3"
_REMEMBERED = 4096
"""Certificates whose signature need not be verified again."""


def server_credentials(identity: IdentityFile) -> grpc.ServerCredentials:
    """Of a server that wants a certificate of everybody."""
    pairs = [(identity.tls_key, identity.certificate)]
    return grpc.ssl_server_credentials(pairs, identity.authority, require_client_auth=True)


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
        self._stamp = self._stamped()
        self._list = read_revocations(path, authority)

    def __call__(self) -> RevocationList:
        """The list as it is now; one that cannot be read leaves the earlier one, which ends by itself."""
        stamp = self._stamped()
        if stamp is not None and stamp != self._stamp:
            try:
                newer = read_revocations(self._path, self._authority)
            except DataError:
                return self._list  # half written, or damaged: it is tried again at the next call
            self._stamp = stamp
            if newer.number >= self._list.number:
                self._list = newer
        return self._list

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
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
