"""Who is who: one certificate for each client and server, from one authority that is not the server.

A client's certificate binds its number to two keys. The Ed25519 key signs what the masking protocol sends. The key
for TLS is ECDSA P-256, since the TLS of gRPC (BoringSSL's defaults) accepts no Ed25519 key at either end; the
authority's own key, and so every signature on a certificate or a revocation list, is Ed25519.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from privfed.errors import DataError
from privfed.network.errors import NotAdmittedError

MOST_BYTES = 4096
"""Of a certificate: ours have a few hundred."""

_CLIENT = re.compile(r"privfed:client:(0|[1-9][0-9]{0,17}):ed25519:([0-9a-f]{64})")


@dataclass(frozen=True)
class Certificate:
    """A client's certificate whose signature was verified.

    Attributes:
        client: Its number in the population, from 0.
        key: Ed25519 public key, 32 bytes.
        serial: Of the certificate, for revocation.
        not_before: From when on it is valid.
        not_after: Until when.
        der: As it came.
    """

    client: int
    key: bytes
    serial: int
    not_before: datetime
    not_after: datetime
    der: bytes


def identity_uri(client: int, key: bytes) -> str:
    """What the subject alternative name of a client's certificate says: its number and Ed25519 key."""
    return f"privfed:client:{client}:ed25519:{key.hex()}"


@dataclass(frozen=True)
class RevocationList:
    """Serial numbers that count no more, signed by the authority.

    Attributes:
        number: Rises with each list.
        next_update: When it ceases to be one.
        serials: Of revoked certificates.
        der: As it came.
    """

    number: int
    next_update: datetime
    serials: frozenset[int]
    der: bytes


class Authority:
    """Verifies certificates and revocation lists against the authority's certificate.

    Raises:
        DataError: ``pem`` is no certificate of an Ed25519 authority.
    """

    def __init__(self, pem: bytes) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(pem)
            key = self._certificate.public_key()
        except ValueError as error:
            raise DataError(f"is no certificate: {error}", where="authority") from None
        if not isinstance(key, Ed25519PublicKey):
            raise DataError("is no Ed25519 authority", where="authority", remedy="Make one by privfed pki init")
        self.pem, self._key = pem, key

    def client(self, der: bytes) -> Certificate:
        """The client's certificate that ``der`` is; neither its dates nor its revocation are looked at.

        Raises:
            NotAdmittedError: Not signed by this authority, or not of a client.
        """
        if len(der) > MOST_BYTES:
            raise NotAdmittedError("malformed certificate", f"a certificate has {MOST_BYTES} bytes at most")
        try:
            certificate = x509.load_der_x509_certificate(der)
            self._key.verify(certificate.signature, certificate.tbs_certificate_bytes)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            found = [_CLIENT.fullmatch(uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
        except InvalidSignature:
            raise NotAdmittedError("unknown authority", "the certificate is of another authority") from None
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise NotAdmittedError("malformed certificate", f"no certificate of a client: {error}") from None
        if certificate.issuer != self._certificate.subject:
            raise NotAdmittedError("unknown authority", "the certificate names another authority")
        if len(found) != 1 or found[0] is None or ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise NotAdmittedError("not a client", "the certificate is not of a client")
        return Certificate(
            int(found[0][1]),
            bytes.fromhex(found[0][2]),
            certificate.serial_number,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            der,
        )

    def revocations(self, der: bytes) -> RevocationList:
        """The revocation list that ``der`` is; whether it is still one is not looked at.

        Raises:
            NotAdmittedError: Not a list of this authority.
        """
        try:
            listed = x509.load_der_x509_crl(der)
            number = listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        except (ValueError, x509.ExtensionNotFound) as error:
            raise NotAdmittedError("malformed revocation list", f"no revocation list: {error}") from None
        if not listed.is_signature_valid(self._key) or listed.next_update_utc is None:
            raise NotAdmittedError("unknown authority", "the revocation list is of another authority")
        return RevocationList(number, listed.next_update_utc, frozenset(_serials(listed)), der)


def check_valid(certificate: Certificate, revocations: RevocationList, now: datetime | None = None) -> None:
    """Refuse a certificate that is not valid now.

    Raises:
        NotAdmittedError: Expired, not yet valid or revoked; or the list itself is out of date: nobody is.
    """
    now = datetime.now(timezone.utc) if now is None else now
    if now > revocations.next_update:
        raise NotAdmittedError(
            "revocation list out of date", f"the revocation list ended on {revocations.next_update:%Y-%m-%d}"
        )
    if not certificate.not_before <= now <= certificate.not_after:
        raise NotAdmittedError("expired", f"the certificate of client {certificate.client} is not valid now")
    if certificate.serial in revocations.serials:
        raise NotAdmittedError("revoked", f"the certificate of client {certificate.client} was revoked")


def from_pem(pem: bytes) -> bytes:
    """The DER form of a certificate in PEM.

    Raises:
        NotAdmittedError: It is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    except ValueError:
        raise NotAdmittedError("malformed certificate", "no certificate") from None


def _serials(listed: x509.CertificateRevocationList) -> Iterable[int]:
    return (entry.serial_number for entry in listed)
