"""Commands on reports: signed, shown with a sweep, printed, side by side; and what each refuses in one line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_manifest import key_files
from test_verification import evidence_of, write_run

from privfed.console import Console
from privfed.errors import OutputError, PrivFedError, Stopped
from privfed.publication import print_page, publish
from privfed.report import read_report
from privfed.report.compare import MOST_RUNS
from privfed.settings_file import load_settings
from privfed.verification import verify_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two finished runs with reports."""
    found = [write_run(tmp_path / name) for name in ("one", "two")]
    for folder in found:
        publish(evidence_of(folder), folder)
    return found


def test_without_a_browser_the_pdf_is_refused(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PrivFedError, match=r"--pdf: no Chromium is on the PATH.*or print report.html from any"):
        print_page(runs[0] / "report.html")
    assert not (runs[0] / "report.pdf").exists()


def test_a_browser_that_prints_nothing_is_told(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "chromium"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho broken >&2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/bin:/usr/bin")
    with pytest.raises(PrivFedError, match="printed nothing: broken"):
        print_page(runs[0] / "report.html")


def test_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    from privfed.comparison import compare_folders

    page = compare_folders(runs, tmp_path / "new" / "compare.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in page
    assert "<b>one</b>" in page
    assert "<b>two</b>" in page
    assert "None: the runs have the same settings." in page
    evidence = evidence_of(runs[1])
    hostile = {**evidence.run.settings, "name": "<script>alert(1)</script>"}
    other = evidence.run.data.model_copy(update={"fingerprint": "f" * 64})
    run = evidence.run.model_copy(update={"settings": hostile, "data": other})
    publish(evidence.model_copy(update={"run": run}), runs[1])
    page = compare_folders(runs, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "The runs are on different data" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1


def test_runs_of_the_same_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    from privfed.comparison import compare_folders

    (tmp_path / "deep").mkdir()
    second = runs[1].rename(tmp_path / "deep" / "one")
    page = compare_folders([runs[0], second], tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "deep/one" in page


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    from privfed.comparison import compare_folders

    for folders in (runs[:1], runs[:1] * (MOST_RUNS + 1)):
        with pytest.raises(PrivFedError, match=f"Name from 2 to {MOST_RUNS} folders"):
            compare_folders(folders, tmp_path / "compare.html")
    with pytest.raises(PrivFedError, match="no such report"):
        compare_folders([runs[0], tmp_path / "nowhere"], tmp_path / "compare.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        compare_folders(runs, tmp_path / "file" / "compare.html")


def test_faults_are_one_line_before_anything_is_trained(tmp_path: Path, privfed_command: list[str]) -> None:
    audit = [*privfed_command, "audit", "examples/digits.toml", "--out", str(tmp_path / "run")]
    for arguments, words in (
        (["--sweep", str(tmp_path)], r"--sweep .*holds neither sweep\.json nor tune\.json"),
        (["--sign", str(tmp_path / "none.pem")], r"--sign .*cannot be read"),
    ):
        got = subprocess.run([*audit, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
        assert got.returncode == 2
        (line,) = got.stderr.splitlines()
        assert re.search(words, line)
        assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_an_audit_with_a_sweep_signed_and_checked(tmp_path: Path, privfed_command: list[str]) -> None:
    def run(*arguments: Any) -> str:
        command = [*privfed_command, *map(str, arguments)]
        got = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=500)
        assert got.returncode == 0, got.stderr
        return got.stdout

    private, public = key_files(tmp_path)
    small = ["--set", "training.rounds=2", "--set", "audit.canaries=0", "--set", "audit.canary_control=false"]
    swept = tmp_path / "sweep"
    run("sweep", "examples/digits.toml", "--vary", "privacy.epsilon=2,8", "--out", swept, *small)
    out = tmp_path / "run"
    fewer = ["--set", "attacks.targets=1", "--set", "attacks.iterations=5", "--set", 'audit.membership=["loss"]']
    run("audit", "examples/digits.toml", "--out", out, "--sweep", swept, "--sign", private, *small, *fewer)
    assert "signed by the key that was given" in run("verify", out, "--key", public)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    sweep = report["sweep"]
    assert [point["label"] for point in sweep["points"]] == ["epsilon 2", "epsilon 8"]
    assert sweep["trials"] == 2
    assert sweep["same_data"] is True
    # All trials together spend more than the larger of them.
    assert sweep["epsilon"] > max(point["epsilon"] for point in sweep["points"])
    results = {check["name"]: check["result"] for check in report["checks"]}
    assert results["Choosing the settings cost no privacy, or its cost is stated"] == "passed"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="fig-trade-off-t"' in page
    assert "not signed" in run("verify", next((swept / "trials").rglob("config.toml")).parent)


SMALL = (
    "training.rounds=1",
    "secure_aggregation.mode=ring",
    "audit.canaries=0",
    "audit.canary_control=false",
    "audit.baseline=false",
    'audit.membership=["loss"]',
)


@pytest.mark.slow
def test_an_interrupted_audit_leaves_a_partial_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import privfed.auditing

    whole = privfed.auditing.attack_all

    def interrupted(experiment: Any, settings: Any, console: Any, keep: Any) -> None:
        whole(experiment, settings[:1], console, keep)
        raise KeyboardInterrupt

    monkeypatch.setattr(privfed.auditing, "attack_all", interrupted)
    settings = load_settings(
        ROOT / "examples" / "digits.toml", [*SMALL, "attacks.targets=1", "attacks.iterations=5"]
    )
    with pytest.raises(Stopped, match=r"the report in .* is partial") as stop:
        privfed.auditing.run_audit(settings, tmp_path / "run", Console(quiet=True))
    assert stop.value.exit_code == 130
    evidence = read_report(tmp_path / "run" / "report.json")
    assert evidence.run.status == "partial"
    assert evidence.membership is None
    assert {a.defence for a in evidence.attacks} == {"none"}
    assert evidence.limits[0] == "This report is partial: it was interrupted before every attack was run."
    assert "Partial report" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert verify_run(tmp_path / "run").holds


@pytest.mark.slow
def test_a_model_that_nothing_can_be_inferred_from_still_gets_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import privfed.auditing

    def refuse(*_: Any) -> None:
        raise PrivFedError("the model gives confidences that are not finite")

    monkeypatch.setattr(privfed.auditing, "infer_membership", refuse)
    settings = load_settings(ROOT / "examples" / "digits.toml", [*SMALL, "attacks.enabled=false"])
    evidence = privfed.auditing.run_audit(settings, tmp_path / "run", Console(quiet=True))
    assert evidence.run.status == "partial"
    assert "confidences that are not finite" in evidence.limits[0]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "no attack was run" in page
    assert "Not measured: membership inference" in page
