"""gRPC on the server's side: bytes in, bytes out, in a thread of its own; nothing here is without a bound.

======== ============================ ======================================
call     request                      response
======== ============================ ======================================
CheckIn  ``CheckIn``                  ``Offer`` in pieces, or ``Nothing``
Poll     ``Poll``                     any of the server's frames, in pieces
Send     ``Relay``, in pieces         ``Verdict``
Refuse   ``Refusal``                  ``Verdict``
======== ============================ ======================================
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from privfed.errors import OutputError
from privfed.network import frames
from privfed.network.certificates import Certificate
from privfed.network.errors import FrameError, NotAdmittedError
from privfed.network.exchange import Exchange
from privfed.network.frames import CHUNK_BYTES, CheckIn, Poll, Refusal, Relay, Verdict
from privfed.network.tally import Tally
from privfed.network.tls import Gate
from privfed.secagg import RemoteError

SERVICE = "/privfed.Federation/"
CLOSING_SECONDS = 1.0
"""For answers that are under way when the server ends."""

_Returned = TypeVar("_Returned")
_VERDICTS = {verdict: frames.encode(Verdict(verdict=verdict)) for verdict in ("taken", "late", "repeated")}


@dataclass(frozen=True)
class Bounds:
    """Of what clients can make the server hold or do.

    Attributes:
        message_bytes: Longest message of a client.
        readers: Long messages read at the same time; others wait, which their senders feel.
        connections: At the same time.
        calls: At the same time, all clients together.
        calls_per_second: Of one client, on average; ``burst`` at once.
        burst: As above.
        piece_seconds: Between two pieces of a message.
    """

    message_bytes: int
    readers: int = 8
    connections: int = 2000
    calls: int = 4000
    calls_per_second: float = 10.0
    burst: float = 40.0
    piece_seconds: float = 20.0


class Service:
    """The server at ``listen``, from ``start`` to ``stop``.

    Args:
        listen: ``HOST:PORT``.
        credentials: For mutual TLS.
        gate: Says who is at the other end.
        exchange: What clients talk to.
        tally: Counts.
        bounds: Of everything.
    """

    def __init__(
        self,
        listen: str,
        credentials: grpc.ServerCredentials,
        gate: Gate,
        exchange: Exchange,
        tally: Tally,
        bounds: Bounds,
    ) -> None:
        self._listen, self._credentials, self._gate = listen, credentials, gate
        self._exchange, self._tally, self._bounds = exchange, tally, bounds
        self._loop = asyncio.new_event_loop()
        self._buckets: dict[int, tuple[float, float]] = {}
        self._readers = asyncio.Semaphore(bounds.readers)
        self._server: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="service", daemon=True)
        self.port = 0

    def start(self) -> None:
        """Begin to listen.

        Raises:
            OutputError: The address cannot be had.
        """
        self._thread.start()
        self.call(self._open())
        if not self.port:
            raise OutputError("cannot be listened at", where="--listen", value=self._listen)

    def call(self, coroutine: Coroutine[Any, Any, _Returned]) -> _Returned:
        """Run ``coroutine`` where the exchange lives, and wait for it; for any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self, state: str, grace: float) -> None:
        """Tell clients, by their polls, that the run is ``finished`` or the server ``draining``; then end.

        ``grace`` is how many seconds to wait for those that have not polled yet.
        """
        self.call(self._exchange.leave(state, grace))
        if self._server is not None:
            self.call(self._server.stop(CLOSING_SECONDS))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        bounds = self._bounds
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=bounds.calls,
            options=[
                ("grpc.max_receive_message_length", CHUNK_BYTES + frames.MOST_HEAD_BYTES),
                ("grpc.max_metadata_size", 8192),
                ("grpc.max_concurrent_streams", 8),
                ("grpc.max_allowed_incoming_connections", bounds.connections),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.max_connection_idle_ms", 120_000),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        try:
            self.port = self._server.add_secure_port(self._listen, self._credentials)
        except RuntimeError:
            return
        await self._server.start()

    async def admit(self, context: Any) -> Certificate:
        """Who calls; ends the call of whoever may not."""
        try:
            certificate = self._gate(context.auth_context())
        except NotAdmittedError as error:
            self._tally.refuse(error.cause)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise
        if not self._within_rate(certificate.client):
            self._tally.refuse("rate", certificate.client)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
        return certificate

    def _within_rate(self, client: int) -> bool:
        now, bounds = time.monotonic(), self._bounds
        tokens, since = self._buckets.get(client, (bounds.burst, now))
        tokens = min(bounds.burst, tokens + (now - since) * bounds.calls_per_second)
        self._buckets[client] = (max(0.0, tokens - 1), now)
        return tokens >= 1

    async def check_in(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """The call ``CheckIn``."""
        certificate = await self.admit(context)
        frame, _ = await self._decoded(request, context, certificate, CheckIn)
        for piece in pieces(self._exchange.check_in(certificate, frame.accepted)):
            yield piece

    async def poll(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """The call ``Poll``."""
        certificate = await self.admit(context)
        frame, _ = await self._decoded(request, context, certificate, Poll)
        for piece in pieces(await self._exchange.next_for(certificate, frame.round, frame.step)):
            yield piece

    async def send(self, request: AsyncIterator[bytes], context: Any) -> bytes:
        """The call ``Send``."""
        certificate = await self.admit(context)
        async with self._readers:
            data = await self._read(request, context, certificate)
        frame, body = await self._decoded(data, context, certificate, Relay)
        try:
            verdict = self._exchange.take(certificate, frame, body)
        except (RemoteError, FrameError) as error:
            cause = type(error).__name__.removesuffix("Error")
            self._tally.refuse(cause, certificate.client, str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:400])
        return _VERDICTS[verdict]

    async def refuse(self, request: bytes, context: Any) -> bytes:
        """The call ``Refuse``."""
        certificate = await self.admit(context)
        frame, _ = await self._decoded(request, context, certificate, Refusal)
        self._exchange.decline(certificate, frame.round, frame.cause, frame.reason)
        return _VERDICTS["taken"]

    async def _read(self, request: AsyncIterator[bytes], context: Any, certificate: Certificate) -> memoryview:
        loop, task, seconds = asyncio.get_running_loop(), asyncio.current_task(), self._bounds.piece_seconds
        assert task is not None  # gRPC runs every call in one
        found, size, slow = list[bytes](), 0, False

        def give_up() -> None:
            nonlocal slow
            slow = True
            task.cancel()

        timer = loop.call_later(seconds, give_up)  # a tenth of the time of ``wait_for``, which makes a task of it
        try:
            async for piece in request:
                timer.cancel()
                timer = loop.call_later(seconds, give_up)
                found.append(piece)
                size += len(piece)
                if size > self._bounds.message_bytes:
                    self._tally.refuse("too long", certificate.client)
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the message is too long")
        except asyncio.CancelledError:
            if not slow:
                raise
            self._tally.refuse("too slow", certificate.client)
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message came too slowly")
        finally:
            timer.cancel()
        if not found:
            return memoryview(b"")
        # The body then lies where its numbers can be read without another copy, whatever the length of its head.
        before = -frames.body_offset(found[0]) % 8
        return memoryview(b"".join([bytes(before), *found]))[before:]

    async def _decoded(
        self, data: bytes | memoryview, context: Any, certificate: Certificate, kind: type[Any]
    ) -> Any:
        try:
            return frames.decode(data, kind)
        except FrameError as error:
            self._tally.refuse("malformed frame", certificate.client, str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the frame {error}"[:400])


def pieces(data: bytes) -> Iterator[bytes]:
    """``data`` in pieces of ``CHUNK_BYTES``."""
    for start in range(0, max(1, len(data)), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC has no types here
    def __init__(self, service: Service) -> None:
        self._handlers: dict[str, Any] = {
            f"{SERVICE}CheckIn": grpc.unary_stream_rpc_method_handler(service.check_in),
            f"{SERVICE}Poll": grpc.unary_stream_rpc_method_handler(service.poll),
            f"{SERVICE}Send": grpc.stream_unary_rpc_method_handler(service.send),
            f"{SERVICE}Refuse": grpc.unary_unary_rpc_method_handler(service.refuse),
        }

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)
