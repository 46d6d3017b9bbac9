"""Downloads that fail within seconds where there is no network, instead of waiting for minutes."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

REACH_SECONDS = 8.0
"""To resolve a host's name and open a connection to it, whichever of its addresses answers."""
SILENCE_SECONDS = 30.0
"""Without one byte from a host that had been reached. A download that makes progress may take its time."""

_ADDRESS_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}


@contextmanager
def bounded_network(reach: float = REACH_SECONDS, silence: float = SILENCE_SECONDS) -> Iterator[None]:
    """Bound every connection that ``requests`` and ``urllib`` open inside, in all threads.

    TensorFlow Datasets retries ten times with growing pauses and sets no time limit: without a network that is two
    minutes of silence. ``requests`` has no setting for it from outside, so its adapter's ``send`` is wrapped.
    """
    import requests
    from urllib3.util.retry import Retry

    adapter: Any = requests.adapters.HTTPAdapter
    original = adapter.send
    # One retry for a busy server's 50x; none for a host that cannot be reached or falls silent.
    retries = Retry(total=1, connect=0, read=0, backoff_factor=0.5, status_forcelist=[500, 502, 503, 504])
    reached: set[tuple[str, int]] = set()

    def send(
        self: Any,
        request: Any,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Any:
        address = _peer(requests.utils.select_proxy(request.url, proxies) or request.url)
        if address not in reached:
            reason = _why_unreachable(*address, reach)
            if reason:
                raise requests.exceptions.ConnectionError(
                    f"{address[0]} cannot be reached: {reason}", request=request
                )
            reached.add(address)
        self.max_retries = retries
        return original(self, request, stream, timeout or (reach, silence), verify, cert, proxies)

    log = logging.getLogger("urllib3.connectionpool")
    level, socket_timeout = log.level, socket.getdefaulttimeout()
    adapter.send = send
    socket.setdefaulttimeout(silence)  # urllib's, for FTP
    log.setLevel(logging.ERROR)  # the error that follows says it once
    try:
        yield
    finally:
        adapter.send = original
        socket.setdefaulttimeout(socket_timeout)
        log.setLevel(level)


def why_unreachable(url: str, seconds: float = REACH_SECONDS) -> str:
    """Empty when the host of ``url``, or the proxy that the environment names for it, answers in time.

    For code that opens ``url`` by ``urllib``, which puts no bound on resolving a name.
    """
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = url
    return _why_unreachable(*_peer(proxy), seconds)


def _peer(url: str) -> tuple[str, int]:
    """Host and port that a URL, or a proxy's, leads to."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)


def _why_unreachable(host: str, port: int, seconds: float) -> str:
    """Empty when the host answers in time; in a thread, because resolving a name cannot be interrupted."""
    reasons: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=min(seconds, _ADDRESS_SECONDS)).close()
            reasons.append("")
        except OSError as error:
            reasons.append(error.strerror or str(error))

    thread = threading.Thread(target=connect, name=f"reach {host}", daemon=True)
    thread.start()
    thread.join(seconds)
    return reasons[0] if reasons else f"no answer in {seconds:g} s"
