"""A run's folder: who may write into it, and that its files are there whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from privfed.config import Settings
from privfed.errors import OutputError
from privfed.files import replacing, write_text
from privfed.rundir import MetricsFile, RunFolder
from privfed.settings_file import load_settings, resolve_settings

SETTINGS = resolve_settings({"name": "mine"})
OTHER = resolve_settings({"name": "mine", "training": {"rounds": 7}})


def test_a_new_folder_is_made_and_left_empty_until_it_is_claimed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b", SETTINGS)
    assert list(folder.path.iterdir()) == []
    folder.claim()
    assert [path.name for path in folder.path.iterdir()] == ["config.toml"]
    assert load_settings(folder.settings_file) == SETTINGS
    assert stat.S_IMODE(folder.settings_file.stat().st_mode) == 0o644


def test_the_same_run_comes_back_and_another_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS).claim()
    before = (tmp_path / "config.toml").read_bytes()
    (tmp_path / "ledger.jsonl").write_text("whatever")
    RunFolder(tmp_path, SETTINGS).claim()
    with pytest.raises(
        OutputError, match=r"already holds another run: there training\.rounds is 20, here 7"
    ) as caught:
        RunFolder(tmp_path, OTHER)
    assert caught.value.where == f"--out {tmp_path}"
    assert (tmp_path / "config.toml").read_bytes() == before


def test_settings_that_only_spell_the_same_run_differently_are_the_same_run(tmp_path: Path) -> None:
    RunFolder(tmp_path, resolve_settings({"training": {"learning_rate": 1}})).claim()
    RunFolder(tmp_path, resolve_settings({"training": {"learning_rate": 1.0, "rounds": 20}})).claim()


@pytest.mark.parametrize("first", [SETTINGS, OTHER])
def test_of_two_runs_that_find_it_empty_one_gets_it(tmp_path: Path, first: Settings) -> None:
    """Loading data takes a while: the folder may be taken between the first look and the first round."""
    second = OTHER if first is SETTINGS else SETTINGS
    early, late = RunFolder(tmp_path, first), RunFolder(tmp_path, second)
    early.claim()
    with pytest.raises(OutputError, match="already holds another run"):
        late.claim()
    assert load_settings(early.settings_file) == first


def test_foreign_files_are_refused_and_hidden_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    folder = RunFolder(tmp_path, SETTINGS)
    (tmp_path / "photo.jpg").write_text("")
    for look in (lambda: RunFolder(tmp_path, SETTINGS), folder.claim):
        with pytest.raises(OutputError, match=r"holds no run of ours \(got 'photo\.jpg'\)"):
            look()
    assert not folder.settings_file.exists()


@pytest.mark.parametrize("content", ["[privacy", "colour = 1\n"])
def test_settings_that_cannot_be_read_are_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.toml").write_text(content)
    with pytest.raises(OutputError, match="holds a run whose settings cannot be read") as caught:
        RunFolder(tmp_path, SETTINGS)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.toml").read_text() == content


def test_a_path_that_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"cannot be written: .*Name another folder"):
            RunFolder(path, SETTINGS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_to_write(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        RunFolder(tmp_path / "theirs", SETTINGS)


def test_metrics_are_on_disk_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for number in (1, 2):
            file.write({"round": number, "loss": 0.5})
            assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == list(
                range(1, number + 1)
            )


def test_metrics_of_a_resumed_run_begin_with_the_rounds_of_its_checkpoint(tmp_path: Path) -> None:
    """Rounds after the checkpoint were lost with the kill: their lines go, or they would be there twice."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n{"rou')
    with MetricsFile(path, [{"round": 1}]) as file:
        file.write({"round": 2})
    assert path.read_text() == '{"round": 1}\n{"round": 2}\n'


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "m") as file, pytest.raises(ValueError, match="not JSON compliant"):
        file.write({"loss": float("nan")})
    assert (tmp_path / "m").read_text() == ""


def test_baseline_metrics_have_a_file_of_their_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SETTINGS)
    for baseline in (False, True):
        with folder.metrics(baseline=baseline) as file:
            file.write({"baseline": baseline})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"baseline": False}
    assert json.loads((tmp_path / "metrics-baseline.jsonl").read_text()) == {"baseline": True}


def test_weights_are_the_float32_vector_itself(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=9).astype(np.float32)
    read = np.load(RunFolder(tmp_path, SETTINGS).save_weights(weights), allow_pickle=False)
    np.testing.assert_array_equal(read, weights)
    assert read.dtype == np.float32


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "weights.npy"
    target.write_bytes(b"old")

    def fail_half_way() -> None:
        with replacing(target) as file:
            file.write(b"new, but only ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_replaced_file_is_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("sync"), sync(file))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    with replacing(tmp_path / "x") as file:
        file.write(b"content")
    assert order[:2] == ["sync", "replace"]
    assert (tmp_path / "x").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    assert path.stat().st_mode & 0o777 == 0o644

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
