"""The check of the lock against known vulnerabilities, without the network."""

from __future__ import annotations

import json
import runpy
import urllib.error
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
AUDIT = runpy.run_path(str(ROOT / "scripts" / "audit_lock.py"))


def test_every_package_of_the_lock_is_asked_about() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    packages = AUDIT["locked"](text)
    assert ("tensorflow", "2.14.1") in packages
    assert len(packages) == text.count("[[package]]") - 1  # all but this project
    asked = json.loads(AUDIT["question"](packages))["queries"]
    assert {"package": {"name": "tensorflow", "ecosystem": "PyPI"}, "version": "2.14.1"} in asked


def test_what_is_known_is_named_and_fails_unless_held_back(capsys: pytest.CaptureFixture[str]) -> None:
    packages = [("jinja2", "1.0"), ("rich", "13"), ("tensorflow", "2.14.1")]
    answer: dict[str, Any] = {
        "results": [{"vulns": [{"id": "A-1"}, {"id": "A-2"}]}, {}, {"vulns": [{"id": "B-1"}]}]
    }
    found = AUDIT["advisories"](packages, answer)
    assert AUDIT["judge"](found) == 1
    assert capsys.readouterr().out.splitlines() == ["jinja2 1.0: A-1, A-2", "tensorflow 2.14.1: B-1 (held back)"]
    del found["jinja2", "1.0"]
    assert AUDIT["judge"](found) == 0
    with pytest.raises(ValueError, match="2 answers to 3 questions"):
        AUDIT["advisories"](packages, {"results": [{}, {}]})


def test_without_a_network_it_is_skipped_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere(*_: object, **__: object) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", nowhere)
    monkeypatch.setattr("sys.argv", ["audit_lock.py", str(ROOT / "uv.lock")])
    assert AUDIT["main"]() == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "audit-lock: skipped, https://api.osv.dev/v1/querybatch cannot be reached: Name or service"
    )
