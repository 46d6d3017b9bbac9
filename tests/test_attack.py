"""``privfed attack`` from outside: masked rounds attacked by the dispatcher, and an interrupt."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import privfed.runs
from attacks import AttackOutcome
from privfed.console import Console
from privfed.errors import Stopped
from privfed.exposure import Exposure
from privfed.settings_file import load_settings
from privfed.transcript import Kind, Observer

DIGITS = Path(__file__).parents[1] / "examples" / "digits.toml"
FEW = """
name = "few"
[data]
clients = 800
examples_per_client = 2
[model]
name = "mlp"
[training]
rounds = 1
batch_size = 2
[cohort]
sampling = "fixed"
size = 4
[privacy]
clip_norm = 1.0
[secure_aggregation]
mode = "protocol"
"""
"""Four clients of two images each behind a masked sum."""


@pytest.mark.slow
def test_a_masked_sum_of_four_clients_is_broken_and_said_so(privfed_command: list[str], tmp_path: Path) -> None:
    experiment, out = tmp_path / "few.toml", tmp_path / "run"
    experiment.write_text(FEW, encoding="utf-8")
    command = [*privfed_command, "attack", str(experiment), "--observer", "server", "--attack", "auto"]
    got = subprocess.run(
        [*command, "--targets", "2", "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(got.stdout)
    assert found == json.loads((out / "attack.json").read_text(encoding="utf-8"))
    lines = (out / "attack.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found["outcomes"]
    summed, upload = found["outcomes"]
    assert (summed["kind"], summed["verified"], summed["exact_examples"]) == ("sum of updates", True, 1.0)
    assert (upload["kind"], upload["verified"], upload["exact"]) == ("masked upload", False, False)
    assert summed["identified"]


def test_an_interrupt_keeps_the_finished_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(experiment, settings, console, keep):  # type: ignore[no-untyped-def]
        who = (Observer.SERVER, Kind.CLIENT_UPDATE, 1, 1.0, "auto")
        keep(Exposure("own", "none", AttackOutcome(*who, "no way in", 0.1, 0, float("nan"))))
        raise KeyboardInterrupt

    monkeypatch.setattr(privfed.runs, "attack_all", interrupted)
    settings = load_settings(DIGITS, ["training.rounds=1", "secure_aggregation.mode=ring"])
    with pytest.raises(Stopped, match="after 1 outcomes") as stop:
        privfed.runs.run_attack(settings, "server", tmp_path / "run", Console(quiet=True))
    assert stop.value.exit_code == 130
    found = json.loads((tmp_path / "run" / "attack.json").read_text(encoding="utf-8"))
    assert found["status"] == "partial"
    assert [row["failure"] for row in found["outcomes"]] == ["no way in"]
    assert len((tmp_path / "run" / "attack.jsonl").read_text(encoding="utf-8").splitlines()) == 1
