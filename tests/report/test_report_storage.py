"""``report.json``: written whole, read strictly, and told in words what is wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from report_sample import guarantee, observers, round_evidence, run, sample

from privfed.errors import OutputError, PrivFedError
from privfed.publication import publish, render_folder
from privfed.report import read_report, render_html
from privfed.report.schema import SCHEMA_FILE, report_schema, schema_text
from privfed.report.storage import report_text

FILES = ["manifest.json", "registry.json", "report.html", "report.json", "report.md"]


def tree() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report_text(sample()))
    return found


def refuse(text: str, folder: Path) -> str:
    path = folder / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PrivFedError) as caught:
        read_report(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    evidence = sample()
    page = publish(evidence, tmp_path / "new")
    assert page == tmp_path / "new" / "report.html"
    assert read_report(tmp_path / "new" / "report.json") == evidence
    assert page.read_text(encoding="utf-8") == render_html(evidence)
    assert sorted(p.name for p in page.parent.iterdir()) == FILES


@settings(deadline=None, max_examples=25)
@given(
    epsilon=st.floats(min_value=0, allow_nan=False),
    words=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    accuracy=st.none() | st.floats(0, 1),
)
def test_round_trip_of_any_value(
    epsilon: float, words: str, accuracy: float | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    evidence = sample(
        rounds=[round_evidence(1, epsilon_spent=epsilon, aborted=words)],
        observers=[observers()[0].model_copy(update={"guarantee": guarantee(epsilon), "sees": words})],
        accuracy=sample().accuracy.model_copy(update={"final_protected": accuracy}),
    )
    folder = tmp_path_factory.mktemp("report")
    page = publish(evidence, folder)
    assert read_report(folder / "report.json") == evidence
    assert page.read_text(encoding="utf-8") == render_html(evidence)


def test_infinity_is_the_string_inf_and_the_json_is_strict() -> None:
    text = report_text(sample())
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert values["observers"][0]["guarantee"]["epsilon"] == "inf"
    assert json.loads(sample().model_dump_json()) == values


def test_render_again(tmp_path: Path) -> None:
    page = publish(sample(), tmp_path)
    page.write_text("something else")
    assert render_folder(tmp_path) == page
    assert page.read_text(encoding="utf-8") == render_html(sample())
    with pytest.raises(PrivFedError, match="no such report"):
        render_folder(tmp_path / "nowhere")


def test_published_schema_is_current() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m privfed.report.schema"


def test_schema_is_valid_and_accepts_the_sample() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())
    jsonschema.validate(tree(), report_schema())


def change(path: str, value: Any) -> dict[str, Any]:
    """The sample with one value changed, or taken away with ``...``."""
    values = tree()
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place: Any = values
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("surprise", 1, "unknown key"),
        ("run.surprise", 1, "unknown key"),
        ("verdict", ..., "is missing"),
        ("verdict.level", "splendid", "'protected', 'partly' or 'exposed'"),
        ("observers.0.guarantee.epsilon", -1, "greater than or equal to 0"),
        ("observers.0.guarantee.epsilon", "infinite", "number"),
        ("observers.0.guarantee.epsilon", None, "number"),
        ("observers.0.guarantee.delta", 1.5, "less than or equal to 1"),
        ("observers.0.protected", "yes", "boolean"),
        ("ledger.head_sha256", "abc", "pattern"),
        ("rounds.3.cohort", -2, "greater than or equal to 0"),
        ("rounds.3.cohort", 2.5, "integer"),
        ("rounds.3.cohort", "2", "integer"),
        ("rounds.3.clipped_fraction", True, "number"),
        ("attacks.0.psnr", "inf", "number"),
        ("attacks.0.original", "https://evil.example/x.png", "pattern"),
        ("run.created", "yesterday", "pattern"),
        ("membership.attacks.0.roc", [[0, 0, 0]], "2 items"),
    ],
)
def test_schema_and_reader_refuse_the_same(path: str, value: Any, words: str, tmp_path: Path) -> None:
    wrong = change(path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, report_schema())
    message = refuse(json.dumps(wrong), tmp_path)
    assert words in message
    assert path in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not strict JSON"),
        ("[]", "no schema_version"),
        ("{}", "no schema_version"),
        ('{"schema_version": 4}', "a version that this program does not know; it reads versions 1 to 3 (got 4)"),
        ('{"schema_version": 0}', "does not know"),
        ('{"schema_version": true}', "does not know"),
        ('{"schema_version": 1, "schema_version": 1}', "occurs twice"),
        ('{"schema_version": 1, "x": NaN}', "NaN is no JSON number"),
        ('{"schema_version": 1, "x": -Infinity}', "-Infinity is no JSON number"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_report(text: str, words: str, tmp_path: Path) -> None:
    assert words in refuse(text, tmp_path)


def test_infinity_in_disguise_is_refused(tmp_path: Path) -> None:
    text = report_text(sample()).replace('"epsilon": "inf"', '"epsilon": 1e999', 1)
    assert 'infinity is written as the string "inf"' in refuse(text, tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(PrivFedError, match="not strict JSON"):
        read_report(tmp_path / "report.json")
    with pytest.raises(PrivFedError, match="cannot be read"):
        read_report(tmp_path)


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the report cannot be written"):
        publish(sample(), tmp_path / "file")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(sample(), tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        publish(sample(limits=["another"]), tmp_path)
    monkeypatch.undo()
    assert read_report(tmp_path / "report.json") == sample()
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_settings_may_hold_finite_json_only() -> None:
    for bad in (math.nan, math.inf, [1.0, {"deep": math.nan}]):
        with pytest.raises(ValidationError, match="finite"):
            run(settings={"key": bad})
