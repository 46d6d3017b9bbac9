"""Judge a run by its files alone: does what it claims follow from what it holds?"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privfed.config import Settings, load_settings
from privfed.errors import OutputError
from privfed.privacy.errors import LedgerError
from privfed.privacy.accounting import statements
from privfed.privacy.ledger import LedgerReport, verify_ledger
from privfed.rundir import LEDGER, METRICS, SETTINGS, TRANSCRIPT, WEIGHTS


@dataclass
class Verification:
    """Checks in order, each with whether it holds; a run that was killed is unfinished, which is no fault."""

    checks: list[tuple[bool, str]] = field(default_factory=list)
    epsilon: float | None = None
    ledger: LedgerReport | None = None

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(ok for ok, _ in self.checks)

    def check(self, ok: bool, words: str) -> None:
        """Note one check."""
        self.checks.append((ok, words))

    def as_text(self) -> str:
        """A line a check."""
        lines = [f"{'ok    ' if ok else 'FAILED'} {words}" for ok, words in self.checks]
        return "\n".join([*lines, "verified" if self.holds else "NOT verified"])

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        checks = [{"holds": ok, "check": words} for ok, words in self.checks]
        return {"holds": self.holds, "epsilon": self.epsilon, "checks": checks}


def verify_run(folder: Path) -> Verification:
    """Check the ledger, the ε, and every file that the ledger or the report names by its hash.

    Raises:
        OutputError: The folder holds no run.
    """
    if not (folder / SETTINGS).is_file():
        raise OutputError("holds no run", where=str(folder), remedy="Name a folder that --out named")
    settings = load_settings(folder / SETTINGS)
    result = Verification()
    if not (folder / LEDGER).exists():
        left = [name for name in (WEIGHTS, METRICS, TRANSCRIPT, "report.json") if (folder / name).exists()]
        if left:
            result.check(False, f"the ledger is missing, although {left[0]} is there: what was spent is unknown")
            return result
        result.check(True, "no ledger yet: the run ended before anything was spent; ε = 0")
        result.epsilon = 0.0
        return result
    try:
        ledger = verify_ledger(folder / LEDGER)
    except LedgerError as error:
        result.check(False, f"ledger: {error}")
        return result
    result.ledger = ledger
    _check_ledger(result, ledger, settings)
    _check_files(result, folder, ledger)
    if (folder / "report.json").exists():
        _check_report(result, folder, ledger)
    else:
        result.check(True, "no report yet")
    return result


def _check_ledger(result: Verification, ledger: LedgerReport, settings: Settings) -> None:
    result.check(True, f"ledger: {ledger.entries} entries in an unbroken chain that ends in {ledger.head[:16]}")
    if ledger.torn_bytes:
        result.check(
            True, f"ledger: {ledger.torn_bytes} bytes of an entry cut off by a kill; nothing followed from it"
        )
    if ledger.header is not None:
        same = ledger.header.settings == settings.fingerprint()
        result.check(same, f"ledger: belongs to the settings in {SETTINGS}")
    if ledger.guarantee is not None:
        result.epsilon = ledger.guarantee.epsilon
        result.check(True, f"ledger: {ledger.spent} releases count, from {ledger.attempts} attempt(s)")
        for text in statements(ledger.guarantees):
            result.check(True, f"recomputed: {text}")
    elif settings.privacy.mechanism == "none":
        result.epsilon = math.inf
        result.check(True, "no mechanism: nothing is claimed, ε = ∞ for every observer")
    else:
        result.epsilon = 0.0
        result.check(True, "nothing was reserved yet: ε = 0")


def _check_files(result: Verification, folder: Path, ledger: LedgerReport) -> None:
    if ledger.final_sha256 is None:
        result.check(True, "unfinished: no model was released at the end of this run yet")
        return
    weights, metrics = folder / WEIGHTS, folder / METRICS
    result.check(
        _weights_digest(weights) == ledger.final_sha256,
        f"{WEIGHTS} is the model that the ledger says was released",
    )
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    if lines:
        last = json.loads(lines[-1])
        result.check(
            last.get("weights_sha256") == ledger.final_sha256, f"the last line of {METRICS} names the same model"
        )


def _check_report(result: Verification, folder: Path, ledger: LedgerReport) -> None:
    from privfed.report import read_report, render_html

    evidence = read_report(folder / "report.json")
    result.check(evidence.ledger.head_sha256 == ledger.head, "report.json names the ledger's last entry")
    stated, spent = evidence.ledger.epsilon, result.epsilon
    result.check(stated == spent, f"report.json states the ledger's ε ({stated} and {spent})")
    result.check(evidence.ledger.weights_sha256 == ledger.final_sha256, "report.json names the released model")
    transcript = folder / TRANSCRIPT
    found = hashlib.sha256(transcript.read_bytes()).hexdigest() if transcript.exists() else "missing"
    result.check(found == evidence.ledger.transcript_sha256, f"{TRANSCRIPT} is the one that was attacked")
    page = folder / "report.html"
    same = page.exists() and page.read_text(encoding="utf-8") == render_html(evidence)
    result.check(same, "report.html is what report.json renders to")


def _weights_digest(path: Path) -> str | None:
    try:
        weights = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").tobytes()).hexdigest()
