"""gRPC on the client's side: calls that are tried again until the server is there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from privfed.errors import PrivFedError
from privfed.network import frames
from privfed.network.errors import DeclinedError, FrameError
from privfed.network.exchange import HOLD_SECONDS
from privfed.network.frames import CHUNK_BYTES, CheckIn, Poll, Refusal, Verdict
from privfed.network.service import SERVICE, pieces

CALL_SECONDS = 60.0
SLOWEST_BYTES = 16 << 10
"""A second, that a long answer may take: a little more than the server waits for."""

LONGEST_PAUSE = 10.0
_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_Returned = TypeVar("_Returned")


class Link:
    """One client's connection.

    Args:
        address: ``HOST:PORT`` of the server.
        credentials: For mutual TLS.
        most_bytes: Longest frame to take.
        patience: Seconds without the server after which to give up.
    """

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials, *, most_bytes: int, patience: float
    ) -> None:
        self._address, self._most, self._patience = address, most_bytes, patience
        options = [
            ("grpc.max_receive_message_length", CHUNK_BYTES + frames.MOST_HEAD_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", int(LONGEST_PAUSE * 1000)),
        ]
        self._channel = grpc.secure_channel(address, credentials, options)
        self._check_in = self._channel.unary_stream(f"{SERVICE}CheckIn")
        self._poll = self._channel.unary_stream(f"{SERVICE}Poll")
        self._send = self._channel.stream_unary(f"{SERVICE}Send")
        self._refuse = self._channel.unary_unary(f"{SERVICE}Refuse")

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def check_in(self, accepted: str | None) -> bytes:
        """Say that this client is there; what the server says."""
        request = frames.encode(CheckIn(accepted=accepted))
        return self._again(lambda: self._joined(self._check_in(request, timeout=CALL_SECONDS)))

    def poll(self, position: tuple[int, int]) -> bytes:
        """What comes after ``position``."""
        request = frames.encode(Poll(round=position[0], step=position[1]))
        return self._again(lambda: self._joined(self._poll(request, timeout=HOLD_SECONDS + CALL_SECONDS)))

    def send(self, frame: bytes) -> str:
        """Send an answer; what became of it, in words."""
        seconds = CALL_SECONDS + len(frame) / SLOWEST_BYTES
        return self._verdict(lambda: self._send(pieces(frame), timeout=seconds))

    def refuse(self, round_number: int | None, error: DeclinedError) -> str:
        """Tell the server that this client does not go along, and why."""
        frame = frames.encode(Refusal(round=round_number, cause=error.cause, reason=str(error)[:400]))
        return self._verdict(lambda: self._refuse(frame, timeout=CALL_SECONDS))

    def _verdict(self, call: Callable[[], bytes]) -> str:
        try:
            return frames.decode(self._again(call), Verdict)[0].verdict
        except _RefusedError as error:
            return f"refused: {error.details}"
        except FrameError as error:
            raise PrivFedError(f"the server's frame {error}", where=self._address) from None

    def _joined(self, stream: Iterator[bytes]) -> bytes:
        found = bytearray()
        for piece in stream:
            found += piece
            if len(found) > self._most:
                raise PrivFedError(f"the server's frame is longer than {self._most} bytes", where=self._address)
        return bytes(found)

    def _again(self, call: Callable[[], _Returned]) -> _Returned:
        """Call until it works; the pauses grow, at random, so that clients do not come back all at once.

        Raises:
            PrivFedError: The server does not let this client in, or was not there for too long.
        """
        since, pause = time.monotonic(), 0.2
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
            if code is grpc.StatusCode.PERMISSION_DENIED:
                raise PrivFedError(f"the server does not let this client in: {details}", where=self._address)
            if code not in _AGAIN:
                raise _RefusedError(str(details), self._address)
            if time.monotonic() - since > self._patience:
                raise PrivFedError(
                    f"the server was not there for {self._patience:g} s: {details}", where=self._address
                )
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(2 * pause, LONGEST_PAUSE)


class _RefusedError(PrivFedError):
    """What trying again does not mend."""

    def __init__(self, details: str, address: str) -> None:
        self.details = details
        super().__init__(f"the server refuses the call: {details}", where=address)
