"""The pool of workers, with a script in the worker's place: every way for a trial to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from privfed.config import Settings
from privfed.sweep.grid import Trial
from privfed.sweep.pool import Event, Pool, split_cores

SCRIPT = (sys.executable, str(Path(__file__).with_name("worker_script.py")))


def trials(out: Path, names: Sequence[str]) -> list[tuple[Trial, Path]]:
    return [(Trial(f"{i}-{n}", {}, 0, Settings(name=n)), out / f"{i}-{n}") for i, n in enumerate(names)]


def ends(events: Sequence[Event]) -> dict[str, str]:
    return {event.trial.id: event.kind for event in events if event.kind != "round"}


def pid(out: Path, name: str) -> int:
    path, deadline = out / name / "pid", time.monotonic() + 10
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(path.read_text().split()[0])


def test_one_process_trains_many_trials(tmp_path: Path) -> None:
    events: list[Event] = []
    with Pool(1, tmp_path / "logs", SCRIPT) as pool:
        pool.run(trials(tmp_path, ["a", "b"]), events.append)
        pool.run(trials(tmp_path, ["a", "b", "c"])[2:], events.append)
    assert ends(events) == {"0-a": "done", "1-b": "done", "2-c": "done"}
    assert [event.rounds for event in events if event.kind == "round"] == [2, 2, 2]
    assert [event.figures for event in events if event.kind == "done"] == [{"name": n} for n in "abc"]
    assert pid(tmp_path, "0-a") == pid(tmp_path, "1-b") == pid(tmp_path, "2-c")
    with pytest.raises(ProcessLookupError):
        os.kill(pid(tmp_path, "0-a"), 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("killed", "was ended by SIGKILL"),
        ("exits", "ended with exit code 3"),
        ("fails", "no such data"),
        ("garbage", "JSONDecodeError"),
    ],
)
def test_one_trial_fails_and_the_others_go_on(tmp_path: Path, name: str, words: str) -> None:
    events: list[Event] = []
    with Pool(1, tmp_path / "logs", SCRIPT) as pool:
        pool.run(trials(tmp_path, ["a", name, "b", "c"]), events.append)
    assert ends(events) == {"0-a": "done", f"1-{name}": "failed", "2-b": "done", "3-c": "done"}
    assert words in next(event.words for event in events if event.kind == "failed")


def test_a_worker_that_cannot_start_fails_its_trials(tmp_path: Path) -> None:
    events: list[Event] = []
    with Pool(2, tmp_path / "logs", ("/no/such/program",)) as pool:
        pool.run(trials(tmp_path, ["a", "b", "c"]), events.append)
    assert set(ends(events).values()) == {"failed"}
    assert len(events) == 3


def test_an_interrupt_stops_after_the_round_and_starts_no_more(tmp_path: Path) -> None:
    events: list[Event] = []
    began, earlier = time.monotonic(), signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        pid(tmp_path, "1-long")
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with Pool(1, tmp_path / "logs", SCRIPT) as pool, pytest.raises(KeyboardInterrupt):
        pool.run(trials(tmp_path, ["a", "long", "b"]), events.append)
    assert ends(events) == {"0-a": "done", "1-long": "stopped"}
    assert not (tmp_path / "2-b").exists()
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGINT) is earlier  # which is to ignore it, in a shell's background


def test_a_second_interrupt_kills(tmp_path: Path) -> None:
    events: list[Event] = []

    def interrupt() -> None:
        pid(tmp_path, "0-deaf")
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.5)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with Pool(1, tmp_path / "logs", SCRIPT) as pool, pytest.raises(KeyboardInterrupt):
        pool.run(trials(tmp_path, ["deaf"]), events.append)
    assert ends(events) == {"0-deaf": "stopped"}


def test_two_workers_train_beside_each_other(tmp_path: Path) -> None:
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if sum(event.kind == "done" for event in events) == 3:  # the short ones, while the long one runs
            os.kill(pid(tmp_path, "0-long"), signal.SIGTERM)

    with Pool(2, tmp_path / "logs", SCRIPT) as pool:
        pool.run(trials(tmp_path, ["long", "a", "b", "c"]), observe)
    assert ends(events) == {"0-long": "stopped", "1-a": "done", "2-b": "done", "3-c": "done"}
    assert pid(tmp_path, "0-long") != pid(tmp_path, "1-a")


def test_cores_are_disjoint_while_there_are_enough() -> None:
    cores = sorted(os.sched_getaffinity(0))
    for jobs in (1, 2, 3, len(cores), len(cores) + 1):
        split = split_cores(jobs)
        assert len(split) == jobs
        assert all(split)
        used = [core for part in split for core in part]
        assert set(used) == set(cores)
        assert (len(used) == len(set(used))) == (jobs <= len(cores))
