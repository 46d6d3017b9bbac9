"""TFF's native runtime with a worker process that is ours: started when first needed, and always ended.

TFF's worker listens on every network interface and authenticates nobody; that is its own doing and has no switch.
Use it on machines whose ports others cannot reach.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import grpc
import tensorflow_federated as tff

_BINARY = Path(tff.__file__).parent / "data" / "worker_binary"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_ATTEMPTS = 3
_MESSAGE_BYTES = 2_000_000_000


class WorkerError(RuntimeError):
    """TFF's worker does not start, or has ended while it was needed."""


class TffRuntime:
    """A TFF execution context on a worker of its own.

    The worker gets no pipe of this process, and is gone after ``close``, after this process ends in any way, be it
    an exception or ``kill -9``, and after its guard ends. A context manager; safe to close twice.
    """

    def __init__(self) -> None:
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._messages: IO[bytes] | None = None
        self._channel: Any = None
        self._closed = False
        self._context = tff.framework.SyncExecutionContext(
            executor_fn=_OwnedExecutorFactory(self),
            compiler_fn=tff.backends.native.desugar_and_transform_to_native,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )
        atexit.register(self.close)

    def __enter__(self) -> TffRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """TFF computations called inside run on this worker."""
        with tff.framework.get_context_stack().install(self._context):
            yield

    def stub(self) -> Any:
        """A connection to the running worker, which is started if it is not running yet.

        Raises:
            WorkerError: The runtime is closed, or the worker does not start.
        """
        self.check()
        for attempt in range(1, _ATTEMPTS + 1):
            port = _free_port()
            self._start(port)
            self._channel = grpc.insecure_channel(
                f"localhost:{port}",
                [
                    ("grpc.max_message_length", _MESSAGE_BYTES),
                    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                    ("grpc.max_send_message_length", _MESSAGE_BYTES),
                    ("grpc.enable_http_proxy", 0),
                ],
            )
            stub = tff.framework.RemoteExecutorGrpcStub(self._channel)
            deadline = time.monotonic() + _START_SECONDS
            while self._alive() and time.monotonic() < deadline:
                if stub.is_ready:
                    return stub
                time.sleep(0.02)
            # Another process may have taken the port between choosing and binding it.
            reason = self._last_words()
            self._stop()
            if attempt == _ATTEMPTS:
                raise WorkerError(f"TFF's worker {_BINARY} does not start: {reason}")
        raise AssertionError("the loop returns or raises")

    def check(self) -> None:
        """Raise ``WorkerError`` if the runtime is closed or its worker has ended: TFF would retry for ever."""
        if self._closed:
            raise WorkerError("this TFF runtime is closed; make a new one")
        if self._guard is not None and not self._alive():
            raise WorkerError(f"TFF's worker ended while it was needed: {self._last_words()}")

    def close(self) -> None:
        """End the worker and wait until it is gone."""
        self._closed = True
        if os.getpid() == self._owner:  # a forked child has no say over it
            atexit.unregister(self.close)
            self._stop()

    def _start(self, port: int) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("worker_guard.py")), str(self._owner)]
        self._guard = subprocess.Popen(
            [*command, str(_BINARY), f"--port={port}", "--max_concurrent_computation_calls=-1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            start_new_session=True,  # Ctrl-C goes to this process, which ends the worker in its own time
        )

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        guard, self._guard, self._channel = self._guard, None, None
        if guard is not None:
            if guard.stdin is not None:
                guard.stdin.close()
            try:
                guard.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(guard.pid, signal.SIGKILL)
                guard.wait()
        if self._messages is not None:
            self._messages.close()

    def _alive(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def _last_words(self) -> str:
        if self._messages is None or self._messages.closed:
            return "no message"
        self._messages.seek(0)
        lines = self._messages.read()[-2000:].decode(errors="replace").strip().splitlines()
        code = self._guard.poll() if self._guard is not None else None
        return " | ".join([f"exit code {code}", *lines[-3:]])


def _free_port() -> int:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class _OwnedExecutorFactory(tff.framework.ExecutorFactory):  # type: ignore[misc]  # TFF ships no types
    """TFF's executors, one for each number of clients, on the runtime's worker."""

    def __init__(self, runtime: TffRuntime) -> None:
        self._runtime = runtime
        self._stub: Any = None
        self._factory = tff.framework.ResourceManagingExecutorFactory(self._executor)

    def _executor(self, cardinalities: dict[Any, int]) -> Any:
        cardinalities.setdefault(tff.CLIENTS, 0)
        if self._stub is None:
            self._stub = self._runtime.stub()
        executor = tff.framework.RemoteExecutor(self._stub)
        executor.set_cardinalities(cardinalities)
        return executor

    def create_executor(self, cardinalities: dict[Any, int]) -> Any:
        """An executor for so many clients; raises ``WorkerError`` when the worker is gone."""
        self._runtime.check()
        return self._factory.create_executor(cardinalities)

    def clean_up_executor(self, cardinalities: dict[Any, int]) -> None:
        """Forget an executor after an error."""
        self._runtime.check()
        self._factory.clean_up_executor(cardinalities)
