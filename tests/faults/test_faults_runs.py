"""Whole runs under faults, with training in NumPy so that there can be many: killed, starved of disk, out of time.

What is asked is the same everywhere: what a run leaves verifies, nothing that was shown is missing from the
ledger, and the same command ends with the bits of a run that nothing happened to.
"""

from __future__ import annotations

import resource
import signal
import time
from typing import Any

import doomed
import numpy as np
import pytest
from doomed import Death
from killed_runs import Start, Watch, check_the_end, outcome, shown

from privfed.rundir import LEDGER
from privfed.verification import verify_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES: dict[str, tuple[str, ...]] = {
    "off": ("secure_aggregation.mode=off", "training.checkpoint_every=2"),
    "ring": ("secure_aggregation.mode=ring", "training.checkpoint_every=5"),
    "protocol": ("secure_aggregation.mode=protocol", "training.checkpoint_every=3"),
}
KILLS = 37
"""Of each case."""


@pytest.mark.parametrize("case", CASES)
def test_killed_often(case: str, start: Start, record_property: Any) -> None:
    changes, rng = CASES[case], np.random.default_rng(list(case.encode()))
    began = time.monotonic()
    whole = start("whole", changes, plain=True)
    assert whole.end() == 0, whole.output
    length, calls = time.monotonic() - began, len(whole.calls())
    kills = runs = 0
    while kills < KILLS:
        watch, runs = Watch(start.base / f"run{runs}"), runs + 1
        for _ in range(10):  # deaths of one run; then it may end
            by_call = rng.random() < 0.5
            death = Death(int(rng.integers(calls // 2)), str(rng.choice(doomed.MOMENTS))) if by_call else None
            run = start(watch.folder.name, changes, death=death, plain=True)
            code = run.ended(60 if by_call else rng.uniform(0.2, 1.0) * length)
            if code is None:
                run.kill()
            elif code != -signal.SIGKILL:
                assert code == 0, run.output
                break
            kills += 1
            watch.look()
        last = start(watch.folder.name, changes, plain=True)
        assert last.end() == 0, last.output
        watch.look()
        check_the_end(watch.folder, start.base / "whole")
    record_property("says", f"{kills} kills of {runs} runs, nothing lost")


@pytest.mark.parametrize("disk", doomed.DISKS)
def test_a_disk_that_takes_no_more(disk: str, start: Start, record_property: Any) -> None:
    """From a random call on: one line, exit code 2, and once there is room the run goes on to the same bits."""
    changes, rng = CASES["ring"], np.random.default_rng(11)
    whole = start("whole", changes, plain=True)
    assert whole.end() == 0, whole.output
    calls = whole.calls()
    points = [int(at) for at in rng.choice(len(calls), 12, replace=False)]
    for number, at in enumerate(points):
        watch = Watch(start.base / f"run{number}")
        run = start(watch.folder.name, changes, death=Death(at, disk), plain=True)
        code = run.end()
        assert "Traceback" not in run.output, run.output
        if code == 0:  # all that was refused was the removal of what is not needed any more
            assert at > len(calls) - 5, (calls[at], run.output)
        else:
            assert code == 2, run.output
            said = run.output.splitlines()[-1]
            assert said.startswith("privfed: ")
            assert {"full": "No space left", "read-only": "Read-only"}[disk] in said or "in full" in said, said
        watch.look()
        run = start(watch.folder.name, changes, plain=True)
        assert run.end() == 0, run.output
        watch.look()
        check_the_end(watch.folder, start.base / "whole")
    record_property("says", f"{disk} at {len(points)} of {len(calls)} calls, nothing lost")


def test_a_file_may_not_grow_beyond_the_limit_of_the_kernel(start: Start, privfed_command: list[str]) -> None:
    """The real thing beside the pretended one: the kernel cuts a write short and refuses the next."""
    import subprocess

    from killed_runs import arguments_of

    folder = start.base / "run"
    arguments = arguments_of(folder, CASES["off"])
    limited = subprocess.run(
        [*privfed_command, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    assert limited.returncode == 2, limited.stderr
    assert "Traceback" not in limited.stderr
    assert limited.stderr.splitlines()[-1].startswith("privfed: ")
    Watch(folder).look()


def test_a_clock_that_jumps_changes_nothing(start: Start) -> None:
    changes = ("secure_aggregation.mode=protocol",)
    assert start("whole", changes, plain=True).end() == 0
    run = start("jumping", changes, fault="clock_jumps", plain=True)
    assert run.end() == 0, run.output
    assert outcome(start.base / "jumping") == outcome(start.base / "whole")


def test_a_fault_of_the_program_is_found_here_too(start: Start) -> None:
    """NumPy's training in TensorFlow's place has not taken the teeth out."""
    changes = ("training.checkpoint_every=5",)
    assert start("whole", changes, plain=True).end() == 0
    calls = start("again", changes, plain=True)
    assert calls.end() == 0
    at = [call for call, name in enumerate(calls.calls()) if name.startswith("line ")][7]
    assert start("run", changes, death=Death(at, "after"), plain=True).end() == -signal.SIGKILL
    assert shown(start.base / "run") >= 7
    assert start("run", changes, fault="forget_the_momentum", plain=True).end() == 0
    assert outcome(start.base / "run") != outcome(start.base / "whole")
    assert verify_run(start.base / "run").epsilon == float("inf")


def test_a_ledger_that_lost_rounds_which_the_checkpoint_holds_is_refused(start: Start) -> None:
    run = start("run", CASES["off"], plain=True)
    run.wait_for(lambda: shown(start.base / "run") >= 7)
    run.kill()
    ledger = start.base / "run" / LEDGER
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:5]))
    before = ledger.read_bytes()
    run = start("run", CASES["off"], plain=True)
    assert run.end() == 2, run.output
    assert "lacks round 3, which the checkpoint holds" in run.output.splitlines()[-1]
    assert "Traceback" not in run.output
    assert ledger.read_bytes().startswith(before)
