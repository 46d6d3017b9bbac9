"""The ledger: hash chain, spending rule, and that no kill or tampering makes ε less than was released."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mechanism_calls import central

from privfed.privacy.accounting import account
from privfed.privacy.errors import LedgerError
from privfed.privacy.ledger import Ledger
from privfed.privacy.ledger_entries import GENESIS, Header
from privfed.privacy.ledger_report import verify_ledger
from privfed.privacy.sampling import PoissonSampling

SCHEME = PoissonSampling(0.1)
RESEARCH = Header("settings", "gaussian", "client", 1e-5, secure=False)
SECURE = Header("settings", "gaussian", "client", 1e-5, secure=True)


def write_rounds(path: Path, header: Header, rounds: int, *, model: str = "model", finish: bool = True) -> None:
    with Ledger(path, header) as ledger:
        for number in range(1, rounds + 1):
            ledger.reserve(number, central(1.0))
            ledger.commit(number, f"{model} {number}")
        if finish:
            ledger.finish(f"{model} {rounds}")


def test_epsilon_is_recomputed_from_the_file_alone(tmp_path: Path) -> None:
    write_rounds(tmp_path / "ledger.jsonl", RESEARCH, 5)
    report = verify_ledger(tmp_path / "ledger.jsonl")
    assert report.guarantee is not None
    assert report.guarantee.epsilon == account(1.0, SCHEME, 5, 1e-5).epsilon
    assert (report.reserved, report.committed, report.spent, report.attempts) == (5, 5, 5, 1)
    assert report.final_sha256 == "model 5"
    assert report.entries == 12


def test_a_research_replay_is_the_same_release_and_a_secure_one_is_not(tmp_path: Path) -> None:
    for name, header, spent in (("r", RESEARCH, 4), ("s", SECURE, 7)):
        write_rounds(tmp_path / name, header, 3, finish=False)
        write_rounds(tmp_path / name, header, 4)
        report = verify_ledger(tmp_path / name)
        assert (report.spent, report.reserved, report.attempts) == (spent, 7, 2)


def test_a_replay_with_another_outcome_counts_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_rounds(path, RESEARCH, 3, finish=False)
    write_rounds(path, RESEARCH, 3, model="other")
    assert verify_ledger(path).spent == 6


def test_reserved_and_aborted_rounds_count_as_spent(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, RESEARCH) as ledger:
        ledger.reserve(1, central(1.0))
        ledger.abort(1, "too few")
        ledger.reserve(2, central(1.0))
    report = verify_ledger(path)
    assert (report.spent, report.committed, report.aborted, report.final_sha256) == (2, 0, 1, None)


def test_every_entry_is_on_disk_when_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), original(fd)))
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, RESEARCH) as ledger:
        ledger.reserve(1, central(1.0))
        assert synced[-1] == path.stat().st_size
        ledger.commit(1, "x")
        assert synced[-1] == path.stat().st_size


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1))
def test_killed_at_any_byte_the_ledger_holds_what_was_shown(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    write_rounds(path, RESEARCH, 4, finish=False)
    content = path.read_bytes()
    kept = content[: int(cut * len(content))]
    # Shown are the rounds whose commit is on disk in full.
    shown = sum(json.loads(line)["kind"] == "commit" for line in kept.split(b"\n")[:-1])
    path.write_bytes(kept)
    report = verify_ledger(path)
    assert report.spent >= shown
    write_rounds(path, RESEARCH, 4)  # and a rerun goes on from there
    after = verify_ledger(path)
    assert (after.spent, after.torn_bytes, after.final_sha256) == (4, 0, "model 4")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    write_rounds(path, RESEARCH, 2)
    content = bytearray(path.read_bytes())
    head = verify_ledger(path).head
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255).filter(lambda b: b != content[position]))
    path.write_bytes(content)
    if position == len(content) - 1:
        # Without its line end the last entry is a torn one: seen, and no longer the head that the report names.
        report = verify_ledger(path)
        assert report.torn_bytes
        assert report.head != head
    else:
        with pytest.raises(LedgerError, match="line"):
            verify_ledger(path)


@pytest.mark.parametrize("change", ["drop", "swap", "insert"])
def test_missing_swapped_and_added_lines_are_found(tmp_path: Path, change: str) -> None:
    path = tmp_path / "ledger.jsonl"
    write_rounds(path, RESEARCH, 3)
    lines = path.read_text().splitlines(keepends=True)
    if change == "drop":
        del lines[2]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines.insert(3, lines[2])
    path.write_text("".join(lines))
    with pytest.raises(LedgerError, match="does not follow"):
        verify_ledger(path)


def test_one_writer_one_run_and_a_version_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, RESEARCH), pytest.raises(LedgerError, match="another process"):
        Ledger(path, RESEARCH)
    with pytest.raises(LedgerError, match="other settings"):
        Ledger(path, Header("other", "gaussian", "client", 1e-5, secure=False))
    Ledger(path, RESEARCH).close()  # neither refusal left the lock behind
    path.write_text("[]\n")
    with pytest.raises(LedgerError, match="line 1 is not an entry"):
        verify_ledger(path)
    with pytest.raises(LedgerError, match="cannot be read"):
        verify_ledger(tmp_path / "none")


def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.touch()
    report = verify_ledger(path)
    assert (report.header, report.spent, report.head, report.guarantee) == (None, 0, GENESIS, None)


def test_without_a_mechanism_nothing_is_claimed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, Header("s", "none", "client", 1e-5, secure=False)) as ledger:
        ledger.finish("model")
    assert verify_ledger(path).guarantee is None
