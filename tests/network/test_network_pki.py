"""The authority: what it issues is private, and what it did not issue, or took back, does not count."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from privfed.errors import DataError, OutputError, SettingError
from privfed.network import pki
from privfed.network.certificates import Authority, Certificate, check_valid, from_pem
from privfed.network.errors import NotAdmittedError
from privfed.network.identity_file import read_identity
from privfed.network.tls import Gate, Listed, Revocations
from privfed.secagg import Identity


def certificate_of(folder: Path, client: int) -> tuple[Authority, Certificate]:
    identity = read_identity(folder / f"client-{client}.pem")
    authority = Authority(identity.authority)
    return authority, authority.client(from_pem(identity.certificate))


def test_keys_are_their_owners_alone(authority_folder: Path) -> None:
    for name in ("ca.key", "client-0.pem", "server-127.0.0.1.pem"):
        assert stat.S_IMODE((authority_folder / name).stat().st_mode) == 0o600


def test_a_certificate_binds_a_number_to_the_key_that_signs(authority_folder: Path) -> None:
    _, certificate = certificate_of(authority_folder, 3)
    identity = read_identity(authority_folder / "client-3.pem")
    assert certificate.client == 3
    assert identity.signing_key is not None
    assert certificate.key == Identity.from_private_bytes(identity.signing_key).public


def test_no_key_is_in_what_an_identity_says_of_itself(authority_folder: Path) -> None:
    identity = read_identity(authority_folder / "client-3.pem")
    assert identity.signing_key is not None
    assert "PRIVATE" not in repr(identity)
    assert repr(identity.signing_key) not in repr(identity)


def test_what_others_can_read_is_refused(authority_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "client.pem"
    path.write_bytes((authority_folder / "client-0.pem").read_bytes())
    path.chmod(0o640)
    with pytest.raises(DataError, match="others than its owner"):
        read_identity(path)


def test_what_is_no_identity_file_is_refused(authority_folder: Path, tmp_path: Path) -> None:
    whole = (authority_folder / "client-0.pem").read_bytes()
    for content in (b"", whole[: len(whole) // 2], (authority_folder / "ca.pem").read_bytes()):
        path = tmp_path / "client.pem"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(DataError, match="identity file"):
            read_identity(path)


def test_certificates_of_another_authority_do_not_count(authority_folder: Path, tmp_path: Path) -> None:
    pki.create(tmp_path / "other")
    pki.issue(tmp_path / "other", client=0)
    authority, _ = certificate_of(authority_folder, 0)
    theirs = read_identity(tmp_path / "other" / "client-0.pem")
    with pytest.raises(NotAdmittedError) as refusal:
        authority.client(from_pem(theirs.certificate))
    assert refusal.value.cause == "unknown authority"


def test_a_server_is_no_client(authority_folder: Path) -> None:
    authority, _ = certificate_of(authority_folder, 0)
    server = read_identity(authority_folder / "server-127.0.0.1.pem")
    with pytest.raises(NotAdmittedError) as refusal:
        authority.client(from_pem(server.certificate))
    assert refusal.value.cause == "not a client"


@pytest.mark.parametrize("at", range(10, 460, 25))
def test_a_certificate_that_was_altered_does_not_count(authority_folder: Path, at: int) -> None:
    authority, certificate = certificate_of(authority_folder, 0)
    altered = bytearray(certificate.der)
    altered[at] ^= 1
    with pytest.raises(NotAdmittedError):
        authority.client(bytes(altered))


def revocable(folder: Path) -> tuple[Authority, Certificate, Revocations]:
    pki.create(folder)
    pki.issue(folder, client=0)
    authority, certificate = certificate_of(folder, 0)
    return authority, certificate, Revocations(folder / "revoked.pem", authority)


def test_a_revocation_is_seen_by_a_server_that_runs(tmp_path: Path) -> None:
    _, certificate, revocations = revocable(tmp_path / "ca")
    check_valid(certificate, revocations())
    assert pki.revoke(tmp_path / "ca", client=0) == 1
    with pytest.raises(NotAdmittedError) as refusal:
        check_valid(certificate, revocations())
    assert refusal.value.cause == "revoked"
    assert pki.revoke(tmp_path / "ca", client=0) == 0


def test_an_older_revocation_list_takes_nothing_back(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    _, certificate, revocations = revocable(folder)
    older = (folder / "revoked.pem").read_bytes()
    pki.revoke(folder, client=0)
    assert certificate.serial in revocations().serials
    (folder / "revoked.pem").write_bytes(older)
    assert certificate.serial in revocations().serials
    (folder / "revoked.pem").write_bytes(b"half of it")
    assert certificate.serial in revocations().serials


def test_dates_count(tmp_path: Path) -> None:
    _, certificate, revocations = revocable(tmp_path / "ca")
    now = datetime.now(timezone.utc)
    with pytest.raises(NotAdmittedError) as refusal:
        check_valid(certificate, revocations(), now + timedelta(days=31))
    assert refusal.value.cause == "revocation list out of date"
    pki.revoke(tmp_path / "ca", days=1000)
    with pytest.raises(NotAdmittedError) as refusal:
        check_valid(certificate, revocations(), now + timedelta(days=400))
    assert refusal.value.cause == "expired"
    with pytest.raises(NotAdmittedError):
        check_valid(certificate, revocations(), now - timedelta(days=1))


def test_a_list_of_another_authority_is_none(authority_folder: Path, tmp_path: Path) -> None:
    _, _, revocations = revocable(tmp_path / "ca")
    authority, _ = certificate_of(authority_folder, 0)
    with pytest.raises(NotAdmittedError):
        authority.revocations(revocations().der)
    with pytest.raises(DataError, match="no revocation list of the authority"):
        Revocations(tmp_path / "ca" / "revoked.pem", authority)


def test_the_gate_looks_at_everything(authority_folder: Path) -> None:
    authority, certificate = certificate_of(authority_folder, 3)
    revocations = Revocations(authority_folder / "revoked.pem", authority)
    pem = x509.load_der_x509_certificate(certificate.der).public_bytes(serialization.Encoding.PEM)
    good = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [pem]}
    assert Gate(authority, revocations, 4)(good) == certificate
    for connection, population, cause in (
        ({**good, "ssl_tls_version": [b"TLSv1.2"]}, 4, "not TLS 1.3"),
        ({"x509_pem_cert": [pem]}, 4, "not TLS 1.3"),
        ({"ssl_tls_version": [b"TLSv1.3"]}, 4, "malformed certificate"),
        (good, 3, "not in the population"),
    ):
        with pytest.raises(NotAdmittedError) as refusal:
            Gate(authority, revocations, population)(connection)
        assert refusal.value.cause == cause


def test_one_authority_in_a_folder_and_one_file_for_a_name(authority_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already"):
        pki.create(authority_folder)
    with pytest.raises(OutputError, match="already"):
        pki.issue(authority_folder, client=0)
    with pytest.raises(SettingError, match="one of the two"):
        pki.issue(authority_folder, client=0, server="host")
    with pytest.raises(SettingError, match="neither a host's name"):
        pki.issue(authority_folder, server="../ca")
    with pytest.raises(DataError, match="no authority"):
        pki.issue(tmp_path / "nothing", client=0)
    with pytest.raises(DataError, match="no certificate of client-99"):
        pki.revoke(authority_folder, client=99)


def test_listed_are_those_that_were_issued_and_not_revoked(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    authority, _, revocations = revocable(folder)
    second = read_identity(pki.issue(folder, client=1))
    pki.issue(folder, server="host")
    listed = Listed(folder / "clients.pem", authority, revocations)
    assert listed.pems.count(b"BEGIN") == 2
    assert listed.changed() is None
    pki.revoke(folder, client=0)
    assert listed.changed() == second.certificate == (folder / "clients.pem").read_bytes()
    (folder / "clients.pem").write_bytes(b"half of it")
    assert listed.changed() == b""  # a file without certificates lets nobody in
    (folder / "clients.pem").unlink()
    assert listed.changed() is None


def test_a_list_with_others_certificates_is_refused(tmp_path: Path) -> None:
    authority, _, revocations = revocable(tmp_path / "ca")
    pki.create(tmp_path / "other")
    pki.issue(tmp_path / "other", client=0)
    with pytest.raises(DataError, match="no client's certificate of the authority"):
        Listed(tmp_path / "other" / "clients.pem", authority, revocations)
    with pytest.raises(DataError, match="holds no certificate"):
        Listed(tmp_path / "ca" / "revoked.pem", authority, revocations)
    with pytest.raises(DataError, match=r"cannot be read.*say --any-client"):
        Listed(tmp_path / "nothing.pem", authority, revocations)
