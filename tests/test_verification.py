"""A run judged by its files: what is as it was written holds, finished or killed; every change to it is found."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.audit import evidence as ev
from privfed.audit.evidence import Evidence
from privfed.config import Settings
from privfed.errors import OutputError
from privfed.privacy.accounting import MODELS_ONLY, Guarantee, ObservedRelease, Release, account
from privfed.privacy.ledger import Ledger
from privfed.privacy.ledger_entries import Header
from privfed.privacy.ledger_report import verify_ledger
from privfed.privacy.sampling import PoissonSampling
from privfed.publication import publish, render_folder
from privfed.settings_file import dump_toml, load_settings, resolve_settings
from privfed.verdict import verdict
from privfed.verification import Verification, verify_run

sys.path.insert(0, str(Path(__file__).parent / "report"))
import report_sample

ROUNDS, RATE, NOISE, DELTA = 3, 0.1, 1.0, 1e-5
RELEASES = (ObservedRelease(MODELS_ONLY, Release(PoissonSampling(RATE), NOISE)),)
SETTINGS = resolve_settings(
    {
        "training": {"rounds": ROUNDS},
        "cohort": {"sampling": "poisson", "rate": RATE},
        "privacy": {"mechanism": "gaussian", "clip_norm": 1.0, "noise_multiplier": NOISE, "delta": DELTA},
        "audit": {"baseline": False, "membership": []},
    }
)
PROVEN = account(NOISE, PoissonSampling(RATE), ROUNDS, DELTA)


def model(number: int) -> np.ndarray:
    """The weights ``[4]`` after a round."""
    return np.arange(4, dtype=np.float32) + number


def digest(weights: np.ndarray) -> str:
    return hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()


def write_run(folder: Path, settings: Settings = SETTINGS, *, killed_after: int | None = None) -> Path:
    """What a training leaves, written without one; killed after a round's metrics where asked for."""
    folder.mkdir()
    (folder / "config.toml").write_text(dump_toml(settings))
    privacy = settings.privacy
    header = Header(settings.fingerprint(), privacy.mechanism, privacy.unit, privacy.delta, False)
    done = ROUNDS if killed_after is None else killed_after
    with Ledger(folder / "ledger.jsonl", header) as ledger:
        for number in range(1, done + 1):
            if privacy.mechanism != "none":
                ledger.reserve(number, RELEASES)
                ledger.commit(number, digest(model(number)))
            with (folder / "metrics.jsonl").open("a") as file:
                line = {"round": number, "weights_sha256": digest(model(number)), "test_accuracy": number / 10}
                file.write(json.dumps(line) + "\n")
        if killed_after is None:
            np.save(folder / "weights.npy", model(ROUNDS))
            (folder / "transcript.npz").write_bytes(b"what crossed the wire")
            ledger.finish(digest(model(ROUNDS)))
    return folder


def evidence_of(folder: Path) -> Evidence:
    """A report that states what the folder's ledger proves."""
    sample, ledger = report_sample.sample(ROUNDS), verify_ledger(folder / "ledger.jsonl")
    settings = load_settings(folder / "config.toml")
    observers = []
    for row in sample.observers:
        proven = ledger.guarantees.get(row.observer)
        stated = {"epsilon": math.inf} if proven is None else terms(proven)
        changed = row.guarantee.model_copy(update=stated)
        observers.append(row.model_copy(update={"guarantee": changed, "protected": proven is not None}))
    of_release = ledger.guarantee
    claimed = terms(of_release) if of_release else {"epsilon": math.inf}
    named = {
        "head_sha256": ledger.head,
        "weights_sha256": ledger.final_sha256,
        "transcript_sha256": hashlib.sha256((folder / "transcript.npz").read_bytes()).hexdigest(),
    }
    observers = [row.model_copy(update={"best_attack": None}) for row in observers]
    run = {"settings": settings.model_dump(mode="json"), "settings_fingerprint": settings.fingerprint()}
    points = [ev.AccuracyPoint(round=number, test_accuracy=number / 10) for number in range(1, ROUNDS + 1)]
    accuracy = sample.accuracy.model_copy(
        update={
            "protected": tuple(points),
            "unprotected": (),
            "final_protected": ROUNDS / 10,
            "final_unprotected": None,
            "gap": None,
        }
    )
    return sample.model_copy(
        update={
            "run": sample.run.model_copy(update=run),
            "observers": tuple(observers),
            "accuracy": accuracy,
            **dict.fromkeys(("canaries", "membership")),
            "attacks": (),
            "verdict": verdict(observers, None, None, set()),
            "ledger": sample.ledger.model_copy(update=claimed | named),
        }
    )


def terms(guarantee: Guarantee) -> dict[str, Any]:
    return {key: getattr(guarantee, key) for key in ("epsilon", "delta", "unit", "neighbouring", "sampling")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with its report."""
    path = write_run(tmp_path / "run")
    publish(evidence_of(path), path)
    return path


def failed(result: Verification) -> list[str]:
    return [words for ok, words in result.checks if not ok]


def test_what_was_written_holds(folder: Path) -> None:
    result = verify_run(folder)
    assert failed(result) == []
    assert result.holds
    assert result.epsilon == PROVEN.epsilon
    assert result.as_text().splitlines()[-1] == "verified"
    assert f"ε = {PROVEN.epsilon:.4g} at δ = 1e-05" in result.as_text()
    assert json.loads(json.dumps(result.as_json()))["holds"] is True


def edit_report(folder: Path, change: Callable[[Any], object], *, render: bool = True) -> None:
    """Change ``report.json`` and, since a forger can, render the page from it again."""
    path = folder / "report.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    if render:
        render_folder(folder)


def edit_lines(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def flip_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def of(tree: Any, observer: str) -> Any:
    return next(row for row in tree["observers"] if row["observer"] == observer)


VERDICT = "follow from its figures: not the verdict"
TAMPERINGS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "another ε": (
        lambda f: edit_report(f, lambda tree: tree["ledger"].update(epsilon=0.1)),
        ["report.json states the ledger's ε (0.1 and "],
    ),
    "another ε, page as it was": (
        lambda f: edit_report(f, lambda tree: tree["ledger"].update(epsilon=0.1), render=False),
        ["report.json states the ledger's ε", "report.html"],
    ),
    "another ε for an observer": (
        lambda f: edit_report(f, lambda tree: of(tree, "client")["guarantee"].update(epsilon=0.1)),
        ["states for each observer what the ledger proves: not client", VERDICT],
    ),
    "another δ for an observer": (
        lambda f: edit_report(f, lambda tree: of(tree, "release")["guarantee"].update(delta=1e-9)),
        ["states for each observer what the ledger proves: not release", VERDICT],
    ),
    "a finite ε where none is proven": (
        lambda f: edit_report(
            f,
            lambda tree: (
                of(tree, "server").update(protected=True),
                of(tree, "server")["guarantee"].update(epsilon=1),
            ),
        ),
        ["states for each observer what the ledger proves: not server", VERDICT],
    ),
    "an observer left out": (
        lambda f: edit_report(f, lambda tree: tree["observers"].remove(of(tree, "active server"))),
        ["states for each observer what the ledger proves: not active server", VERDICT],
    ),
    "settings in the report": (
        lambda f: edit_report(f, lambda tree: tree["run"]["settings"]["privacy"].update(clip_norm=9.0)),
        ["report.json is of the settings in config.toml"],
    ),
    "head in the report": (
        lambda f: edit_report(f, lambda tree: tree["ledger"].update(head_sha256="0" * 64)),
        ["report.json names the ledger's last entry"],
    ),
    "model in the report": (
        lambda f: edit_report(f, lambda tree: tree["ledger"].update(weights_sha256="0" * 64)),
        ["report.json names the released model"],
    ),
    "no report any more": (lambda f: (f / "report.json").write_text("{"), ["report.json: is not strict JSON"]),
    "page edited": (
        lambda f: (f / "report.html").write_text((f / "report.html").read_text().replace("ε", "e", 1)),
        ["report.html is what report.json renders to"],
    ),
    "page removed": (lambda f: (f / "report.html").unlink(), ["report.html is what report.json renders to"]),
    "weights": (lambda f: np.save(f / "weights.npy", model(ROUNDS) + 1e-6), ["weights.npy is the model"]),
    "weights cut": (lambda f: os.truncate(f / "weights.npy", 100), ["weights.npy is the model"]),
    "weights removed": (lambda f: (f / "weights.npy").unlink(), ["weights.npy is the model"]),
    "transcript": (lambda f: flip_byte(f / "transcript.npz", 5), ["transcript.npz is the one that was attacked"]),
    "transcript removed": (lambda f: (f / "transcript.npz").unlink(), ["transcript.npz is the one"]),
    "last metrics": (
        lambda f: edit_lines(f / "metrics.jsonl", lambda lines: lines.pop()),
        ["the last line of metrics.jsonl names the same model", "has the accuracies of metrics.jsonl"],
    ),
    "all metrics": (lambda f: (f / "metrics.jsonl").unlink(), ["has the accuracies of metrics.jsonl"]),
    "an accuracy": (
        lambda f: edit_report(f, lambda tree: tree["accuracy"]["protected"][1].update(test_accuracy=0.9)),
        ["has the accuracies of metrics.jsonl"],
    ),
    "an accuracy of the training without protection": (
        lambda f: edit_report(
            f, lambda tree: tree["accuracy"].update(unprotected=[{"round": 1, "test_accuracy": 0.9}])
        ),
        ["has the accuracies of metrics-baseline.jsonl", "not the accuracy in the end"],
    ),
    "more metrics": (
        lambda f: edit_lines(f / "metrics.jsonl", lambda lines: lines.append(lines[-1])),
        ["the ledger holds the end of each of the 4 rounds in metrics.jsonl"],
    ),
    "no metrics any more": (
        lambda f: (f / "metrics.jsonl").write_text("loss went down\n"),
        ["metrics.jsonl is not one JSON object a line", "has the accuracies of metrics.jsonl"],
    ),
    "settings": (
        lambda f: edit_lines(f / "config.toml", lambda lines: lines.insert(0, 'name = "other"\n') or lines.pop(1)),
        ["ledger: belongs to the settings in config.toml", "report.json is of the settings in config.toml"],
    ),
    "ledger edited": (
        lambda f: edit_lines(
            f / "ledger.jsonl",
            lambda lines: lines.__setitem__(
                1, lines[1].replace('"noise_multiplier": 1.0', '"noise_multiplier": 9.0')
            ),
        ),
        ["ledger: ", "line 2 is not what was written"],
    ),
    "ledger line removed": (
        lambda f: edit_lines(f / "ledger.jsonl", lambda lines: lines.pop(3)),
        ["ledger: ", "line 4 does not follow line 3"],
    ),
    "ledger's end removed": (
        lambda f: edit_lines(f / "ledger.jsonl", lambda lines: lines.pop()),
        ["report.json names the ledger's last entry", "report.json names the released model"],
    ),
    "ledger removed": (lambda f: (f / "ledger.jsonl").unlink(), ["the ledger is missing, although weights.npy"]),
    "ledger of another run": (
        lambda f: (f / "ledger.jsonl").write_bytes(
            (
                write_run(f.parent / "other", SETTINGS.model_copy(update={"name": "o"})) / "ledger.jsonl"
            ).read_bytes()
        ),
        ["ledger: belongs to the settings in config.toml", "report.json names the ledger's last entry"],
    ),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_found(folder: Path, tampering: str) -> None:
    change, words = TAMPERINGS[tampering]
    change(folder)
    result = verify_run(folder)
    assert not result.holds
    assert result.as_text().splitlines()[-1] == "NOT verified"
    hashes = "is not the file whose hash is in manifest.json"
    found = [line for line in failed(result) if hashes not in line]
    # The manifest finds each of them as well, where the ledger is sound enough to go on.
    assert len(found) < len(failed(result)) or found[0].startswith(("ledger: /", "the ledger is missing"))
    for word in words:
        assert any(word in line for line in found), found
    # Nothing else fails: a check that fails for a reason of another says nothing.
    assert all(any(word in line for word in words) for line in found), found


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_killed_run_is_unfinished_and_holds(tmp_path: Path, killed_after: int) -> None:
    result = verify_run(write_run(tmp_path / "run", killed_after=killed_after))
    assert failed(result) == []
    assert any("unfinished" in words for _, words in result.checks)
    spent = account(NOISE, PoissonSampling(RATE), killed_after, DELTA).epsilon if killed_after else 0.0
    assert result.epsilon == spent


def test_killed_in_mid_write(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", killed_after=2)
    whole = verify_run(folder).epsilon
    for name in ("ledger.jsonl", "metrics.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"sequence": 5, "att')
    result = verify_run(folder)
    assert failed(result) == []
    assert result.epsilon == whole
    assert any("20 bytes of an entry cut off by a kill" in words for _, words in result.checks)


def test_killed_between_ledger_and_model_files(tmp_path: Path) -> None:
    """``weights.npy`` is written before the ledger is closed: there without a close, it is unfinished work."""
    folder = write_run(tmp_path / "run", killed_after=ROUNDS)
    np.save(folder / "weights.npy", model(ROUNDS))
    assert verify_run(folder).holds


def test_a_ledger_cut_short_does_not_hide_rounds_that_were_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", killed_after=ROUNDS)
    edit_lines(folder / "ledger.jsonl", lambda lines: lines.__delitem__(slice(3, None)))
    assert failed(verify_run(folder)) == ["the ledger holds the end of each of the 3 rounds in metrics.jsonl"]


def test_before_anything_was_spent(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(dump_toml(SETTINGS))
    result = verify_run(tmp_path)
    assert (result.holds, result.epsilon) == (True, 0.0)


@pytest.mark.parametrize("name", ["weights.npy", "metrics.jsonl", "transcript.npz", "report.json"])
def test_a_ledger_that_is_gone(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.toml").write_text(dump_toml(SETTINGS))
    (tmp_path / name).write_bytes(b"")
    result = verify_run(tmp_path)
    assert failed(result) == [f"the ledger is missing, although {name} is there: what was spent is unknown"]
    assert result.epsilon is None


NOTHING_CLAIMED = {"training": {"rounds": ROUNDS}, "audit": {"baseline": False, "membership": []}}


@pytest.mark.parametrize(
    ("asked", "absent"),
    [
        ({"membership": ["loss"]}, "membership"),
        ({"canaries": 20}, "canaries"),
        ({"baseline": True}, "the training without protection"),
    ],
)
def test_a_whole_report_without_what_its_settings_ask_for(
    tmp_path: Path, asked: dict[str, Any], absent: str
) -> None:
    """Whoever takes the canaries that flagged a claim out of a report takes them out whole."""
    settings = SETTINGS.model_copy(update={"audit": SETTINGS.audit.model_copy(update=asked)})
    folder = write_run(tmp_path / "run", settings)
    evidence = evidence_of(folder)
    publish(evidence, folder)
    assert failed(verify_run(folder)) == [f"report.json holds what its settings ask for: not {absent}"]
    partial = evidence.model_copy(update={"run": evidence.run.model_copy(update={"status": "partial"})})
    publish(partial, folder)
    assert failed(verify_run(folder)) == []


def test_without_a_mechanism_nothing_is_claimed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", resolve_settings(NOTHING_CLAIMED))
    assert (verify_run(folder).holds, verify_run(folder).epsilon) == (True, math.inf)
    publish(evidence_of(folder), folder)
    assert failed(verify_run(folder)) == []
    edit_report(folder, lambda tree: tree["ledger"].update(epsilon=1.0))
    assert not verify_run(folder).holds


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OutputError, match=r"holds no run\. Name a folder that --out named"):
            verify_run(path)
