"""What gRPC says of handshakes is counted, and all else is said as before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from privfed.network.handshakes import CAUSES, cause_of, counted_handshakes


@pytest.mark.parametrize("text", CAUSES)
def test_each_cause_has_its_name(text: bytes) -> None:
    assert cause_of(b"I1124 x.cc:1] Handshake failed with error SSL_ERROR_SSL: " + text + b"\n") == CAUSES[text]
    assert cause_of(text) is None


def test_an_unknown_cause_is_counted_too() -> None:
    assert cause_of(b"Handshake failed with error SSL_ERROR_SYSCALL") == "other"


def test_other_lines_are_said_and_the_stream_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    counted: Counter[str] = Counter()

    def count(cause: str) -> None:
        counted[cause] += 1

    with counted_handshakes(count):
        os.write(2, b"one\nHandshake failed: certificate has expired\ntwo\n")
    os.write(2, b"Handshake failed: three\n")
    assert capfd.readouterr().err == "one\ntwo\nHandshake failed: three\n"
    assert counted == {"handshake: expired": 1}


def test_a_child_that_keeps_the_stream_does_not_hold_the_end_up() -> None:
    with counted_handshakes(lambda cause: None):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(10) == 0
