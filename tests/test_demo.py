"""The demo, run as `make demo` runs it: what it promises stands in its report, and a change to it is found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.audit.evidence import RECOVERY_MARGIN_DB
from privfed.publication import render_folder
from privfed.verification import verify_run

ROOT = Path(__file__).parents[1]
PROBE, OWN_UPDATES = "one step on one example", "the run's own updates"
RECOVERED_DB = 40
"""From here on a reconstruction is the picture: an error of one part in a hundred of the range."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]  # which is run once for all of them


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, privfed_command: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "digits"
    command = [*privfed_command, "audit", "examples/digits.toml", "--out", str(folder)]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=ROOT)
    assert got.returncode == 0, got.stderr
    assert str(folder / "report.html") in got.stdout
    return folder


@pytest.fixture(scope="module")
def report(demo: Path) -> Any:
    return json.loads((demo / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo, tmp_path / "copy")


def test_it_is_what_the_makefile_runs() -> None:
    assert "privfed audit examples/digits.toml --out reports/digits" in (ROOT / "Makefile").read_text()


def test_one_step_on_one_example_gives_the_example_away(report: Any) -> None:
    best: dict[str, float] = {}  # by the picture behind it
    for a in report["attacks"]:
        if (a["workload"], a["defence"]) == (PROBE, "none") and not a["labels"]:
            assert (a["observer"], a["contributors"]) == ("server", 1)
            assert a["failure"] is None
            best[a["original"]] = max(best.get(a["original"], 0.0), a["psnr"])
    assert len(best) == report["run"]["settings"]["attacks"]["targets"]
    assert min(best.values()) >= RECOVERED_DB


def test_each_defence_is_tried_on_the_same_examples(report: Any) -> None:
    probes = [a for a in report["attacks"] if a["workload"] == PROBE]
    assert [*dict.fromkeys(a["defence"] for a in probes)] == [
        "none",
        "clip to 0.5",
        "clip to 0.5, masked sum of 54",
        "clip to 0.5, sum of 54, noise",
    ]
    single = {d: {a["original"] for a in probes if a["defence"] == d} for d in ("none", "clip to 0.5")}
    assert single["none"] == single["clip to 0.5"]  # a clip takes no picture away
    noised = [a["margin_db"] for a in probes if "noise" in a["defence"] and a["margin_db"] is not None]
    assert max(noised) < RECOVERY_MARGIN_DB


def test_a_clip_and_masks_hide_no_labels(report: Any) -> None:
    """54 examples in one masked sum: how often each digit occurs among them comes out whole."""
    counted = {d: [] for d in ("none", "clip to 0.5", "clip to 0.5, masked sum of 54")}  # type: dict[str, list[Any]]
    for a in report["attacks"]:
        if a["workload"] == PROBE and a["labels"] and a["defence"] in counted:
            counted[a["defence"]].append(a["labels"])
    for labels in counted.values():
        assert labels
        assert all(one["exact"] and one["found"] == one["true"] for one in labels)
        assert max(max(one["trivial"].values()) for one in labels) < 0.95


def test_the_report_judges_itself(report: Any) -> None:
    results = {check["name"]: check["result"] for check in report["checks"]}
    assert results["δ is below one in the number of clients"] == "passed"
    assert results["Nobody sees single updates"] == "passed"
    assert results["The noise cannot be drawn again by who knows a seed"] == "failed"
    assert results["Choosing the settings cost no privacy, or its cost is stated"] == "not checked"
    (claimed,) = [row for row in report["accounting"]["assumptions"] if row["standing"] == "claimed"]
    assert claimed["pld"] == pytest.approx(report["ledger"]["epsilon"], rel=2e-3)
    by_rounds = {p["rounds"]: p["epsilon"] for p in report["accounting"]["by_rounds"]}
    assert max(by_rounds) == 2 * len(report["rounds"])
    assert report["clients"]["clients"] == sum(report["clients"]["histogram"])


def test_the_runs_own_updates_stand_beside_it(report: Any) -> None:
    tried = {(a["observer"], a["defence"]) for a in report["attacks"] if a["workload"] == OWN_UPDATES}
    everybody = {row["observer"] for row in report["observers"]}
    assert everybody == {"server", "server+colluders", "active server", "client", "release"}
    assert {observer for observer, defence in tried if defence == "as configured"} == everybody
    assert {observer for observer, defence in tried if defence == "none"} == {"server", "client", "release"}


def test_nobody_recovers_a_picture_against_whom_the_run_is_protected(report: Any) -> None:
    protected = {row["observer"] for row in report["observers"] if row["protected"]}
    assert {"client", "release"} <= protected
    margins = [
        a["margin_db"]
        for a in report["attacks"]
        if a["defence"] == "as configured" and a["observer"] in protected and a["margin_db"] is not None
    ]
    assert margins
    assert max(margins) < RECOVERY_MARGIN_DB
    for row in report["observers"]:
        if row["protected"] and row["best_attack"]:
            assert row["best_attack"]["margin_db"] < RECOVERY_MARGIN_DB


def test_without_the_defence_the_server_does_better_than_a_guess(report: Any) -> None:
    """Or the figures above would only say that the attacks are weak."""
    margins = [
        a["margin_db"]
        for a in report["attacks"]
        if (a["workload"], a["defence"], a["observer"]) == (OWN_UPDATES, "none", "server")
        and a["margin_db"] is not None
    ]
    assert max(margins) > 5 * RECOVERY_MARGIN_DB


def test_epsilon_is_stated_with_all_that_it_depends_on(report: Any, demo: Path) -> None:
    privacy = report["run"]["settings"]["privacy"]
    for stated in (report["ledger"], *(row["guarantee"] for row in report["observers"])):
        assert stated["delta"] == privacy["delta"]
        assert stated["unit"] == "client"
        assert stated["neighbouring"]
        assert "Poisson" in stated["sampling"]
    for row in report["observers"]:
        epsilon = row["guarantee"]["epsilon"]
        if row["protected"]:
            assert 0 < epsilon <= privacy["epsilon"]
            assert epsilon == pytest.approx(privacy["epsilon"], rel=0.01)  # no noise for nothing
            # A second accountant, by another method, is never far off.
            assert row["guarantee"]["cross_check_epsilon"] == pytest.approx(epsilon, rel=0.3)
        else:
            assert epsilon == "inf"
    # Masks leave an active server a sum, and the noise comes after it.
    assert "active server" in {row["observer"] for row in report["observers"] if not row["protected"]}
    page = (demo / "report.html").read_text(encoding="utf-8")
    for words in ("ε", "δ", "client", report["ledger"]["neighbouring"], report["ledger"]["sampling"]):
        assert words in page


def test_accuracy_with_and_without_protection(report: Any) -> None:
    accuracy, rounds = report["accuracy"], report["run"]["settings"]["training"]["rounds"]
    assert len(accuracy["protected"]) == len(accuracy["unprotected"]) == rounds
    assert 0.8 < accuracy["final_protected"] <= accuracy["final_unprotected"]
    assert accuracy["final_unprotected"] > 0.93
    assert accuracy["gap"] == pytest.approx(accuracy["final_unprotected"] - accuracy["final_protected"])


def test_canaries_refute_no_claim_and_cost_no_accuracy(report: Any) -> None:
    canaries = report["canaries"]
    assert canaries["rounds"] == report["run"]["settings"]["training"]["rounds"]
    assert {row["observer"]: row["claim"] for row in canaries["observers"]} == {
        row["observer"]: row["guarantee"]["epsilon"] for row in report["observers"]
    }
    assert not any(row["flagged"] for row in canaries["observers"])
    assert [check["name"] for check in canaries["checks"] if check["status"] == "failed"] == []
    assert sum(check["status"] == "passed" for check in canaries["checks"]) == 5
    assert canaries["accuracy"] == report["accuracy"]["final_protected"]
    assert abs(canaries["accuracy"] - canaries["accuracy_without"]) < 0.03


def test_membership_of_examples_and_of_clients(report: Any) -> None:
    attacks = report["membership"]["attacks"]
    assert {(a["method"], a["unit"]) for a in attacks} == {
        (method, unit) for method in ("loss", "lira", "rmia") for unit in ("example", "client")
    }
    for a in attacks:
        low, high = a["auc_interval"]
        assert low <= a["auc"] <= high
        assert low < 0.55  # against whom the run is protected there is little to find
        assert len(a["worst_off"]) == 5
        assert all(0 <= client["client"] < 359 for client in a["worst_off"])


def test_the_page_needs_nothing_from_elsewhere(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert set(re.findall(r"(?:src|href)=.(data:|#|\w+:|/)", page)) <= {"data:", "#"}
    assert "@import" not in page


def test_it_verifies_from_outside(demo: Path, privfed_command: list[str]) -> None:
    got = subprocess.run([*privfed_command, "verify", str(demo)], capture_output=True, text=True, check=False)
    assert (got.returncode, got.stdout.splitlines()[-1]) == (0, "verified")


def test_it_holds_wherever_it_is_copied_to(copy: Path) -> None:
    assert verify_run(copy).holds
    render_folder(copy)
    assert verify_run(copy).holds


def edit_report(folder: Path, change: Callable[[Any], object]) -> None:
    """Change ``report.json`` and render the page from it again, as a forger would."""
    path = folder / "report.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    change(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")
    render_folder(folder)


def edit_weights(folder: Path) -> None:
    weights = np.load(folder / "weights.npy")
    weights[0] = np.nextafter(weights[0], np.float32(9))
    np.save(folder / "weights.npy", weights)


def edit_ledger(folder: Path, change: Callable[[list[str]], object]) -> None:
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def edit_transcript(folder: Path) -> None:
    """The models in it, in a file that is well-formed."""
    path = folder / "transcript.npz"
    with np.load(path, allow_pickle=False) as data:
        arrays = dict(data)
    name = next(name for name, array in arrays.items() if array.dtype == np.float32)
    arrays[name] = arrays[name] + np.float32(0.5)
    np.savez(path, **arrays)


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "ε of the ledger": lambda f: edit_report(f, lambda tree: tree["ledger"].update(epsilon=1.0)),
    "ε of an observer": lambda f: edit_report(
        f, lambda tree: next(o for o in tree["observers"] if o["protected"])["guarantee"].update(epsilon=1.0)
    ),
    "an observer called protected": lambda f: edit_report(
        f,
        lambda tree: next(o for o in tree["observers"] if not o["protected"]).update(
            protected=True, guarantee=next(o for o in tree["observers"] if o["protected"])["guarantee"]
        ),
    ),
    "settings in the report": lambda f: edit_report(
        f, lambda tree: tree["run"]["settings"]["cohort"].update(rate=0.01)
    ),
    "weights": edit_weights,
    "ledger line removed": lambda f: edit_ledger(f, lambda lines: lines.pop(10)),
    "ledger line edited": lambda f: edit_ledger(
        f, lambda lines: lines.__setitem__(1, lines[1].replace('"noise_multiplier": ', '"noise_multiplier": 1'))
    ),
    "ledger lines swapped": lambda f: edit_ledger(f, lambda lines: lines.insert(5, lines.pop(6))),
    "ledger's last line removed": lambda f: edit_ledger(f, lambda lines: lines.pop()),
    "ledger removed": lambda f: (f / "ledger.jsonl").unlink(),
    "transcript": edit_transcript,
    "page": lambda f: (f / "report.html").write_text(
        (f / "report.html").read_text(encoding="utf-8").replace("ε", "ϵ", 1), encoding="utf-8"
    ),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_found(copy: Path, tampering: str) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    TAMPERINGS[tampering](copy)
    after = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert before != after
    assert not verify_run(copy).holds


def test_tampering_is_exit_code_1_from_outside(copy: Path, privfed_command: list[str]) -> None:
    edit_weights(copy)
    got = subprocess.run([*privfed_command, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert got.returncode == 1
    assert "FAILED weights.npy" in got.stdout
    assert got.stdout.splitlines()[-1] == "NOT verified"
    assert got.stderr == ""


def test_the_same_command_again_changes_nothing_that_was_spent(
    copy: Path, report: Any, privfed_command: list[str]
) -> None:
    """Research mode is seeded: the rerun finds its checkpoint, and ε stays what it was."""
    # Which training alone leaves out.
    canaries = ["--set", "audit.canaries=100", "--set", "audit.canary_control=true"]
    command = [*privfed_command, "train", "examples/digits.toml", *canaries, "--out", str(copy), "--json"]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert got.returncode == 0, got.stderr
    figures = json.loads(got.stdout)
    assert figures["weights_sha256"] == report["ledger"]["weights_sha256"]
    assert figures["guarantees"]["release"]["epsilon"] == report["ledger"]["epsilon"]
    assert verify_run(copy).holds
