"""A network that does not answer costs seconds: local servers, and addresses reserved to be nowhere."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from privfed.data.network import bounded_network


@contextmanager
def server(statuses: list[int]) -> Iterator[tuple[str, list[str]]]:
    """Answers with these statuses, one after the other, and lists the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(statuses[min(len(asked), len(statuses)) - 1])
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_what_answers_is_downloaded() -> None:
    with server([200]) as (url, asked), bounded_network():
        assert requests.get(f"{url}/file", timeout=None).text == "hello"
    assert asked == ["/file"]


def test_a_busy_server_is_asked_once_more() -> None:
    with server([503, 200]) as (url, asked), bounded_network():
        assert requests.get(url, timeout=None).ok
    assert len(asked) == 2


def test_a_server_that_stays_busy_is_given_up_on() -> None:
    with server([503]) as (url, asked), bounded_network(), pytest.raises(requests.exceptions.RetryError):
        requests.get(url, timeout=None)
    assert len(asked) == 2


def test_a_host_that_falls_silent_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with (
            bounded_network(silence=0.2),
            pytest.raises(requests.exceptions.ConnectionError, match="Read timed out"),
        ):
            requests.get(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=None)
        assert time.monotonic() - started < 5


def test_a_closed_port_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        bounded_network(),
        pytest.raises(requests.exceptions.ConnectionError, match=r"127\.0\.0\.1 cannot be reached"),
    ):
        requests.get(f"http://127.0.0.1:{port}", timeout=None)


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])  # reserved by RFC 2606 and RFC 5737
def test_a_host_that_is_nowhere_costs_seconds(host: str) -> None:
    started = time.monotonic()
    with bounded_network(reach=2.0), pytest.raises(requests.exceptions.ConnectionError, match=f"{host} cannot be"):
        requests.get(f"http://{host}/", timeout=None)
    assert time.monotonic() - started < 6


def test_a_name_that_never_resolves_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def resolve(*_: object, **__: object) -> None:
        given_up.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", resolve)
    with (
        bounded_network(reach=0.1),
        pytest.raises(requests.exceptions.ConnectionError, match=r"no answer in 0.1 s"),
    ):
        requests.get("http://slow.invalid/", timeout=None)
    given_up.set()


def test_a_proxy_is_what_has_to_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy only the proxy knows the names of hosts outside."""
    with server([200]) as (url, asked):
        monkeypatch.setenv("http_proxy", url)
        with bounded_network():
            assert requests.get("http://known-to-the-proxy.invalid/x", timeout=None).ok
    assert asked == ["http://known-to-the-proxy.invalid/x"]


def test_everything_is_as_before_afterwards() -> None:
    before = requests.adapters.HTTPAdapter.send, socket.getdefaulttimeout()
    with pytest.raises(KeyError), bounded_network():
        raise KeyError
    assert (requests.adapters.HTTPAdapter.send, socket.getdefaulttimeout()) == before
