"""Scores of a report that were edited are found by computing them again, although nothing is signed.

Whoever edits here renders all pages and seals all hashes anew, as anybody can.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.audit.evidence import Evidence
from privfed.manifest import seal
from privfed.measurements import MEASUREMENTS, Measurements, load
from privfed.privacy.ledger_report import spent_releases, verify_ledger
from privfed.publication import render_folder
from privfed.recomputation import misjudged, mismeasured, misscored
from privfed.verification import verify_run

REFERENCE = Path(__file__).parents[1] / "reports" / "reference"


@cache
def reference() -> tuple[str, Measurements]:
    return (REFERENCE / "report.json").read_text(encoding="utf-8"), load(REFERENCE / MEASUREMENTS)


def edited(change: Callable[[Any], object]) -> Evidence:
    tree = json.loads(reference()[0])
    change(tree)
    return Evidence.model_validate_json(json.dumps(tree))


def scored(tree: Any) -> Any:
    """The first attack on the run as configured that has scores."""
    return next(a for a in tree["attacks"] if a["defence"] == "as configured" and a["psnr"] is not None)


def swap_pictures(tree: Any) -> None:
    one, other = [a for a in tree["attacks"] if a["reconstruction"]][:2]
    one["reconstruction"], other["reconstruction"] = other["reconstruction"], one["reconstruction"]


SCORES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a better PSNR": (lambda t: scored(t).update(psnr=scored(t)["psnr"] - 0.01), "psnr"),
    "a better error": (lambda t: scored(t).update(mse=scored(t)["mse"] * 1.001), "mse"),
    "a better SSIM": (lambda t: scored(t).update(ssim=scored(t)["ssim"] - 0.001), "ssim"),
    "a better guess": (lambda t: scored(t)["trivial_psnr"].update(black=30.0), "trivial_psnr"),
    "a smaller margin": (lambda t: scored(t).update(margin_db=-1.0), "margin_db"),
    "another picture": (swap_pictures, "picture of the reconstruction"),
    "an attack left out": (lambda t: t["attacks"].remove(scored(t)), "attack "),
}


@pytest.mark.parametrize("edit", SCORES)
def test_an_edited_score_of_an_attack_is_found(edit: str) -> None:
    change, words = SCORES[edit]
    found = [*misscored(edited(change), reference()[1])]
    assert any(words in line for line in found), found


def verdict_without_its_warning(tree: Any) -> None:
    tree["verdict"]["level"] = "protected"


def labels(tree: Any) -> Any:
    return next(a for a in tree["attacks"] if a["labels"] and a["labels"]["exact"])["labels"]


JUDGEMENTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a milder verdict": (verdict_without_its_warning, "the verdict"),
    "a milder margin": (lambda t: scored(t).update(margin_db=-9.0), "the margin of attack"),
    "a milder best attack": (
        lambda t: next(o for o in t["observers"] if o["best_attack"])["best_attack"].update(margin_db=-9.0),
        "the best attack of server",
    ),
    "fewer labels right": (lambda t: labels(t).update(overlap=0.5), "the counts of labels of attack"),
    "not all labels right": (lambda t: labels(t).update(exact=False), "the counts of labels of attack"),
    "other labels occur": (lambda t: labels(t).update(occurring=0.5), "the counts of labels of attack"),
    "a better guess": (
        lambda t: labels(t)["trivial"].update({"all alike": 0.99}),
        "the counts of labels of attack",
    ),
    "a guess left out": (lambda t: labels(t)["trivial"].pop("all alike"), "the counts of labels of attack"),
    "a better model": (lambda t: t["accuracy"].update(final_protected=0.99), "the accuracy in the end"),
    "a worse one without protection": (
        lambda t: t["accuracy"].update(final_unprotected=0.9),
        "the accuracy in the end",
    ),
    "a smaller cost": (lambda t: t["accuracy"].update(gap=0.001), "the cost in accuracy"),
}


@pytest.mark.parametrize("edit", JUDGEMENTS)
def test_a_judgement_that_does_not_follow_is_found(edit: str) -> None:
    change, words = JUDGEMENTS[edit]
    assert any(words in line for line in misjudged(edited(change)))


def measured(evidence: Evidence) -> list[str]:
    ledger = REFERENCE / "ledger.jsonl"
    claims, spent = verify_ledger(ledger).guarantees, spent_releases(ledger)[1]
    return [*mismeasured(evidence, reference()[1], claims, spent)]


def edit_canaries(tree: Any) -> None:
    client = next(o for o in tree["canaries"]["observers"] if o["observer"] == "client")
    client["estimates"][0]["epsilon"] -= 0.05
    client["present"][3] += 1
    tree["canaries"]["observers"][0]["bound"] = 0.1


def edit_membership(tree: Any) -> None:
    first, second = tree["membership"]["attacks"][:2]
    first["auc"] = 0.5
    second["roc"][5][1] += 0.01
    second["floor"]["wrong"] = 0.5
    first["worst_off"][0]["client"] += 1


def test_edited_figures_of_canaries_and_membership_are_found() -> None:
    assert measured(edited(lambda tree: None)) == []
    found = measured(edited(lambda tree: (edit_canaries(tree), edit_membership(tree))))
    for words in (
        "membership.attacks.1.auc",
        "membership.attacks.2.roc.6.2",
        "membership.attacks.2.floor.wrong",
        "membership.attacks.1.worst_off.1.client",
        "canaries.observers.4.estimates.1.epsilon",
        "canaries.observers.4.present.4",
        "canaries.observers.1.bound",
    ):
        assert words in found
    assert measured(edited(lambda tree: tree.update(membership=None))) == ["membership inference"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REFERENCE, tmp_path / "run"))


def failed(folder: Path) -> list[str]:
    return [words for ok, words in verify_run(folder).checks if not ok]


def test_verify_finds_it_when_all_hashes_were_made_anew(folder: Path) -> None:
    tree = json.loads(reference()[0])
    scored(tree)["ssim"] = 0.0
    (folder / "report.json").write_text(json.dumps(tree), encoding="utf-8")
    render_folder(folder)
    seal(folder)
    (words,) = failed(folder)
    assert "measurements.npz: not attack" in words
    assert words.endswith("(ssim)")


def test_measurements_that_are_gone_or_damaged_or_of_another_run_are_found(folder: Path) -> None:
    whole = (folder / MEASUREMENTS).read_bytes()
    (folder / MEASUREMENTS).write_bytes(whole[: len(whole) // 2])
    seal(folder)
    assert any("cannot be read" in words for words in failed(folder))
    for place in range(7, len(whole), len(whole) // 7):  # headers, names, and what is compressed
        flipped = bytearray(whole)
        flipped[place] ^= 255
        (folder / MEASUREMENTS).write_bytes(flipped)
        assert failed(folder)
    with np.load(REFERENCE / MEASUREMENTS) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["membership/0/scores"] = arrays["membership/0/scores"][::-1]
    with (folder / MEASUREMENTS).open("wb") as file:
        np.savez_compressed(file, **arrays)
    seal(folder)
    (words,) = failed(folder)
    assert words.startswith("report.json: ROC, intervals and empirical ε are those of the scores kept")
    arrays["canaries/included"] = arrays["canaries/included"][:-1]
    with (folder / MEASUREMENTS).open("wb") as file:
        np.savez_compressed(file, **arrays)
    seal(folder)
    assert any("fits no report: " in words for words in failed(folder))
    (folder / MEASUREMENTS).unlink()
    seal(folder)
    assert failed(folder) == [f"{MEASUREMENTS} is missing: the scores in report.json rest on nothing"]
