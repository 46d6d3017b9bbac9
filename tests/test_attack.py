"""``privfed attack`` from outside: masked rounds attacked by the dispatcher, and an interrupt."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import privfed.runs
from attacks import AttackOutcome, Scores
from attacks.label_scoring import LabelScores
from privfed.attack_scores import outcome_values, summarise
from privfed.composition import compose
from privfed.console import Console
from privfed.data.population import as_float
from privfed.errors import Stopped
from privfed.exposure import Exposure, auxiliary_examples
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


def test_an_attacker_is_given_examples_that_no_client_trained_on() -> None:
    experiment = compose(load_settings(DIGITS, ["attacks.auxiliary=50"]))
    given = auxiliary_examples(experiment)
    assert given is not None
    assert len(given.labels) == 50
    given.check(experiment.model)
    tests = {
        x.tobytes(): y for x, y in _pairs(experiment.population.test_features, experiment.population.test_labels)
    }
    assert all(tests[x.tobytes()] == y for x, y in zip(given.inputs, given.labels, strict=True))
    assert auxiliary_examples(compose(load_settings(DIGITS, ["attacks.auxiliary=0"]))) is None
    again = auxiliary_examples(compose(load_settings(DIGITS, ["attacks.auxiliary=50", "attacks.seed=1"])))
    assert again is not None
    assert (again.inputs != given.inputs).any()


def _pairs(features: Any, labels: Any) -> list[tuple[Any, int]]:
    return list(zip(as_float(features), labels.tolist(), strict=True))


def test_the_table_of_attacks_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    who = (Observer.SERVER_WITH_COLLUDERS, Kind.CLIENT_UPDATE, 1, 1.0)
    scores = Scores(0, 1e-12, 90.0, None, None)
    image = AttackOutcome(
        *who, "gradient_matching", None, 1.0, 5, 0.0, 2, scores, (scores,), {"black": 10.0}, 80.0, identified=True
    )
    labels = LabelScores(0.75, False, 1.0, {"all alike": 0.5}, (1, 1), (2, 1))
    counted = AttackOutcome(*who, "label_inference", None, 1.0, 0, 0.0, 2, labels=labels)
    nothing = AttackOutcome(*who, "feature_inversion", "no way in", 1.0, 0, float("nan"))
    Console(quiet=True).attacks(summarise([outcome_values(o) for o in (image, counted, nothing)]))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    words = " ".join(printed.replace("│", " ").replace("┃", " ").split())
    assert "server+colluders: client update" in words
    for told in ("gradient_matching", "labels right 75 %", "by a guess 50 %", "exact 100 %", "nothing"):
        assert told in words


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
