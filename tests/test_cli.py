"""The command line from outside: figures, and refusals in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import typer

from privfed.cli import app
from privfed.config import Settings
from privfed.settings_file import load_settings

DIGITS = str(Path(__file__).parents[1] / "examples" / "digits.toml")


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=300)


def test_account_and_calibrate_print_the_anchors(privfed_command: list[str]) -> None:
    terms = ["--sampling", "poisson", "--delta", "1e-5", "--json"]
    got = run(privfed_command, "account", "--noise-multiplier", "1", "--rate", "0.01", "--rounds", "1000", *terms)
    assert json.loads(got.stdout)["epsilon"] == pytest.approx(1.828, abs=0.002)
    got = run(privfed_command, "calibrate", "--epsilon", "3", "--rate", "0.1", "--rounds", "60", *terms)
    assert json.loads(got.stdout)["noise_multiplier"] == pytest.approx(1.422, abs=0.003)


@pytest.mark.parametrize(
    "change", ["privacy.epsilon=0", "cohort.rate=1.5", "colour=1", "secure_aggregation.threshold=99"]
)
def test_wrong_settings_are_one_line_and_exit_code_2(
    privfed_command: list[str], tmp_path: Path, change: str
) -> None:
    got = run(privfed_command, "train", DIGITS, "--set", change, "--out", str(tmp_path / "run"))
    assert got.returncode == 2
    assert len(got.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "attack"])
@pytest.mark.parametrize(("asked", "canaries"), [((), 0), (("--set", "audit.canaries=40"), 40)])
def test_canaries_are_in_no_training_that_is_no_audit(
    command: str, asked: tuple[str, ...], canaries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(Path(DIGITS)).audit.canaries == 100
    given: list[Settings] = []

    def stop(settings: Settings, *_: object) -> None:
        given.append(settings)
        raise typer.Exit

    monkeypatch.setattr("privfed.runs.run_training", stop)
    monkeypatch.setattr("privfed.runs.run_attack", stop)
    app([command, DIGITS, "--out", str(tmp_path / "run"), *asked], standalone_mode=False)
    assert [settings.audit.canaries for settings in given] == [canaries]
    assert not given[0].audit.canary_control


def test_whatever_shows_an_epsilon_says_what_it_means(privfed_command: list[str], tmp_path: Path) -> None:
    changes = ["--set", "training.rounds=2", "--set", "secure_aggregation.mode=ring"]
    got = run(privfed_command, "train", DIGITS, "--out", str(tmp_path), *changes)
    progress = got.stderr.splitlines()
    assert any("ε 3" in line for line in progress)  # the second of two rounds
    (terms,) = [line for line in progress if "ε is spent" in line]
    for shown in (terms, " ".join(got.stdout.split())):
        for part in (
            "δ = 0.0001",
            "client-level",
            "against client, release",
            "neighbours: add or remove one client",
            "sampling: Poisson, rate 0.15",
        ):
            assert part in shown


SHORT = ["train", DIGITS, "--set", "training.rounds=12", "--set", "data.clients=40", "--out"]


@pytest.mark.slow
def test_progress_is_some_lines_or_all_or_none(privfed_command: list[str], tmp_path: Path) -> None:
    usual, quiet, verbose = (
        run([*privfed_command, *flags], *SHORT, str(tmp_path / str(i)))
        for i, flags in enumerate(([], ["--quiet"], ["--verbose"]))
    )
    counts = [sum(line.startswith("training ") for line in got.stderr.splitlines()) for got in (usual, verbose)]
    assert 0 < counts[0] <= 12 == counts[1]
    assert quiet.stderr == ""
    assert [got.stdout.count("test accuracy") for got in (usual, quiet, verbose)] == [1, 1, 1]


def test_progress_as_json_is_an_object_a_line(privfed_command: list[str], tmp_path: Path) -> None:
    got = run([*privfed_command, "--log-json"], *SHORT, str(tmp_path / "run"))
    events = [json.loads(line) for line in got.stderr.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [step["done"] for step in steps] == list(range(1, 13))
    assert steps[-1]["seconds_left"] == 0
    fault = run([*privfed_command, "--log-json"], "train", "missing.toml", "--out", str(tmp_path / "none"))
    assert fault.returncode == 2
    (event,) = [json.loads(line) for line in fault.stderr.splitlines()]
    assert event["event"] == "error"
    assert "missing.toml" in event["text"]


def test_ways_of_telling_exclude_each_other(privfed_command: list[str]) -> None:
    got = run([*privfed_command, "--quiet", "--verbose"], "doctor")
    assert (got.returncode, got.stdout) == (2, "")
    assert "exclude each other" in got.stderr
