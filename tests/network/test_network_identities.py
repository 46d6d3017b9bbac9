"""Who is not let in: strangers, the expired, the revoked; counted by cause, and no honest round is lost."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from loopback import CLIENTS, Federation
from single_calls import CHECK_IN, an_honest_round_works, call, fails

from privfed.errors import PrivFedError
from privfed.network import frames, pki
from privfed.network.frames import Poll, Refusal, Relay
from privfed.network.identity_file import IdentityFile, read_identity
from privfed.network.link import Link
from privfed.network.service import SERVICE, pieces
from privfed.network.tls import client_credentials


def test_a_certificate_of_another_authority_does_not_get_past_the_handshake(
    federation: Federation, tmp_path: Path
) -> None:
    pki.create(tmp_path / "other")
    theirs = read_identity(pki.issue(tmp_path / "other", client=0))
    mine = federation.identity(0)
    stranger = IdentityFile(theirs.tls_key, theirs.certificate, mine.authority, theirs.signing_key)
    assert fails(federation, stranger, "CheckIn", CHECK_IN) is grpc.StatusCode.UNAVAILABLE
    assert not federation.exchange._seats
    an_honest_round_works(federation, tmp_path)


def test_no_certificate_does_not_get_past_the_handshake(federation: Federation) -> None:
    credentials = grpc.ssl_channel_credentials(federation.identity(0).authority)
    with grpc.secure_channel(federation.address, credentials) as channel, pytest.raises(grpc.RpcError) as failure:
        list(channel.unary_stream(f"{SERVICE}CheckIn")(CHECK_IN, timeout=5))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_plaintext_does_not_get_anywhere(federation: Federation) -> None:
    with grpc.insecure_channel(federation.address) as channel, pytest.raises(grpc.RpcError) as failure:
        list(channel.unary_stream(f"{SERVICE}CheckIn")(CHECK_IN, timeout=5))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_does_not_get_past_the_handshake(federation: Federation, tmp_path: Path) -> None:
    (federation.folder / "client-0.pem").unlink()
    expired = read_identity(pki.issue(federation.folder, client=0, days=-0.001))
    assert fails(federation, expired, "CheckIn", CHECK_IN) is grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def lone_server(authority_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """In a process of its own: gRPC reads its cipher suites when a process first imports it."""
    with a_process_of_its_own(authority_folder, tmp_path_factory.mktemp("lone")) as (port, _):
        yield "127.0.0.1", port


@contextmanager
def a_process_of_its_own(folder: Path, out: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """A server's port, and after its end what it refused, by cause."""
    program = (
        "import json, pathlib, sys, loopback\n"
        "from privfed.network.handshakes import counted_handshakes\n"
        "for federation in loopback.serve(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])):\n"
        "    with counted_handshakes(federation.tally.refuse):\n"
        "        print(federation.service.port, flush=True)\n"
        "        sys.stdin.read()\n"
        "    print(json.dumps(federation.tally.refused))\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(out)]
    refused: dict[str, int] = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield int(server.stdout.readline()), refused
        server.stdin.close()
        refused.update(json.loads(server.stdout.read()))
        assert server.wait(60) == 0


def test_handshakes_that_fail_are_counted_by_cause(authority_folder: Path, tmp_path: Path) -> None:
    """Of strangers, of nobody, without TLS, of expired and of stolen and revoked identities; the honest get in."""
    folder = tmp_path / "ca"
    shutil.copytree(authority_folder, folder)
    pki.create(tmp_path / "other")
    theirs = read_identity(pki.issue(tmp_path / "other", client=0))
    mine = read_identity(folder / "client-0.pem")
    stranger = IdentityFile(theirs.tls_key, theirs.certificate, mine.authority, theirs.signing_key)
    (folder / "client-1.pem").unlink()
    expired = read_identity(pki.issue(folder, client=1, days=-0.001))
    with a_process_of_its_own(folder, tmp_path) as (port, refused):

        def attempt(credentials: grpc.ChannelCredentials | None) -> bool:
            """Once, and so no other handshake after one that failed."""
            address, options = f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
            with (
                grpc.insecure_channel(address, options)
                if credentials is None
                else grpc.secure_channel(address, credentials, options)
            ) as channel:
                try:
                    return bool(list(channel.unary_stream(f"{SERVICE}CheckIn")(CHECK_IN, timeout=5)))
                except grpc.RpcError:
                    return False

        assert attempt(client_credentials(mine))
        pki.revoke(folder, client=0)
        for _ in range(3):
            assert not attempt(client_credentials(mine))
        for _ in range(2):
            assert not attempt(client_credentials(stranger))
        assert not attempt(client_credentials(expired))
        assert not attempt(grpc.ssl_channel_credentials(mine.authority))
        assert not attempt(None)
        assert attempt(client_credentials(read_identity(folder / "client-2.pem")))
    wanted = {"unknown or revoked": 5, "expired": 1, "no certificate": 1, "not TLS": 1}
    for cause, least in wanted.items():  # gRPC may try once more by itself
        assert refused.pop(f"handshake: {cause}") >= least
    assert refused == {}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_1_2_ends_in_the_handshake(
    lone_server: tuple[str, int], authority_folder: Path, tmp_path: Path, version: str
) -> None:
    """By OpenSSL, which would speak it."""
    path = authority_folder / "client-0.pem"
    identity = read_identity(path)
    authority = tmp_path / "ca.pem"
    authority.write_bytes(identity.authority)
    context = ssl.create_default_context(cafile=str(authority))
    context.load_cert_chain(path)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, f"TLSv{version.replace('.', '_')}")
    host, _ = lone_server
    with socket.create_connection(lone_server, timeout=5) as plain:
        if version == "1.2":
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(plain, server_hostname=host)
        else:
            with context.wrap_socket(plain, server_hostname=host) as wrapped:
                assert wrapped.version() == "TLSv1.3"


def test_a_client_talks_to_no_server_of_another_authority_or_name(federation: Federation, tmp_path: Path) -> None:
    pki.create(tmp_path / "other")
    other = read_identity(pki.issue(tmp_path / "other", client=0))
    link = Link(federation.address, client_credentials(other), most_bytes=1 << 20, patience=0.5)
    with pytest.raises(PrivFedError, match="was not there"):
        link.check_in(None)
    link.close()
    port = federation.address.split(":")[1]
    link = Link(f"localhost:{port}", client_credentials(federation.identity(0)), most_bytes=1 << 20, patience=0.5)
    with pytest.raises(PrivFedError, match="was not there"):
        link.check_in(None)  # the certificate is of 127.0.0.1
    link.close()


def test_a_client_is_no_server(federation: Federation) -> None:
    """Its certificate says what it is for."""
    identity = federation.identity(0)
    text = subprocess.run(
        ["openssl", "verify", "-CAfile", federation.folder / "ca.pem", "-purpose", "sslserver"],
        input=identity.certificate,
        capture_output=True,
        check=False,
    )
    assert text.returncode != 0


def test_a_revoked_identity_ends_in_the_handshake_and_on_an_open_connection_at_its_next_call(
    federation: Federation, tmp_path: Path
) -> None:
    """As one that was stolen and then revoked. The others still get in."""
    identity = federation.identity(0)
    with grpc.secure_channel(federation.address, client_credentials(identity)) as channel:
        check_in = channel.unary_stream(f"{SERVICE}CheckIn")
        assert b"".join(check_in(CHECK_IN, timeout=5))
        pki.revoke(federation.folder, client=0)
        for method, request in (
            (check_in, CHECK_IN),
            (channel.unary_stream(f"{SERVICE}Poll"), frames.encode(Poll(round=0, step=0))),
            (
                channel.unary_stream(f"{SERVICE}Refuse"),
                frames.encode(Refusal(round=1, cause="other", reason="no")),
            ),
        ):
            with pytest.raises(grpc.RpcError) as failure:
                list(method(request, timeout=5))
            assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as failure:
            channel.stream_unary(f"{SERVICE}Send")(pieces(frames.encode(Relay(round=1, step=0))), timeout=5)
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert federation.tally.refused == {"revoked": 4}
    assert fails(federation, identity, "CheckIn", CHECK_IN) is grpc.StatusCode.UNAVAILABLE
    assert federation.tally.refused == {"revoked": 4}
    an_honest_round_works(federation, tmp_path, skip=0)


def test_a_revocation_list_alone_keeps_the_revoked_out_of_the_handshake(federation: Federation) -> None:
    """Where the list of clients still has its certificate."""
    before = (federation.folder / "clients.pem").read_bytes()
    pki.revoke(federation.folder, client=0)
    (federation.folder / "clients.pem").write_bytes(before)
    assert fails(federation, federation.identity(0), "CheckIn", CHECK_IN) is grpc.StatusCode.UNAVAILABLE
    assert call(federation, federation.identity(1), "CheckIn", CHECK_IN)


def test_a_new_identity_is_let_in_once_it_is_listed(federation: Federation) -> None:
    (federation.folder / "client-0.pem").unlink()
    before = (federation.folder / "clients.pem").read_bytes()
    issued = read_identity(pki.issue(federation.folder, client=0))
    after = (federation.folder / "clients.pem").read_bytes()
    (federation.folder / "clients.pem").write_bytes(before)
    assert fails(federation, issued, "CheckIn", CHECK_IN) is grpc.StatusCode.UNAVAILABLE
    (federation.folder / "clients.pem").write_bytes(after)
    assert call(federation, issued, "CheckIn", CHECK_IN)


def test_a_number_beyond_the_population_is_refused(federation: Federation) -> None:
    beyond = read_identity(pki.issue(federation.folder, client=CLIENTS))
    assert fails(federation, beyond, "CheckIn", CHECK_IN) is grpc.StatusCode.PERMISSION_DENIED
    assert federation.tally.refused == {"not in the population": 1}
