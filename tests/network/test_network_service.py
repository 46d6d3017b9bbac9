"""What nobody can do who is let in: refused, counted by cause, and no honest round is lost."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from loopback import CLIENTS, DIMENSION, ROUNDS, Federation, eventually, inputs_of
from single_calls import CHECK_IN, an_honest_round_works, call, fails

from privfed.network import frames
from privfed.network.errors import CAUSES
from privfed.network.frames import CHUNK_BYTES, CheckIn, Poll, Refusal, Relay
from privfed.network.link import Link
from privfed.network.service import SERVICE
from privfed.network.tls import client_credentials
from privfed.secagg import Stage, encode
from privfed.secagg.messages import AdvertiseKeys


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
    # Of frames, not of a machine under load: that one may take its time for a piece.
    object.__setattr__(federation.service._bounds, "piece_seconds", 60.0)
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
