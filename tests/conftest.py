"""What all tests share: TensorFlow kept quiet and off the GPU, so that results are the same everywhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def privfed_command() -> list[str]:
    """The command line in a process of its own, from the environment that runs the tests."""
    return [str(Path(sys.executable).parent / "privfed")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what a passed test wants said, by ``record_property("says", ...)``: counts that no assertion shows."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "says":
                terminalreporter.write_line(f"{report.nodeid}: {text}")
