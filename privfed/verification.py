"""Judge a run by its files alone: does what it claims follow from what it holds?"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privfed.config import Settings
from privfed.errors import OutputError, PrivFedError
from privfed.manifest import MANIFEST, SIGNATURE, check_signature, files_of, load_public_key, read_manifest
from privfed.privacy.accounting import statements
from privfed.privacy.errors import LedgerError
from privfed.privacy.ledger_report import LedgerReport, spent_releases, verify_ledger
from privfed.rundir import BASELINE_METRICS, LEDGER, METRICS, SETTINGS, TRANSCRIPT, WEIGHTS
from privfed.settings_file import load_settings
from privfed.transcript import Observer

if TYPE_CHECKING:
    from privfed.audit.evidence import AccuracyPoint, Evidence

REPORT_JSON = "report.json"
FIRST_WITH_MEASUREMENTS = 3
"""Schema version from which on scores have their measurements beside them."""


@dataclass
class Verification:
    """Checks in order, each with whether it holds; a run that was killed is unfinished, which is no fault.

    Attributes:
        checks: Whether it holds, and in words what.
        unchecked: What the files do not let anybody check although the report states it.
        epsilon: What the ledger proves against whoever sees the released model.
        ledger: As it was read.
    """

    checks: list[tuple[bool, str]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    epsilon: float | None = None
    ledger: LedgerReport | None = None

    @property
    def holds(self) -> bool:
        """Whether every check holds, and none was left out."""
        return all(ok for ok, _ in self.checks) and not self.unchecked

    def check(self, ok: bool, words: str) -> None:
        """Note one check."""
        self.checks.append((ok, words))

    def as_text(self) -> str:
        """A line a check."""
        lines = [f"{'ok    ' if ok else 'FAILED'} {words}" for ok, words in self.checks]
        lines += [f"NOT CHECKED {words}" for words in self.unchecked]
        if self.holds:
            return "\n".join([*lines, "verified"])
        in_part = all(ok for ok, _ in self.checks)
        return "\n".join([*lines, "verified IN PART: see NOT CHECKED" if in_part else "NOT verified"])

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        checks = [{"holds": ok, "check": words} for ok, words in self.checks]
        return {"holds": self.holds, "epsilon": self.epsilon, "checks": checks, "not_checked": self.unchecked}


def verify_run(folder: Path, key: Path | None = None) -> Verification:
    """Check the ledger, the ε, the pages, and every file that has a hash; with ``key``, who signed the hashes.

    Raises:
        OutputError: The folder holds no run.
        PrivFedError: ``key`` holds no public key.
    """
    trusted = None if key is None else load_public_key(key)
    if not (folder / SETTINGS).is_file():
        raise OutputError("holds no run", where=str(folder), remedy="Name a folder that --out named")
    result = Verification()
    try:
        settings = load_settings(folder / SETTINGS)
    except PrivFedError as error:
        result.check(False, f"settings: {error}")
        return result
    if not (folder / LEDGER).exists():
        left = [name for name in (WEIGHTS, METRICS, TRANSCRIPT, REPORT_JSON) if (folder / name).exists()]
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
    if (folder / REPORT_JSON).exists():
        _check_report(result, folder, ledger, settings)
    else:
        result.check(True, "no report yet")
    _check_manifest(result, folder, trusted)
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
    rounds = _rounds(folder / METRICS)
    if rounds is None:
        result.check(False, f"{METRICS} is not one JSON object a line")
        return
    if ledger.reserved:
        # A round is committed before its metrics are written: fewer entries than lines mean that entries are gone.
        ended = ledger.committed + ledger.aborted
        result.check(
            ended >= len(rounds), f"the ledger holds the end of each of the {len(rounds)} rounds in {METRICS}"
        )
    if ledger.final_sha256 is None:
        result.check(True, "unfinished: no model was released at the end of this run yet")
        return
    result.check(
        _weights_digest(folder / WEIGHTS) == ledger.final_sha256,
        f"{WEIGHTS} is the model that the ledger says was released",
    )
    if rounds:
        result.check(
            (rounds[-1].get("average_sha256") or rounds[-1].get("weights_sha256")) == ledger.final_sha256,
            f"the last line of {METRICS} names the same model",
        )


def _rounds(path: Path) -> list[dict[str, Any]] | None:
    """Lines of the metrics; a last one that a kill cut off does not count. ``None`` if they are something else."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    try:
        rounds = [json.loads(line) for line in whole]
    except ValueError:
        return None
    return rounds if all(isinstance(line, dict) for line in rounds) else None


def _check_report(result: Verification, folder: Path, ledger: LedgerReport, settings: Settings) -> None:
    from privfed.report.storage import page_texts, read_report

    try:
        evidence = read_report(folder / REPORT_JSON)
    except PrivFedError as error:
        result.check(False, str(error))
        return
    run = evidence.run
    stated = {key: value for key, value in run.settings.items() if key != "ray"}  # a run may go on elsewhere
    same = run.settings_fingerprint == settings.fingerprint()
    same &= stated == settings.model_dump(mode="json", exclude={"ray"})
    result.check(same, f"report.json is of the settings in {SETTINGS}")
    result.check(evidence.ledger.head_sha256 == ledger.head, "report.json names the ledger's last entry")
    epsilon, spent = evidence.ledger.epsilon, result.epsilon
    result.check(epsilon == spent, f"report.json states the ledger's ε ({epsilon} and {spent})")
    wrong = ", ".join(_misstated(evidence, ledger))
    result.check(
        not wrong, f"report.json states for each observer what the ledger proves{wrong and f': not {wrong}'}"
    )
    result.check(evidence.ledger.weights_sha256 == ledger.final_sha256, "report.json names the released model")
    transcript = folder / TRANSCRIPT
    found = hashlib.sha256(transcript.read_bytes()).hexdigest() if transcript.exists() else "missing"
    result.check(found == evidence.ledger.transcript_sha256, f"{TRANSCRIPT} is the one that was attacked")
    for name, points in (
        (METRICS, evidence.accuracy.protected),
        (BASELINE_METRICS, evidence.accuracy.unprotected),
    ):
        if points:
            result.check(_same_accuracy(points, folder / name), f"report.json has the accuracies of {name}")
    absent = ", ".join(_absent(evidence, settings))
    words = "report.json holds what its settings ask for"
    result.check(not absent, words + (f": not {absent}" if absent else ""))
    _check_scores(result, folder, evidence, ledger)
    for name, text in page_texts(evidence).items():
        same = (folder / name).exists() and (folder / name).read_bytes() == text.encode()
        result.check(same, f"{name} is what report.json renders to")


def _check_scores(result: Verification, folder: Path, evidence: Evidence, ledger: LedgerReport) -> None:
    """Compute again what can be: the rest of a report rests on hashes and the signature."""
    from privfed.measurements import MEASUREMENTS, load
    from privfed.recomputation import misjudged, mismeasured, misscored

    def check(wrong: list[str], words: str) -> None:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        result.check(not wrong, words + (f": not {'; '.join(wrong[:3])}{more}" if wrong else ""))

    check([*misjudged(evidence)], "report.json: verdict, best attacks and margins follow from its figures")
    if not (folder / MEASUREMENTS).exists():
        kinds = {"attacks": evidence.attacks, "membership": evidence.membership, "canaries": evidence.canaries}
        version = json.loads((folder / REPORT_JSON).read_text(encoding="utf-8"))["schema_version"]
        if not (stated := [name for name, part in kinds.items() if part]):
            result.check(True, "report.json holds no scores")
        elif version < FIRST_WITH_MEASUREMENTS:
            # Nothing shows that a report is as old as it says, so that this is never passed over.
            result.unchecked.append(
                f"the scores of {', '.join(stated)}: report.json says it is of schema version {version}, which "
                f"had no {MEASUREMENTS} to compute them from. Audit again, or trust who gave it to you"
            )
        else:
            result.check(False, f"{MEASUREMENTS} is missing: the scores in report.json rest on nothing")
        return
    try:
        found = load(folder / MEASUREMENTS)
    except PrivFedError as error:
        result.check(False, str(error))
        return
    spent = spent_releases(folder / LEDGER)[1]
    try:
        scores = [*misscored(evidence, found)]
        figures = [*mismeasured(evidence, found, ledger.guarantees, spent)]
    except Exception as error:  # noqa: BLE001 - arrays that nobody's audit wrote
        result.check(False, f"{MEASUREMENTS} fits no report: {type(error).__name__}: {error}")
        return
    images = sum(picture is not None for picture in found.pictures)
    check(scores, f"report.json has the scores of {images} reconstructions in {MEASUREMENTS}")
    check(figures, "report.json: ROC, intervals and empirical ε are those of the scores kept and the ledger")


def _same_accuracy(points: Sequence[AccuracyPoint], metrics: Path) -> bool:
    """Each accuracy that the report states is in the metrics: as many rounds, and the same figures."""
    measured = {line.get("round"): line.get("test_accuracy") for line in _rounds(metrics) or []}
    return all(point.round in measured and measured[point.round] == point.test_accuracy for point in points)


def _absent(evidence: Evidence, settings: Settings) -> Iterator[str]:
    """Parts of a whole report that its settings ask for, and that are not in it."""
    if evidence.run.status == "partial" or not evidence.rounds:
        return
    audit = settings.audit
    if audit.canaries and evidence.canaries is None:
        yield "canaries"
    if audit.membership and evidence.membership is None:
        yield "membership"
    if audit.baseline and evidence.accuracy.final_unprotected is None:
        yield "the training without protection"


def _check_manifest(result: Verification, folder: Path, trusted: Ed25519PublicKey | None) -> None:
    """Check every file's hash, and the signature on the hashes: one must be there when ``trusted`` is given."""
    has_report = (folder / REPORT_JSON).exists()
    if not (folder / MANIFEST).exists():
        if has_report:
            result.check(
                False, f"{MANIFEST} is missing: nothing ties the measured figures to the run; audit again"
            )
        else:
            result.check(True, f"no {MANIFEST} yet: only what the ledger names is tied together")
        if trusted is not None or (folder / SIGNATURE).exists():
            result.check(False, f"{SIGNATURE} signs nothing that is there")
        return
    try:
        sealed = read_manifest(folder)
    except PrivFedError as error:
        result.check(False, str(error))
        return
    listed = dict(sealed.files)
    if not has_report and listed.pop(REPORT_JSON, None) is not None:
        result.check(True, f"{MANIFEST} names a report that was not written to its end, or was removed since")
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(folder)}
    changed = [name for name, digest in listed.items() if found.get(name) != digest]
    for name in changed:
        result.check(False, f"{name} is not the file whose hash is in {MANIFEST}")
    if has_report and REPORT_JSON not in sealed.files:
        result.check(False, f"{REPORT_JSON} is not in {MANIFEST}")
    if not changed:
        result.check(True, f"{len(listed)} files have the hashes in {MANIFEST}")
    if extra := sorted(found.keys() - listed.keys()):
        result.check(True, f"not in {MANIFEST}, and not checked: {', '.join(extra)}")
    if trusted is None and not (folder / SIGNATURE).exists():
        result.check(True, "not signed: whoever can write here could have made all of it anew (--sign)")
        return
    try:
        signer = check_signature(folder, sealed, trusted)
    except PrivFedError as error:
        result.check(False, str(error))
        return
    whose = "the key that was given" if trusted is not None else f"{signer}; give --key to say whose it must be"
    result.check(True, f"signed by {whose}")


def _misstated(evidence: Evidence, ledger: LedgerReport) -> Iterator[str]:
    """Observers whose row is missing, or differs from the ledger in ε or in what ε depends on."""
    rows = {row.observer: row for row in evidence.observers}
    for name in (observer.value for observer in Observer):
        proven = ledger.guarantees.get(name)
        epsilon = math.inf if proven is None else proven.epsilon
        row = rows.get(name)
        if row is None or row.guarantee.epsilon != epsilon or row.protected != (epsilon < math.inf):
            yield name
        elif proven is not None:
            stated = row.guarantee
            if (stated.delta, stated.unit, stated.neighbouring, stated.sampling) != (
                proven.delta,
                proven.unit,
                proven.neighbouring,
                proven.sampling,
            ):
                yield name


def _weights_digest(path: Path) -> str | None:
    try:
        weights = np.ascontiguousarray(np.load(path, allow_pickle=False), "<f4")
    except Exception:  # noqa: BLE001 - whatever NumPy makes of a damaged file
        return None
    return hashlib.sha256(weights.tobytes()).hexdigest()
