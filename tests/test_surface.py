"""What users build on does not change by accident."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_public_names_and_signatures_are_the_listed_ones() -> None:
    listed = (ROOT / "tests" / "api_surface.txt").read_text(encoding="utf-8").splitlines()
    script = [sys.executable, str(ROOT / "scripts" / "api_surface.py")]
    found = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    changes = [line for line in difflib.ndiff(listed, found) if line[0] in "+-"]
    assert not changes, "\n".join([*changes, "If this is meant: make api, and a line in CHANGELOG.md"])
