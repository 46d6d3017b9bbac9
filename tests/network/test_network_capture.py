"""What somebody on the wire sees of a round: TLS records, and in them nothing that is known to have been sent."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from loopback import CLIENTS, WEIGHTS, FakeHalf, Federation, eventually

from privfed.network import frames
from privfed.network.frames import Poll
from privfed.secagg import Stage
from privfed.secagg.wire import MAGIC


class Recorder:
    """Forwards connections to ``target`` and keeps every byte of either direction, by connection."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self.streams = target, list[bytearray]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                self.streams.append(bytearray())
                pump = threading.Thread(target=self._pump, args=(source, sink, self.streams[-1]), daemon=True)
                pump.start()
                self._pumps.append(pump)

    def _pump(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(1 << 16):
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # which ends the waiting for a connection, as closing does not
        self._accepting.join()
        for each in self._sockets:
            with suppress(OSError):  # it ended by itself
                each.shutdown(socket.SHUT_RDWR)
        for pump in self._pumps:
            pump.join()
        for each in [self._listening, *self._sockets]:
            each.close()

    @property
    def everything(self) -> bytes:
        return b"".join(map(bytes, self.streams))


@pytest.fixture
def recorder(federation: Federation) -> Iterator[Recorder]:
    recorder = Recorder(("127.0.0.1", federation.service.port))
    yield recorder
    recorder.close()


def secrets_of(federation: Federation) -> dict[str, bytes]:
    """What crosses the network in a round, in the clear within TLS."""
    found = {
        "a frame": frames.MAGIC,
        "a message of the protocol": MAGIC,
        "the weights": WEIGHTS.astype("<f4").tobytes()[:32],
        "the service": b"privfed.Federation",
        "a client's name": b"privfed:client",
    }
    for client in range(CLIENTS):
        certificate = federation.certificate(client)
        found[f"the key of client {client}"] = certificate.key
        found[f"the certificate of client {client}"] = certificate.der[-64:]
        found[f"the vector of client {client}"] = FakeHalf(client)(1, WEIGHTS, CLIENTS).tobytes()[:32]
    return found


def a_round_through(federation: Federation, address: str, tmp_path: Path) -> None:
    federation.through = address
    for client in range(CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    assert federation.round(1).survivors == tuple(range(CLIENTS))
    for party in federation.parties:
        assert eventually(lambda party=party: len(party.verdicts) == len(Stage))  # type: ignore[misc]


def records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each TLS record."""
    at = 0
    while at + 5 <= len(stream):
        size = int.from_bytes(stream[at + 3 : at + 5], "big")
        yield stream[at], stream[at + 5 : at + 5 + size]
        at += 5 + size


def test_a_capture_of_a_round_holds_nothing_in_the_clear(
    federation: Federation, recorder: Recorder, tmp_path: Path
) -> None:
    a_round_through(federation, recorder.address, tmp_path)
    seen = recorder.everything
    assert len(recorder.streams) >= 2 * CLIENTS
    assert len(seen) > 10_000
    for what, content in secrets_of(federation).items():
        assert content not in seen, what
    for stream in recorder.streams:
        kinds = [kind for kind, _ in records(bytes(stream))]
        assert kinds[0] == 0x16  # one handshake record in the clear: ClientHello or ServerHello
        assert kinds.count(0x16) == 1
        assert set(kinds[1:]) <= {0x14, 0x17}  # then application data, which hides even certificates in TLS 1.3


@contextmanager
def in_the_clear() -> Iterator[int]:
    """The port of a server without TLS."""

    class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: object) -> object:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


def send_in_the_clear(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary("/a/b")(
            frames.encode(Poll(round=1, step=2)) + WEIGHTS.astype("<f4").tobytes(), timeout=10
        )


def test_the_recorder_would_have_seen_it() -> None:
    """The negative: the same search finds a frame that is sent without TLS."""
    with in_the_clear() as port:
        recorder = Recorder(("127.0.0.1", port))
        send_in_the_clear(recorder.address)
    recorder.close()
    assert frames.MAGIC in recorder.everything
    assert WEIGHTS.astype("<f4").tobytes()[:32] in recorder.everything


@contextmanager
def captured(port: int, capture: Path) -> Iterator[str]:
    """What crosses ``port`` on loopback, recorded to ``capture`` by tshark, whose path is given."""
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("no tshark on this machine; the recorder above sees the same bytes")
    command = [tshark, "-q", "-i", "lo", "-f", f"tcp port {port}", "-w", str(capture)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = ""
        while "Capturing" not in said:
            line = running.stderr.readline()
            if not line:
                pytest.skip(f"tshark may not capture on this machine: {said.strip()[-200:]}")
            said += line
        # It says so before the first packet is sure to be seen: it begins when what is sent for this arrives.
        assert eventually(lambda: knock(port) and capture.exists() and capture.stat().st_size > 500)
        yield tshark
        size = 0
        while size != (size := capture.stat().st_size):  # what is still under way to the file
            time.sleep(0.3)
        running.terminate()


def knock(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    time.sleep(0.1)
    return True


def seen_by(tshark: str, capture: Path, port: int, shown: str) -> list[str]:
    """A line for each packet that the display filter ``shown`` lets through."""
    command = [tshark, "-r", str(capture), "-d", f"tcp.port=={port},tls", "-Y", shown]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_tshark_sees_tls_and_nothing_else(federation: Federation, tmp_path: Path) -> None:
    capture, port = tmp_path / "round.pcapng", federation.service.port
    with captured(port, capture) as tshark:
        a_round_through(federation, federation.address, tmp_path)
    content = capture.read_bytes()
    assert len(content) > 10_000
    for what, secret in secrets_of(federation).items():
        assert secret not in content, what
    assert len(seen_by(tshark, capture, port, "tls.handshake.type == 1")) == CLIENTS  # each said hello
    assert len(seen_by(tshark, capture, port, "tls.app_data")) > 4 * CLIENTS
    assert seen_by(tshark, capture, port, "tls.handshake.certificate or http2") == []
    # A segment that the kernel sent twice on a busy machine is dissected once; what it holds was searched above.
    other = "tcp.len > 0 and not tls and not tcp.segment and not tcp.analysis.retransmission"
    assert seen_by(tshark, capture, port, other) == []


def test_tshark_would_have_seen_it(tmp_path: Path) -> None:
    """The negative: the same search finds a frame that is sent without TLS."""
    capture = tmp_path / "plain.pcapng"
    with in_the_clear() as server, captured(server, capture):
        send_in_the_clear(f"127.0.0.1:{server}")
    assert frames.MAGIC in capture.read_bytes()
    assert WEIGHTS.astype("<f4").tobytes()[:32] in capture.read_bytes()
