"""What all tests share: TensorFlow kept quiet and off the GPU, so that results are the same everywhere."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

if TYPE_CHECKING:
    from killed_runs import Start

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def privfed_command() -> list[str]:
    """The command line in a process of its own, from the environment that runs the tests."""
    return [str(Path(sys.executable).parent / "privfed")]


@pytest.fixture(scope="module")
def warm() -> None:
    """The process to fork from: ready before anything is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
        multiprocessing.get_context("forkserver").set_forkserver_preload(["warm"])
        forkserver.ensure_running()


@pytest.fixture
def start(warm: None, tmp_path: Path) -> Iterator[Start]:
    from killed_runs import Start

    starter = Start(tmp_path)
    yield starter
    for run in starter.runs:
        if run.process.is_alive():
            run.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what a passed test wants said, by ``record_property("says", ...)``: counts that no assertion shows."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "says":
                terminalreporter.write_line(f"{report.nodeid}: {text}")
