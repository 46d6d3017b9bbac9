"""The committed reference report: it verifies, and renders to the very pages that are committed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privfed.cli import app
from privfed.errors import PrivFedError
from privfed.manifest import seal
from privfed.measurements import MEASUREMENTS
from privfed.publication import render_folder
from privfed.report import read_report
from privfed.report.storage import REPORT_JSON, page_texts
from privfed.verification import verify_run

REFERENCE = Path(__file__).parents[2] / "reports" / "reference"
FAULTY = "render it again with `privfed report reports/reference`, and look at what changed"


def test_it_renders_identically() -> None:
    for name, text in page_texts(read_report(REFERENCE / REPORT_JSON)).items():
        assert (REFERENCE / name).read_text(encoding="utf-8") == text, f"{name}: {FAULTY}"


def test_it_verifies_with_all_that_it_was_made_from() -> None:
    result = verify_run(REFERENCE)
    assert result.holds, result.as_text()
    assert result.epsilon == pytest.approx(3, abs=0.01)
    names = {path.name for path in REFERENCE.iterdir()}
    inputs = {"config.toml", "ledger.jsonl", "metrics.jsonl", "metrics-baseline.jsonl", "transcript.npz"}
    inputs |= {MEASUREMENTS}
    assert inputs <= names


def test_it_shows_every_part() -> None:
    evidence = read_report(REFERENCE / REPORT_JSON)
    for part in ("membership", "canaries", "accounting", "clients"):
        assert getattr(evidence, part) is not None, part
    assert evidence.checks
    assert evidence.statements
    assert evidence.canaries is not None
    assert evidence.canaries.accuracy_without is not None
    assert len(page_texts(evidence)["report.html"].encode()) < 2_000_000


def of_version_2() -> Any:
    """As version 2 wrote it: membership was not held to any claim."""
    tree = json.loads((REFERENCE / REPORT_JSON).read_text(encoding="utf-8"))
    tree["membership"].pop("claims")
    for attack in tree["membership"]["attacks"]:
        attack.pop("floor")
    return {**tree, "schema_version": 2}


def test_a_report_of_schema_version_2_still_opens_and_verifies_as_far_as_it_can(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "run"))
    (folder / REPORT_JSON).write_text(json.dumps(of_version_2()), encoding="utf-8")
    (folder / MEASUREMENTS).unlink()
    page = render_folder(folder).read_text(encoding="utf-8")
    assert "ε at least" not in page
    seal(folder)
    result = verify_run(folder)
    assert [words for ok, words in result.checks if not ok] == []
    (unchecked,) = result.unchecked
    assert unchecked.startswith(
        "the scores of attacks, membership, canaries: report.json says it is of schema version 2"
    )
    # Anybody can make a report look old: that is never a report that verifies.
    assert not result.holds
    assert f"NOT CHECKED {unchecked}" in result.as_text()
    assert result.as_text().endswith("verified IN PART: see NOT CHECKED")
    assert result.as_json()["not_checked"] == [unchecked]


def test_verify_of_a_report_that_says_it_is_old_is_no_exit_code_0(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "run"))
    (folder / REPORT_JSON).write_text(json.dumps(of_version_2()), encoding="utf-8")
    (folder / MEASUREMENTS).unlink()
    render_folder(folder)
    seal(folder)
    got = CliRunner().invoke(app, ["verify", str(folder)])
    assert got.exit_code == 1
    assert "NOT CHECKED the scores of" in got.stdout


LATER: dict[str, tuple[int, Callable[[Any], object], str]] = {
    "nothing": (2, lambda tree: None, "membership.claims came with version 3"),
    "claims": (
        2,
        lambda tree: tree["membership"].pop("claims"),
        r"membership.attacks.\*.floor came with version 3",
    ),
    "an empty part": (
        2,
        lambda tree: (
            tree["membership"].update(claims=[]),
            [attack.pop("floor") for attack in tree["membership"]["attacks"]],
        ),
        "membership.claims came with version 3",
    ),
    "membership": (1, lambda tree: tree.update(membership=None), "accounting came with version 2"),
}


@pytest.mark.parametrize("left_out", LATER)
def test_a_report_that_says_it_is_older_than_its_parts_is_refused(tmp_path: Path, left_out: str) -> None:
    """It would hide that its scores were to be computed again."""
    version, forge, words = LATER[left_out]
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "run"))
    tree = json.loads((REFERENCE / REPORT_JSON).read_text(encoding="utf-8"))
    forge(tree)
    (folder / REPORT_JSON).write_text(json.dumps({**tree, "schema_version": version}), encoding="utf-8")
    (folder / MEASUREMENTS).unlink()
    with pytest.raises(PrivFedError, match=words):
        render_folder(folder)
    seal(folder)
    result = verify_run(folder)
    assert not result.holds
    assert any(re.search(words, line) for ok, line in result.checks if not ok)


def test_a_report_of_schema_version_1_still_opens(tmp_path: Path) -> None:
    """As version 1 wrote it: without the parts that came later."""
    tree = of_version_2()
    for part in ("accounting", "clients", "sweep", "statements", "checks", "trust"):
        tree.pop(part)
    for key in ("bound", "smallest_sum"):
        tree["secure_aggregation"].pop(key)
    for observer in tree["canaries"]["observers"]:
        observer.pop("roc")
    tree["schema_version"] = 1
    (tmp_path / REPORT_JSON).write_text(json.dumps(tree), encoding="utf-8")
    page = render_folder(tmp_path).read_text(encoding="utf-8")
    for words in ("before it held the items of a claim", "before it held a checklist", "Not recorded"):
        assert words in page


def test_it_renders_from_its_json_alone(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / REPORT_JSON, tmp_path)
    page = render_folder(tmp_path)
    assert page.read_bytes() == (REFERENCE / "report.html").read_bytes()
