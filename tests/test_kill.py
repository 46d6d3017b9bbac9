"""Runs killed at any moment: what they leave verifies, ε is never below what was shown, and a rerun ends the same.

Runs are forked from one process that has imported everything (``warm``), and die at a random time or at a given
call that changes a file (``doomed``). Every choice is seeded.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from functools import partial

import doomed
import numpy as np
import pytest
from doomed import ROUNDS, Death
from killed_runs import (
    Start,
    Watch,
    arguments_of,
    check_the_end,
    committed,
    lines_of,
    outcome,
    price,
    shown,
)

from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import BASELINE_METRICS, LEDGER, METRICS
from privfed.verification import verify_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES: dict[str, tuple[str, ...]] = {
    "off, every round": ("secure_aggregation.mode=off", "training.checkpoint_every=1"),
    "ring, every third round, canaries": (
        "secure_aggregation.mode=ring",
        "training.checkpoint_every=3",
        "audit.canaries=40",
    ),
    "protocol, adaptive": ("privacy.mechanism=adaptive", "training.checkpoint_every=3"),
    "protocol, noise of the clients": ("privacy.mechanism=skellam", "training.checkpoint_every=1"),
    "noise of each example's gradient": (
        "secure_aggregation.mode=off",
        "privacy.mechanism=dp_sgd",
        "privacy.unit=example",
        "privacy.example_rate=0.3",
        "training.local_epochs=1",
        "training.local_steps=4",
        "training.checkpoint_every=2",
    ),
    "masked control variates": (
        "secure_aggregation.mode=ring",
        "training.algorithm=scaffold",
        "training.checkpoint_every=2",
        "privacy.mechanism=none",
        "privacy.noise_multiplier=none",
    ),
}
POINTS = dict.fromkeys(CASES, 23) | {"noise of each example's gradient": 4, "masked control variates": 4}
"""Kills of each case: a hundred in all."""


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_points_and_gone_on_with_to_the_same_bits(case: str, start: Start) -> None:
    changes, points, rng = CASES[case], POINTS[case], np.random.default_rng(list(case.encode()))
    whole, began = start("whole", changes), time.monotonic()
    assert whole.end() == 0, whole.output
    length, calls = time.monotonic() - began, len(whole.calls())
    kills, several = 0, 0
    mechanism = next((c.partition("=")[2] for c in changes if c.startswith("privacy.mechanism=")), "gaussian")
    for number in range(points):
        folder, killed = start.base / str(number), 0
        watch = Watch(folder, priced=mechanism in ("gaussian", "adaptive"), claimed=mechanism != "none")
        while kills < points:
            # By turns at a random time, and at a random call: early, so that most runs die more than once.
            by_call = rng.random() < 0.5
            death = Death(int(rng.integers(calls // 2)), str(rng.choice(doomed.MOMENTS))) if by_call else None
            run = start(str(number), changes, death=death)
            code = run.ended(240 if by_call else rng.uniform(0.1, 0.9) * length)
            if code is None:
                run.kill()
            elif code != -signal.SIGKILL:
                assert code == 0, run.output
                break
            kills, killed = kills + 1, killed + 1
            watch.look()
        several += killed > 1
        last = start(str(number), changes)
        assert last.end() == 0, last.output
        watch.look()
        check_the_end(folder, start.base / "whole")
        if kills == points:
            break
    assert kills == points
    assert several or points < 10
    assert start(str(number), command="verify").end() == 0


def kinds(calls: list[str]) -> dict[str, list[int]]:
    """Numbers of the calls by what they do to which file; a temporary file goes by the name it is to take."""
    found: dict[str, list[int]] = {}
    for at, call in enumerate(calls):
        name, _, path = call.partition(" ")
        if path.endswith(".tmp"):
            path = next(c.partition(" ")[2] for c in calls[at:] if c.startswith("replace")) + " to be"
        found.setdefault(f"{name} {re.sub('[0-9]+', '#', path)}", []).append(at)
    return found


def moments(kind: str) -> tuple[str, ...]:
    """Those that leave different files: before one call is after another, and a name is changed or not."""
    return ("amid", "after") if kind.split()[0] in ("write", "fsync", "line") else ("after",)


def test_killed_inside_every_kind_of_write(start: Start) -> None:
    changes = ("secure_aggregation.mode=ring", "training.checkpoint_every=2")
    rng = np.random.default_rng(3)
    whole = start("whole", changes)
    assert whole.end() == 0, whole.output
    by_kind = kinds(whole.calls())
    for expected in (
        "write ledger.jsonl",
        "fsync ledger.jsonl",
        "line metrics.jsonl",
        "fsync checkpoints/round-#.ckpt to be",
        "replace checkpoints/round-#.ckpt",
        "unlink checkpoints/round-#.ckpt",
        "fsync checkpoints/record-#.npz to be",
        "fsync weights.npy to be",
        "fsync transcript.npz to be",
        "replace transcript.npz",
    ):
        assert expected in by_kind
    torn = 0
    for kind, calls in by_kind.items():
        for moment in moments(kind):
            name = re.sub(r"\W+", "-", f"{kind} {moment}")
            watch = Watch(start.base / name)
            run = start(name, changes, death=Death(int(rng.choice(calls)), moment))
            assert run.end() == -signal.SIGKILL, run.output
            watch.look()
            run = start(name, changes)
            assert run.end() == 0, run.output
            watch.look()
            check_the_end(watch.folder, start.base / "whole")
            torn += watch.torn
    assert torn  # half a line of the ledger was there to be told apart


def test_a_checkpoint_that_was_damaged_costs_rounds_only(start: Start) -> None:
    changes = ("secure_aggregation.mode=ring", "training.checkpoint_every=2")
    assert start("whole", changes).end() == 0
    watch = Watch(start.base / "run")
    run = start("run", changes)
    run.wait_for(lambda: shown(watch.folder) >= 7)
    run.kill()
    watch.look()
    older, newest = sorted((watch.folder / "checkpoints").glob("round-*.ckpt"))[-2:]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    run = start("run", changes)
    assert run.end() == 0
    assert f"{newest.name} cannot be used (its hash does not fit); going back to the one before it" in run.output
    assert f"going on after round {int(older.stem.split('-')[1])}" in run.output
    watch.look()
    check_the_end(watch.folder, start.base / "whole")


def test_in_secure_mode_a_replay_counts_again(start: Start) -> None:
    rounds = 24
    changes = (
        "privacy.randomness=secure",
        "secure_aggregation.mode=ring",
        "training.checkpoint_every=5",
        f"training.rounds={rounds}",
    )
    rng, watch = np.random.default_rng(5), Watch(start.base / "run", research=False)
    for _ in range(4):
        run, enough = start("run", changes), len(committed(watch.folder)) + int(rng.integers(3, 7))
        run.wait_for(lambda enough=enough: len(committed(watch.folder)) >= enough)  # type: ignore[misc]  # a default
        run.kill()
        watch.look()
    assert start("run", changes).end() == 0
    watch.look()
    report = verify_ledger(watch.folder / LEDGER)
    reserved = [entry for entry in lines_of(watch.folder / LEDGER) if entry["kind"] == "reserve"]
    assert report.spent == len(reserved) >= len(committed(watch.folder)) > rounds
    assert report.guarantee is not None
    assert report.guarantee.epsilon == price(report.spent) > price(rounds)
    # What is finished is not spent again.
    assert start("run", changes).end() == 0
    assert verify_ledger(watch.folder / LEDGER).spent == report.spent


def test_an_audit_killed_in_any_phase_leaves_a_whole_report_or_none(start: Start) -> None:
    changes, rng = ("secure_aggregation.mode=ring",), np.random.default_rng(7)
    whole, began = start("whole", changes, "audit"), time.monotonic()
    assert whole.end() == 0, whole.output
    length, calls = time.monotonic() - began, whole.calls()
    closed = max(at for at, call in enumerate(calls) if call.endswith(LEDGER))
    alike = {"replace report.md", "replace registry.json"}  # as report.html, right after it
    after_training = {k: ats for k, ats in kinds(calls).items() if ats[-1] > closed and k not in alike}
    written = {"replace report.json", "replace report.html", "replace manifest.json"}
    assert {f"line {BASELINE_METRICS}", *written} <= set(after_training)
    deaths: list[Death | float] = [
        Death(ats[len(ats) // 2], moment) for kind, ats in after_training.items() for moment in moments(kind)
    ]
    deaths += list(rng.uniform(0.5, 1, 8) * length)  # most of them in the attacks
    watch = Watch(start.base / "run")
    for number, death in enumerate(deaths):
        run = start("run", changes, "audit", death if isinstance(death, Death) else None)
        if isinstance(death, Death):
            # A rerun trains nothing, so it has fewer calls before; and may end before so many.
            assert run.end() in (-signal.SIGKILL, 0), run.output
        elif run.ended(death) is None:
            run.kill()
        watch.look()
        assert (watch.folder / "report.html").exists() or not (watch.folder / "report.json").exists()
        if number % 4 == 3:  # in a folder with a report, and in a folder without one
            watch = Watch(start.base / f"run{number}")
            start.base.joinpath("run").rename(watch.folder)
            assert start(watch.folder.name, changes, "audit").end() == 0
            watch.look()
            assert outcome(watch.folder) == outcome(start.base / "whole")
            assert not any(watch.folder.rglob(".*"))
            watch = Watch(start.base / "run")


def test_two_runs_do_not_share_a_folder(start: Start) -> None:
    changes = ("training.rounds=100", "secure_aggregation.mode=ring")
    folder = start.base / "run"
    first = start("run", changes)
    first.wait_for(lambda: shown(folder) >= 1)
    first.send(signal.SIGSTOP)  # so that nothing changes under the second one
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    second = start("run", changes)
    assert second.end() == 2
    (line,) = second.output.splitlines()
    assert re.fullmatch(r"privfed: .*ledger\.jsonl: another process writes to it\. Wait for it to end", line)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    first.send(signal.SIGCONT)
    first.send(signal.SIGTERM)
    assert first.end() == 128 + signal.SIGTERM
    assert verify_run(folder).holds


STOPPING = "stopping after this round; interrupt again to stop at once"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_ends_the_round_and_a_rerun_the_training(
    number: signal.Signals, start: Start, privfed_command: list[str]
) -> None:
    """The stopped one is a process of its own, as a user's is: the forked ones are no other."""
    changes = ("secure_aggregation.mode=ring", "training.checkpoint_every=100")
    assert start("whole", changes).end() == 0
    folder, watch = start.base / "run", Watch(start.base / "run")
    process = subprocess.Popen(
        [*privfed_command, *arguments_of(folder, changes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 240
        while shown(folder) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(number)
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    done = shown(folder)
    assert 3 <= done < ROUNDS
    assert process.returncode == 128 + number
    assert output == ""
    said = errors.splitlines()
    assert said.count(STOPPING) == 1
    assert said[-1] == f"privfed: stopped after round {done}; the same command goes on from there"
    watch.look()
    assert verify_ledger(folder / LEDGER).reserved == done  # the round was ended, not cut
    rerun = start("run", changes)
    assert rerun.end() == 0
    assert f"going on after round {done}" in rerun.output
    check_the_end(folder, start.base / "whole")
    assert verify_ledger(folder / LEDGER).reserved == ROUNDS  # nothing was done twice


def test_a_second_interrupt_stops_at_once(start: Start) -> None:
    endless = ("training.local_epochs=20000", "training.batch_size=1", "training.rounds=12")
    watch = Watch(start.base / "run")
    run = start("run", endless)
    run.wait_for(lambda: (watch.folder / LEDGER).exists() and "reserve" in (watch.folder / LEDGER).read_text())
    time.sleep(1)  # into the training of clients, which takes minutes
    run.send(signal.SIGINT)
    run.wait_for(lambda: STOPPING in run.output)
    run.send(signal.SIGINT)
    assert run.ended(10) == 128 + signal.SIGINT, run.output
    assert run.output.splitlines()[-1] == "privfed: interrupted; what was spent stays on the ledger"
    watch.look()


def test_a_request_in_the_last_round_does_not_start_the_attacks(start: Start) -> None:
    """The training is finished, with its model and its ledger closed; what follows it is left for the rerun."""
    changes = ("secure_aggregation.mode=ring", "training.rounds=100", "training.checkpoint_every=100")
    folder = start.base / "run"
    run = start("run", changes, "audit")
    run.wait_for(lambda: shown(folder) >= 99)
    run.send(signal.SIGTERM)
    code = run.end()
    finished = verify_ledger(folder / LEDGER).final_sha256 is not None
    assert code == 128 + signal.SIGTERM
    assert not (folder / BASELINE_METRICS).exists()
    assert run.output.splitlines()[-1].startswith(
        "privfed: stopped after the training;" if finished else "privfed: stopped after round 99;"
    )
    assert verify_run(folder).holds


class TestFaultsAreFound:
    """The checks above have teeth: each fault that is put into the program fails one of them."""

    @pytest.mark.parametrize("fault", ["commit_too_late", "reserve_nothing"])
    def test_what_is_shown_before_it_is_on_the_ledger(self, fault: str, start: Start) -> None:
        whole = start("whole")
        assert whole.end() == 0
        at = [call for call, name in enumerate(whole.calls()) if name == f"line {METRICS}"][4]
        died = start("run", death=Death(at, "after"), fault=fault)
        if died.end() == 0:  # fewer calls than the sound program has
            assert fault == "reserve_nothing"
        with pytest.raises(AssertionError):
            Watch(start.base / "run").look()

    def test_a_rerun_that_goes_another_way(self, start: Start) -> None:
        changes = ("training.checkpoint_every=5",)
        assert start("whole", changes).end() == 0
        run = start("run", changes)
        run.wait_for(lambda: shown(start.base / "run") >= 7)
        run.kill()
        assert start("run", changes, fault="forget_the_momentum").end() == 0
        assert outcome(start.base / "run") != outcome(start.base / "whole")
        # The ledger itself tells: two models under the same noise protect nobody.
        assert verify_run(start.base / "run").epsilon == float("inf")
        with pytest.raises(AssertionError):
            Watch(start.base / "run").look()
