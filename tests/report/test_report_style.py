"""What the style sheet and the package promise: contrast, and that the report knows nothing but the evidence."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from privfed import report

FOLDER = Path(report.__file__).parent
STYLE = (FOLDER / "templates" / "style.css").read_text(encoding="utf-8")
TEXT_ON_GROUND = [
    *((ink, ground) for ink in ("ink", "soft", "link", "bad") for ground in ("paper", "card")),
    *((level, f"{level}-bg") for level in ("good", "warn", "bad")),
    *(("ink", f"{level}-bg") for level in ("good", "warn", "bad")),
]


def palettes() -> list[dict[str, str]]:
    """Light, then dark."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    linear = []
    for i in (1, 3, 5):
        share = int(colour[i : i + 2], 16) / 255
        linear.append(share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_pairs() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the usual near miss of AA


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_has_contrast_aa(palette: dict[str, str]) -> None:
    for text, ground in TEXT_ON_GROUND:
        assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for mark in ("first", "second", "bar"):
        assert contrast(palette[mark], palette["card"]) >= 3, mark


def test_both_palettes_define_every_colour_and_all_are_used() -> None:
    light, dark = palettes()
    assert light.keys() == dark.keys()
    assert {name for name in light if f"var(--{name})" not in STYLE} == set()
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) == light.keys()


def test_report_knows_nothing_of_the_program_but_evidence_and_errors() -> None:
    allowed = ("privfed.audit.evidence", "privfed.errors", "privfed.report")
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("privfed", "attacks")) or name.startswith(allowed), (path.name, name)


def test_rendering_needs_no_tensorflow() -> None:
    code = "import sys, privfed.report; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # our own interpreter
