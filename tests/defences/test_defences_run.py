"""The command's work on digits: real rounds, cells that are kept, and what the grid must show."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privfed.defences.run as run_module
from privfed.cli import main
from privfed.composition import load_population_of
from privfed.console import Console
from privfed.data import Population
from privfed.defences.catalogue import Defence, defences
from privfed.defences.run import run_grid
from privfed.defences.workload import prepare, pruned
from privfed.errors import OutputError, SettingError, Stopped
from privfed.settings_file import load_settings
from privfed.transcript import Kind

EXAMPLE = Path(__file__).parents[2] / "examples" / "defences.toml"
QUIET = Console(quiet=True)
EXACT = ['attacks.methods=["dense_layer","sparse_decomposition"]', "attacks.targets=2"]


@pytest.fixture(scope="module")
def digits() -> Population:
    return load_population_of(load_settings(EXAMPLE))


def named(settings: Any, *names: str) -> tuple[Defence, ...]:
    rows = {row.name: row for row in defences(settings, 15_010)}
    return tuple(rows[name] for name in names)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "defences", lambda settings, _: named(settings, "none", "noise 1 × clip"))


def test_targets_are_of_rounds_of_their_own_and_know_their_noise(digits: Population) -> None:
    settings = load_settings(EXAMPLE, EXACT)
    masked, noised = (
        prepare(settings, row, digits).record() for row in named(settings, "sum of 8 clients", "noise 0.1 × clip")
    )
    (view, clipped), (noisy, _) = masked, noised
    assert [one.kind for one in view.observations] == [Kind.SUM] * 2
    assert [len(one.clients) for one in view.observations] == [8, 8]
    assert not np.array_equal(view.observations[0].weights, view.observations[1].weights)
    assert clipped == 1.0
    assert [one.noise_stddev for one in noisy.observations] == pytest.approx([0.01] * 2)


def test_cohorts_are_the_same_under_every_defence(digits: Population) -> None:
    settings = load_settings(EXAMPLE, EXACT)
    seen = [
        [one.clients for one in prepare(settings, row, digits).record()[0].observations]
        for row in named(settings, "none", "clip 0.1", "noise 1 × clip", "prune 99.0%")
    ]
    assert all(clients == seen[0] for clients in seen)


def test_pruning_leaves_the_largest_entries(digits: Population) -> None:
    settings = load_settings(EXAMPLE, EXACT)
    (row,) = named(settings, "none")
    seen = prepare(settings, row, digits).record()[0].observations[0]
    left = pruned(seen, 0.99).vector
    kept = np.flatnonzero(left)
    assert len(kept) == round(0.01 * len(left))
    assert np.array_equal(left[kept], seen.vector[kept])
    assert np.abs(left[kept]).min() >= np.abs(np.delete(seen.vector, kept)).max()


def test_too_few_examples_are_refused_before_anything_runs(digits: Population) -> None:
    settings = load_settings(EXAMPLE, EXACT)
    (row,) = named(settings, "sum of 100 clients")
    small = replace(digits, features=digits.features[:150], labels=digits.labels[:150], offsets=np.array([0, 150]))
    with pytest.raises(SettingError, match="needs 100 clients with 2 examples each, and there are 150"):
        prepare(settings, row, small)


def test_an_interrupt_keeps_finished_cells_and_they_are_not_run_again(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, out, run_attacks, calls = (
        load_settings(EXAMPLE, EXACT),
        tmp_path / "grid",
        run_module.run_attacks,
        [],
    )

    def interrupted(view: Any, attacks: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(attacks[0].name)
        if len(calls) == 2:
            options["progress"] = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        return run_attacks(view, attacks, *arguments, **options)

    monkeypatch.setattr(run_module, "run_attacks", interrupted)
    with pytest.raises(Stopped, match="1 of 4 cells") as stop:
        run_grid(settings, out, QUIET)
    assert stop.value.exit_code == 130
    assert json.loads((out / "attack.json").read_text(encoding="utf-8"))["status"] == "partial"
    kept = (out / "attack.jsonl").read_text(encoding="utf-8").splitlines()
    with (out / "attack.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"defence": "no')  # as a killed run leaves it
    found = run_grid(settings, out, QUIET)
    assert calls == [
        "dense_layer",
        "sparse_decomposition",
        "sparse_decomposition",
        "dense_layer",
        "sparse_decomposition",
    ]
    assert found["status"] == "complete"
    lines = (out / "attack.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept
    assert len(lines) == len(found["outcomes"]) == 8
    assert (out / "defences.html").stat().st_size > 10_000
    run_grid(settings, out, QUIET)
    assert len(calls) == 5


def test_after_its_time_no_cell_is_begun(few: None, tmp_path: Path) -> None:
    found = run_grid(load_settings(EXAMPLE, EXACT), tmp_path / "grid", QUIET, seconds=0.0)
    assert (found["status"], found["outcomes"]) == ("partial", [])
    assert {line["verdict"] for line in found["defences"]} == {"unfinished"}


def test_other_settings_and_other_runs_are_refused(few: None, tmp_path: Path) -> None:
    settings = load_settings(EXAMPLE, EXACT)
    run_grid(settings, tmp_path / "grid", QUIET, seconds=0.0)
    with pytest.raises(OutputError, match=r"attacks\.targets is 2, here 3"):
        run_grid(load_settings(EXAMPLE, [*EXACT, "attacks.targets=3"]), tmp_path / "grid", QUIET)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="holds no run of ours"):
        run_grid(settings, tmp_path / "run", QUIET)


@pytest.mark.slow
def test_small_masked_cohorts_are_broken_and_noise_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("none", "noise 0.1 × clip", "noise 1 × clip", "masked upload", "sum of 4 clients", "batch 8")
    monkeypatch.setattr(run_module, "defences", lambda settings, _: named(settings, *names))
    found = run_grid(
        load_settings(EXAMPLE, ["attacks.targets=4", "attacks.iterations=60"]), tmp_path / "grid", QUIET
    )
    verdicts = {line["defence"]: line["verdict"] for line in found["defences"]}
    assert verdicts == {
        "none": "broken",
        "noise 0.1 × clip": "nothing found",
        "noise 1 × clip": "nothing found",
        "masked upload": "nothing found",
        "sum of 4 clients": "broken",
        "batch 8": "broken",
    }
    exact = {
        line["defence"]: next(c["exact_examples"] for c in line["cells"] if c["attack"] == "strongest")
        for line in found["defences"]
    }
    assert exact["sum of 4 clients"] >= 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "attacks"], ("--grid", "'attacks'", "Known: defences")),
        (["--grid", "defences", "--observer", "client"], ("--observer", "'client'", "server's view")),
        (["--time", "5"], ("--time", "5.0", "goes with --grid")),
        (["--grid", "defences", "--set", "privacy.clip_norm=none"], ("privacy.clip_norm", "is missing")),
        (["--grid", "defences", "--attack", "imprint"], ("attacks.methods", "'imprint'")),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_the_command_line_refuses(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["privfed", "attack", str(EXAMPLE), "--out", str(tmp_path / "grid"), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert (caught.value.code, len(lines)) == (2, 1)
    assert all(word in lines[0] for word in words)
    assert not list((tmp_path / "grid").glob("*"))
