"""Checkpoints: what comes back is what was saved, to the bit, and what is damaged is passed over in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.federated.checkpoint import Checkpoints, Progress
from privfed.federated.outcome import RoundState
from privfed.files import remove_unfinished
from privfed.transcript import Plan, RoundRecord

D = 5
SETTINGS = "a" * 64
PLAN = Plan(0.1, 1, 4, None, 1.0, 0.5, 3.0, "ring")
AWKWARD = np.array([0.1, -0.0, 1e-45, np.finfo(np.float32).max, 1 / 3], np.float32)
"""Values that a detour over text, float64 or a comparison with ``==`` would change or hide."""


def progress(number: int) -> Progress:
    """After round ``number``, with state of every shape and type that mechanisms and optimizers have."""
    state = RoundState(
        (np.roll(AWKWARD, number), np.full(D, number, np.float32)),
        (np.array(0.1 * number), np.array([number, 1], np.uint32), np.arange(6.0).reshape(2, 3)),
    )
    report = {"round": number, "train_loss": 0.1 + 0.2, "aborted": None, "weights_sha256": "ü"}
    return Progress(
        number,
        np.roll(AWKWARD, -number),
        state,
        [report],
        {"masked input": (2**40, 0.1 + 0.2)},
        {1: "b" * 64},
        np.roll(AWKWARD, 2 + number),
    )


def record(number: int) -> RoundRecord:
    updates = {3: np.arange(D) / 3, 7: np.arange(D) / 7}
    return RoundRecord(
        number,
        AWKWARD,
        np.roll(AWKWARD, 1),
        (3, 5, 7),
        updates,
        {3: 1.0, 7: 0.5},
        {3: np.arange(D) * 1e9},
        np.ones(D) / 9,
    )


def bits(arrays: tuple[np.ndarray, ...]) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(array.dtype.str, array.shape, array.tobytes()) for array in arrays]


def everything(of: Progress) -> Any:
    """Comparable with ``==``, arrays by their bits."""
    average = () if of.average is None else (of.average,)
    arrays = bits((of.weights, *of.state.server)), bits(of.state.mechanism), bits(average)
    return of.round, arrays, of.reports, of.stage_costs, of.recorded


def silent(text: str) -> None:
    raise AssertionError(f"nothing to warn of, but: {text}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def three(folder: Path) -> Path:
    """Rounds 10, 20 and 30 were saved."""
    for number in (10, 20, 30):
        Checkpoints(folder, SETTINGS).save(progress(number))
    return folder


def test_what_comes_back_is_what_was_saved(folder: Path) -> None:
    path = Checkpoints(folder, SETTINGS).save(progress(7))
    got = Checkpoints(folder, SETTINGS).newest(silent)
    assert got is not None
    assert everything(got) == everything(progress(7))
    assert path.stat().st_mode & 0o777 == 0o600  # a mechanism's state is nobody else's


def test_without_state_and_before_the_first_round(folder: Path) -> None:
    Checkpoints(folder, SETTINGS).save(Progress(0, AWKWARD, RoundState((), ())))
    got = Checkpoints(folder, SETTINGS).newest(silent)
    assert got is not None
    assert everything(got) == everything(Progress(0, AWKWARD, RoundState((), ())))


def test_two_are_kept_and_the_newest_wins(three: Path) -> None:
    assert names(three) == ["round-00000020.ckpt", "round-00000030.ckpt"]
    got = Checkpoints(three, SETTINGS).newest(silent)
    assert got is not None
    assert got.round == 30


def test_the_order_is_of_numbers_not_of_digits(folder: Path) -> None:
    for number in (9, 10, 100):
        Checkpoints(folder, SETTINGS).save(progress(number))
    got = Checkpoints(folder, SETTINGS).newest(silent)
    assert got is not None
    assert got.round == 100


def test_nothing_there(folder: Path) -> None:
    assert Checkpoints(folder, SETTINGS).newest(silent) is None
    folder.mkdir()
    assert Checkpoints(folder, SETTINGS).newest(silent) is None


def flip(path: Path, share: float) -> None:
    """Change one bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(share * path.stat().st_size))


def of_other_settings(path: Path) -> None:
    Checkpoints(path.parent / "other", "c" * 64).save(progress(30)).replace(path)


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"cut to {s}": (lambda path, s=s: truncate(path, s), "its hash does not fit") for s in (0, 0.01, 0.5, 0.99)
    },
    **{f"bit at {s}": (lambda path, s=s: flip(path, s), "its hash does not fit") for s in (0, 0.2, 0.5, 0.8, 1)},
    "foreign": (lambda path: path.write_bytes(b"\x93NUMPY or whatever else"), "its hash does not fit"),
    "other settings": (of_other_settings, "of another version or of other settings"),
    "unreadable": (unreadable, "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_costs_rounds_and_not_the_run(three: Path, damage: str) -> None:
    change, reason = DAMAGE[damage]
    change(three / "round-00000030.ckpt")
    heard: list[str] = []
    got = Checkpoints(three, SETTINGS).newest(heard.append)
    assert got is not None
    assert everything(got) == everything(progress(20))
    (line,) = heard
    assert line.startswith("round-00000030.ckpt cannot be used (")
    assert reason in line
    assert line.endswith("; going back to the one before it")
    assert "\n" not in line


def test_none_usable(three: Path) -> None:
    for path in three.iterdir():
        flip(path, 0.3)
    heard: list[str] = []
    assert Checkpoints(three, SETTINGS).newest(heard.append) is None
    assert [line.split()[0] for line in heard] == ["round-00000030.ckpt", "round-00000020.ckpt"]
    assert heard[-1].endswith("; starting over")


def test_of_another_version(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.federated.checkpoint.VERSION", 99)
    heard: list[str] = []
    assert Checkpoints(three, SETTINGS).newest(heard.append) is None
    assert all("of another version" in line for line in heard)


@pytest.mark.parametrize("through_newest", [True, False])
def test_damaged_ones_do_not_crowd_out_new_ones(three: Path, through_newest: bool) -> None:
    """They have higher round numbers than what is saved next: it is the new ones that must stay."""
    for path in three.iterdir():
        flip(path, 0.3)
    checkpoints = Checkpoints(three, SETTINGS)
    if through_newest:
        checkpoints.newest(lambda _: None)
    for number in (3, 6):
        checkpoints.save(progress(number))
        got = Checkpoints(three, SETTINGS).newest(silent)
        assert got is not None
        assert got.round == number
    assert names(three) == ["round-00000003.ckpt", "round-00000006.ckpt"]


def test_a_damaged_one_is_not_one_of_the_two(three: Path) -> None:
    flip(three / "round-00000030.ckpt", 0.3)
    checkpoints = Checkpoints(three, SETTINGS)
    checkpoints.newest(lambda _: None)
    checkpoints.save(progress(31))  # a request to stop came between two multiples of ten
    assert names(three) == ["round-00000020.ckpt", "round-00000031.ckpt"]
    checkpoints.save(progress(40))
    assert names(three) == ["round-00000031.ckpt", "round-00000040.ckpt"]


def test_records_come_back(folder: Path) -> None:
    checkpoints = Checkpoints(folder, SETTINGS)
    digests = {number: checkpoints.save_record(PLAN, record(number)) for number in (1, 12)}
    got = Checkpoints(folder, SETTINGS).load_records(digests, silent)
    assert [each.round for each in got] == [1, 12]
    for each, saved in zip(got, (record(1), record(12)), strict=True):
        assert (each.cohort, each.shares) == (saved.cohort, saved.shares)
        for name in ("updates", "uploads"):
            mine, theirs = getattr(each, name), getattr(saved, name)
            assert list(mine) == list(theirs)
            assert bits(tuple(mine.values())) == bits(tuple(theirs.values()))
        arrays = ("weights", "new_weights", "total")
        assert bits(tuple(getattr(each, n) for n in arrays)) == bits(tuple(getattr(saved, n) for n in arrays))


OF_ANOTHER_ATTEMPT = RoundRecord(1, AWKWARD, AWKWARD, (), {}, {}, {}, np.zeros(D))


@pytest.mark.parametrize("damage", ["missing", "of another attempt", *DAMAGE])
def test_a_record_that_is_gone_is_said_and_the_others_come(folder: Path, damage: str) -> None:
    checkpoints = Checkpoints(folder, SETTINGS)
    digests = {number: checkpoints.save_record(PLAN, record(number)) for number in (1, 2)}
    path = folder / "record-00000001.npz"
    if damage == "missing":
        path.unlink()
    elif damage == "of another attempt":
        checkpoints.save_record(PLAN, OF_ANOTHER_ATTEMPT)
    else:
        DAMAGE[damage][0](path)
    heard: list[str] = []
    assert [each.round for each in checkpoints.load_records(digests, heard.append)] == [2]
    (line,) = heard
    assert line.startswith("the record of round 1 cannot be used (")
    assert line.endswith("; no attack will see it")
    assert "\n" not in line


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_ones(three: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = {path.name: path.read_bytes() for path in three.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    for number in (30, 40):  # over one that is there, and beside it
        with pytest.raises(OSError, match="No space left"):
            Checkpoints(three, SETTINGS).save(progress(number))
        with pytest.raises(OSError, match="No space left"):
            Checkpoints(three, SETTINGS).save_record(PLAN, record(number))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in three.iterdir()} == before


def test_an_interrupt_just_after_the_new_one_took_its_place(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(three, SETTINGS).save(progress(40))
    got = Checkpoints(three, SETTINGS).newest(silent)
    assert got is not None
    assert got.round == 40


def test_content_and_name_are_on_disk_when_save_returns(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, or a machine that stops could leave half the content under the name."""
    order: list[str] = []
    sync, replace, unlink = os.fsync, os.replace, os.unlink

    def note_sync(descriptor: int) -> None:
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "content")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), replace(a, b))[1])
    monkeypatch.setattr(os, "unlink", lambda path, **_: (order.append("remove"), unlink(path))[1])
    Checkpoints(three, SETTINGS).save(progress(40))
    assert order == ["content", "name", "folder", "remove"]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(three: Path) -> None:
    (three / ".abc123.tmp").write_bytes(b"half")
    (three / ".DS_Store").write_bytes(b"theirs")
    (three / "notes.tmp").write_bytes(b"theirs")
    assert Checkpoints(three, SETTINGS).newest(silent) is not None
    remove_unfinished(three)
    assert names(three) == [".DS_Store", "notes.tmp", "round-00000020.ckpt", "round-00000030.ckpt"]
    remove_unfinished(three / "nowhere")
