"""A bare ``grpc.aio`` server that answers a vector with as many bytes as a model has, and its clients."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import privfed.network  # before gRPC: it leaves TLS 1.2 out  # isort: skip

import grpc
import grpc.aio
from network_load import Load, start

from privfed.network.frames import CHUNK_BYTES
from privfed.network.identity_file import read_identity
from privfed.network.service import pieces
from privfed.network.tls import client_credentials, server_credentials

assert privfed.network


def echo_process(load: Load, address: str, folder: str, mine: list[int], barrier: Any, ready: Any) -> None:
    """As many bare connections, a thread each, that exchange a vector for a model, round by round."""
    counts = {"stalled": 0, "reconnected": 0, "bytes": 0}
    lock = threading.Lock()

    def one(client: int) -> None:
        credentials = client_credentials(read_identity(Path(folder) / "ca" / f"client-{client}.pem"))
        draw = random.Random(client)  # noqa: S311 - of a load

        def connect() -> Any:
            channel = grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])
            grpc.channel_ready_future(channel).result(300)
            return channel

        channel = connect()
        with lock:
            waiting.discard(client)
            if not waiting:
                barrier.wait()
                begin.set()
        begin.wait()
        number = 1
        while number <= load.rounds:
            trouble = load.trouble_of(draw)
            if trouble == "stalled":
                time.sleep(load.stage_seconds * 1.2)
            if trouble == "reconnected":
                channel.close()
                channel = connect()
            sent = numbered(number, 8 * load.dimension)
            got = b"".join(channel.stream_stream("/bare.Echo/Echo")(pieces(sent)))
            assert len(got) == 4 * load.dimension
            number = number_of(got)
            with lock:
                counts["bytes"] += len(sent) + len(got)
                if trouble is not None:
                    counts[trouble] += 1
        channel.close()

    waiting, begin = set(mine), threading.Event()
    with ThreadPoolExecutor(len(mine)) as pool:
        list(pool.map(one, mine))
    ready.put(counts)


def numbered(number: int, size: int) -> bytes:
    """``size`` bytes that begin with the number of a round."""
    return number.to_bytes(8, "little") + bytes(size - 8)


def number_of(data: bytes | bytearray) -> int:
    return int.from_bytes(data[:8], "little")


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Takes a vector and answers with the number of the next round and as many bytes as a model has."""

    def __init__(self, load: Load, *, by_rounds: bool) -> None:
        self._load, self._by_rounds, self._number, self._arrived = load, by_rounds, 1, 0
        self._over = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self.ended = 0.0, 0.0

    def service(self, details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self.echo)

    async def echo(self, request: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        found = bytearray()
        async for piece in request:
            found += piece
        following = number_of(found) + 1
        if self._by_rounds:
            await self._end_of(number_of(found))
            following = self._number
        for piece in pieces(numbered(following, 4 * self._load.dimension)):
            yield piece

    async def _end_of(self, number: int) -> None:
        if number < self._number:
            return  # it is late
        self._arrived += 1
        over = self._over
        if self._arrived == self._load.clients:
            self._next_round()
        await over.wait()

    def set_deadline(self) -> None:
        """Of the round under way, from now on."""
        self._deadline = asyncio.get_running_loop().call_later(self._load.stage_seconds, self._next_round)

    def _next_round(self) -> None:
        """Everybody has sent, or the deadline has passed."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._number, self._arrived = self._number + 1, 0
        self._over.set()
        self._over = asyncio.Event()
        self.ended = time.perf_counter(), time.process_time()
        if self._number <= self._load.rounds:
            self.set_deadline()


def measure_echo(load: Load, folder: Path, *, by_rounds: bool) -> dict[str, float]:
    """Server's processor seconds, seconds on the clock and bytes of the echo."""
    identity = read_identity(folder / "ca" / "server-127.0.0.1.pem")
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def open_server() -> tuple[Any, int, _Echo]:
        echo = _Echo(load, by_rounds=by_rounds)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2 * CHUNK_BYTES)])
        server.add_generic_rpc_handlers((echo,))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
        await server.start()
        return server, port, echo

    server, port, echo = asyncio.run_coroutine_threadsafe(open_server(), loop).result()
    barrier = multiprocessing.get_context("spawn").Barrier(load.processes + 1)
    processes, ready = start(echo_process, load, f"127.0.0.1:{port}", str(folder), barrier)
    barrier.wait()
    if by_rounds:
        loop.call_soon_threadsafe(echo.set_deadline)
    began, cpu = time.perf_counter(), time.process_time()
    counts = [ready.get() for _ in processes]
    ended, ended_cpu = echo.ended if by_rounds else (time.perf_counter(), time.process_time())
    found = {"cpu": ended_cpu - cpu, "clock": ended - began}
    found["bytes"] = float(sum(count["bytes"] for count in counts))
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result()
    for process in processes:
        process.join()
    return found
