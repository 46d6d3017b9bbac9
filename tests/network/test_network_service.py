"""Who is not let in, and what nobody can do: refused, counted by cause, and no honest round is lost."""

from __future__ import annotations

import json
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from loopback import CLIENTS, DIMENSION, ROUNDS, Federation, eventually, inputs_of

from privfed.errors import PrivFedError
from privfed.network import frames, pki
from privfed.network.errors import CAUSES
from privfed.network.frames import CHUNK_BYTES, CheckIn, Poll, Refusal, Relay
from privfed.network.link import Link
from privfed.network.service import SERVICE, pieces
from privfed.network.tls import client_credentials
from privfed.secagg import Stage, encode
from privfed.secagg.messages import AdvertiseKeys

CHECK_IN = frames.encode(CheckIn())


def call(
    federation: Federation, identity: pki.IdentityFile, method: str, request: bytes, **options: object
) -> bytes:
    """One call with ``identity``, answered whole."""
    credentials = client_credentials(identity)
    with grpc.secure_channel(federation.address, credentials) as channel:
        if method == "Send":
            return channel.stream_unary(f"{SERVICE}Send")(pieces(request), timeout=10)
        if method == "Refuse":
            return channel.unary_unary(f"{SERVICE}Refuse")(request, timeout=10)
        return b"".join(channel.unary_stream(f"{SERVICE}{method}")(request, timeout=10))


def fails(federation: Federation, identity: pki.IdentityFile, method: str, request: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failure:
        call(federation, identity, method, request)
    return failure.value.code()


def an_honest_round_works(
    federation: Federation, tmp_path: Path, number: int = 1, skip: int | None = None
) -> None:
    cohort = [c for c in range(CLIENTS) if c != skip]
    for client in cohort:
        if client not in {party.participant._half.client for party in federation.parties}:
            federation.join(client, tmp_path)
    federation.wait_for(len(cohort))
    assert federation.round(number, cohort).survivors == tuple(cohort)


def test_a_certificate_of_another_authority_does_not_get_past_the_handshake(
    federation: Federation, tmp_path: Path
) -> None:
    pki.create(tmp_path / "other")
    theirs = pki.read_identity(pki.issue(tmp_path / "other", client=0))
    mine = federation.identity(0)
    stranger = pki.IdentityFile(theirs.tls_key, theirs.certificate, mine.authority, theirs.signing_key)
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
    expired = pki.read_identity(pki.issue(federation.folder, client=0, days=-0.001))
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
    theirs = pki.read_identity(pki.issue(tmp_path / "other", client=0))
    mine = pki.read_identity(folder / "client-0.pem")
    stranger = pki.IdentityFile(theirs.tls_key, theirs.certificate, mine.authority, theirs.signing_key)
    (folder / "client-1.pem").unlink()
    expired = pki.read_identity(pki.issue(folder, client=1, days=-0.001))
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
        assert attempt(client_credentials(pki.read_identity(folder / "client-2.pem")))
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
    identity = pki.read_identity(path)
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
    other = pki.read_identity(pki.issue(tmp_path / "other", client=0))
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
    issued = pki.read_identity(pki.issue(federation.folder, client=0))
    after = (federation.folder / "clients.pem").read_bytes()
    (federation.folder / "clients.pem").write_bytes(before)
    assert fails(federation, issued, "CheckIn", CHECK_IN) is grpc.StatusCode.UNAVAILABLE
    (federation.folder / "clients.pem").write_bytes(after)
    assert call(federation, issued, "CheckIn", CHECK_IN)


def test_a_number_beyond_the_population_is_refused(federation: Federation) -> None:
    beyond = pki.read_identity(pki.issue(federation.folder, client=CLIENTS))
    assert fails(federation, beyond, "CheckIn", CHECK_IN) is grpc.StatusCode.PERMISSION_DENIED
    assert federation.tally.refused == {"not in the population": 1}


def test_ten_thousand_malformed_frames_are_each_refused_and_cost_no_round(
    federation: Federation, tmp_path: Path
) -> None:
    """Bit flips, cuts, noise and lengths that lie, by an identity that is let in."""
    draw = random.Random(7)
    good = frames.encode(Relay(round=1, step=0), b"x" * 100)

    def bad() -> bytes:
        kind = draw.randrange(4)
        if kind == 0:
            flipped = bytearray(good)
            flipped[draw.randrange(frames.HEADER.size + 10)] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        if kind == 1:
            return good[: draw.randrange(frames.HEADER.size + 15)]
        if kind == 2:
            return draw.randbytes(draw.randrange(1, 200))
        return frames.HEADER.pack(frames.MAGIC, frames.VERSION, Relay.kind, draw.randrange(1000, 2**32)) + b"{}"

    object.__setattr__(federation.service._bounds, "calls_per_second", 1e9)
    object.__setattr__(federation.service._bounds, "burst", 1e9)
    for client in range(1, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS - 1)
    stop, survivors = threading.Event(), list[tuple[int, ...]]()

    def rounds() -> None:
        number = 1
        while not stop.is_set() and number < ROUNDS:
            survivors.append(federation.round(number, range(1, CLIENTS)).survivors)
            number += 1
            time.sleep(0.2)

    running = threading.Thread(target=rounds)
    running.start()
    refused = accepted = 0
    with grpc.secure_channel(federation.address, client_credentials(federation.identity(0))) as channel:
        send = channel.stream_unary(f"{SERVICE}Send")
        while refused + accepted < 10_000:
            for future in [send.future(iter([bad()]), timeout=60) for _ in range(4)]:
                if future.exception() is None:  # a flip that gave another frame in its one form, of no open stage
                    assert frames.decode(future.result(), frames.Verdict)[0].verdict == "late"
                    accepted += 1
                elif future.code() is not grpc.StatusCode.UNAVAILABLE:  # more streams than one connection may have
                    assert future.code() is grpc.StatusCode.INVALID_ARGUMENT
                    refused += 1
    stop.set()
    running.join(20)
    assert federation.tally.refused["malformed frame"] == refused > 9_000
    assert survivors
    assert set(survivors) == {tuple(range(1, CLIENTS))}


def test_a_frame_of_a_gigabyte_is_refused_before_it_is_read(federation: Federation, tmp_path: Path) -> None:
    """In one piece by its announced length, and in many pieces at the bound."""
    identity = federation.identity(0)
    assert fails(federation, identity, "CheckIn", bytes(8 << 20)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    sent = 0

    def gigabyte() -> Iterator[bytes]:
        nonlocal sent
        for _ in range((1 << 30) // CHUNK_BYTES):
            sent += CHUNK_BYTES
            yield bytes(CHUNK_BYTES)

    with (
        grpc.secure_channel(federation.address, client_credentials(identity)) as channel,
        pytest.raises(grpc.RpcError) as failure,
    ):
        channel.stream_unary(f"{SERVICE}Send")(gigabyte(), timeout=30)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert federation.tally.refused["too long"] == 1
    assert sent < 64 << 20  # the bound is 1 MiB; the rest was under way
    an_honest_round_works(federation, tmp_path)


def test_a_slow_loris_is_cut_off_and_holds_nobody_up(federation: Federation, tmp_path: Path) -> None:
    """More slow senders than there are readers: each is given up after the time for a piece, here one second."""
    let_go = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b"P"
        let_go.wait(30)

    with grpc.secure_channel(federation.address, client_credentials(federation.identity(0))) as channel:
        send = channel.stream_unary(f"{SERVICE}Send")
        slow = [send.future(slowly(), timeout=30) for _ in range(8)]
        an_honest_round_works(federation, tmp_path, skip=0)
        assert eventually(lambda: federation.tally.refused["too slow"] == len(slow))
        let_go.set()


def test_connections_that_say_nothing_hold_nobody_up(federation: Federation, tmp_path: Path) -> None:
    host, port = federation.address.split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(50)]
    an_honest_round_works(federation, tmp_path)
    for connection in silent:
        connection.close()


def test_messages_in_another_clients_name_are_refused(federation: Federation, tmp_path: Path) -> None:
    """Client 0 sends what client 1 would; then it sends what client 1 did send."""
    heard: list[bytes] = []

    def overheard(link: Link, step: int, answer: bytes) -> bytes:
        if step == Stage.ADVERTISE_KEYS:
            heard.append(answer)
            thief = federation.identity(0)
            assert fails(federation, thief, "Send", answer) is grpc.StatusCode.INVALID_ARGUMENT
            made = AdvertiseKeys(1, b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 64)
            forged = frames.encode(Relay(round=1, step=0), encode(made))
            assert fails(federation, thief, "Send", forged) is grpc.StatusCode.INVALID_ARGUMENT
        return answer

    for client in range(CLIENTS):
        federation.join(client, tmp_path, answer=overheard if client == 1 else None)
    federation.wait_for(CLIENTS)
    assert federation.round(1).survivors == tuple(range(CLIENTS))
    assert federation.tally.refused["UnexpectedSender"] == 2
    late = call(federation, federation.identity(1), "Send", heard[0])
    assert frames.decode(late, frames.Verdict)[0].verdict == "late"


def test_a_replay_in_a_later_round_is_refused(federation: Federation, tmp_path: Path) -> None:
    heard: list[bytes] = []
    refused: list[str] = []

    def replays(link: Link, step: int, answer: bytes) -> bytes:
        if step == Stage.ADVERTISE_KEYS:
            heard.append(answer)
            if len(heard) == 2:
                _, body = frames.decode(heard[0], Relay)
                refused.append(link.send(frames.encode(Relay(round=2, step=0), bytes(body))))
        return answer

    for client in range(CLIENTS):
        federation.join(client, tmp_path, answer=replays if client == 1 else None)
    federation.wait_for(CLIENTS)
    for number in (1, 2):
        assert federation.round(number).survivors == tuple(range(CLIENTS))
    assert "does not carry its signature for this session" in refused[0]
    assert federation.tally.refused["SignatureRefused"] == 1


def test_who_calls_too_often_is_held_back(federation: Federation, tmp_path: Path) -> None:
    object.__setattr__(federation.service._bounds, "calls_per_second", 1.0)
    object.__setattr__(federation.service._bounds, "burst", 5.0)
    codes = []
    with grpc.secure_channel(federation.address, client_credentials(federation.identity(0))) as channel:
        check_in = channel.unary_stream(f"{SERVICE}CheckIn")
        for _ in range(20):
            try:
                list(check_in(CHECK_IN, timeout=5))
            except grpc.RpcError as error:
                codes.append(error.code())
    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(codes) >= 10
    assert federation.tally.refused["rate"] == len(codes)


def test_causes_that_a_client_makes_up_are_one_counter(federation: Federation) -> None:
    object.__setattr__(federation.service._bounds, "burst", 1e9)
    made_up = [f"cause {first}{second}" for first in "abcdefghij" for second in "abcdefghij"]
    with grpc.secure_channel(federation.address, client_credentials(federation.identity(0))) as channel:
        refuse = channel.unary_unary(f"{SERVICE}Refuse")
        for cause in [*made_up, *sorted(CAUSES)]:
            refuse(frames.encode(Refusal(round=1, cause=cause, reason="no")), timeout=5)
    known = dict.fromkeys((f"declined by client: {cause}" for cause in CAUSES), 1)
    assert federation.tally.refused == {**known, "declined by client: other": 1 + len(made_up)}


def test_a_client_learns_nothing_of_others_before_a_round(federation: Federation, tmp_path: Path) -> None:
    """The offer is the same for all; in a round the members' numbers and keys are shown to the members."""
    first = call(federation, federation.identity(0), "CheckIn", CHECK_IN)
    for client in range(1, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS - 1)
    assert call(federation, federation.identity(0), "CheckIn", CHECK_IN) == first


def test_polls_of_one_identity_take_each_others_place(federation: Federation, tmp_path: Path) -> None:
    """A connection that is gone holds nothing back: the newest poll is the one that waits."""
    identity = federation.identity(0)
    accepted = frames.encode(CheckIn(accepted=frames.digest(federation.offer)))
    call(federation, identity, "CheckIn", accepted)
    poll = frames.encode(Poll(round=0, step=0))
    with grpc.secure_channel(federation.address, client_credentials(identity)) as channel:
        polls = channel.unary_stream(f"{SERVICE}Poll")
        waiting = []
        for begun in range(1, 6):
            waiting.append(polls(poll, timeout=10))
            assert eventually(lambda begun=begun: federation.exchange._seats[0].poll == begun)  # type: ignore[misc]
        started = time.monotonic()
        answered = [b"".join(stream) for stream in waiting[:-1]]
        assert time.monotonic() - started < 5
        assert {frames.decode(data, frames.Nothing)[0].state for data in answered} == {"wait"}
        waiting[-1].cancel()


def test_the_rounds_memory_is_given_back(federation: Federation, tmp_path: Path) -> None:
    """Vectors of a round are not kept with the clients' seats: only the newest message of each is."""
    an_honest_round_works(federation, tmp_path)
    for seat in federation.exchange._seats.values():
        assert seat.mail is not None
        assert len(seat.mail) < 100
    assert inputs_of(1, range(CLIENTS)).length == DIMENSION
    assert federation.exchange._take is None
    assert np.isfinite(federation.tally.stage_seconds["unmask"])
