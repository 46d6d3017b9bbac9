"""What the report says of a run beside its figures: the checklist has teeth, and the rest follows from the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.audit import evidence as ev
from privfed.audit.assemble.accounting import accounting_of, read_search
from privfed.audit.assemble.checks import checks_of
from privfed.audit.assemble.clients import clients_of
from privfed.audit.assemble.material import Material
from privfed.audit.assemble.statements import statements_of, trust_of
from privfed.audit.assemble.training import secure_aggregation_of
from privfed.console import Console
from privfed.errors import PrivFedError
from privfed.experiment import compose
from privfed.rundir import RunFolder
from privfed.runs import train_baseline, train_protected
from privfed.settings_file import load_settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ROUNDS = 6
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A short training of the demo's, without canaries."""
    changes = [f"training.rounds={ROUNDS}", "audit.canaries=0", "audit.canary_control=false"]
    settings = load_settings(ROOT / "examples" / "digits.toml", changes)
    folder = RunFolder(tmp_path_factory.mktemp("run"), settings)
    experiment = compose(settings)
    result = train_protected(experiment, folder, QUIET)
    return Material(experiment, folder, result, train_baseline(experiment, folder, QUIET), [], None, 1.0)


def results(material: Material, canaries: Any = None, sweep: Any = None) -> dict[str, str]:
    return {check.name: check.result for check in checks_of(material, canaries, sweep)}


COHORTS = "Cohorts vary as the sampling scheme says"
CLIPPED = "No update in the recorded sums is longer than the clip norm"
MASKED = "Nobody sees single updates"
FINITE = "Updates that are not finite never reach the model"
SEARCH = "Choosing the settings cost no privacy, or its cost is stated"


def test_a_sound_run_fails_only_where_the_demo_is_a_demo(material: Material) -> None:
    found = results(material)
    assert [name for name, result in found.items() if result == "failed"] == [
        "The noise cannot be drawn again by who knows a seed",
        "The noise has no floating-point holes",
        "The server itself is held off by noise",
        "Every published figure is noised",
    ]
    assert found[COHORTS] == found[CLIPPED] == found[FINITE] == "passed"
    assert found["The noise is as strong as accounted"] == found[SEARCH] == "not checked"


def test_fixed_cohorts_where_poisson_is_claimed_are_found(material: Material) -> None:
    reports = [
        replace(
            material.result.reports[0], metrics=replace(material.result.reports[0].metrics, round=n, cohort=54)
        )
        for n in range(1, 41)
    ]
    assert results(replace(material, result=replace(material.result, reports=reports)))[COHORTS] == "failed"


def test_an_update_longer_than_the_clip_is_found(material: Material) -> None:
    transcript = material.result.transcript
    first = transcript.records[0]
    longer = replace(first, updates={c: 1.01 * v for c, v in first.updates.items()})
    changed = replace(transcript, records=[longer, *transcript.records[1:]])
    assert results(replace(material, result=replace(material.result, transcript=changed)))[CLIPPED] == "failed"


def test_uploads_that_are_not_masked_are_found(material: Material) -> None:
    transcript = material.result.transcript
    bare = [replace(record, uploads=dict(record.updates)) for record in transcript.records]
    assert results(material)[MASKED] == "passed"
    changed = replace(transcript, records=bare)
    assert results(replace(material, result=replace(material.result, transcript=changed)))[MASKED] == "failed"


def test_what_only_a_setting_says_is_not_checked(material: Material) -> None:
    found = results(material)
    assert found["The sum is divided by a number that does not depend on who came"] == "not checked"
    assert found["Clients that vanish do not thin the noise below the claim"] == "not checked"
    stopped = replace(material.result, reports=material.result.reports[:-1])
    stopping = "Stopping early looks at nobody's training data"
    assert found[stopping] == "passed"
    assert results(replace(material, result=stopped))[stopping] == "not checked"


def test_a_secure_source_and_its_grid_are_seen(material: Material) -> None:
    settings = material.experiment.settings
    privacy = settings.privacy.model_copy(update={"randomness": "secure"})
    experiment = replace(material.experiment, settings=settings.model_copy(update={"privacy": privacy}))
    found = results(replace(material, experiment=experiment))
    assert found["The noise cannot be drawn again by who knows a seed"] == "passed"
    assert found["The noise has no floating-point holes"] == "passed"


def test_a_model_that_is_not_finite_is_found(material: Material) -> None:
    weights = material.result.weights.copy()
    weights[0] = np.nan
    assert results(replace(material, result=replace(material.result, weights=weights)))[FINITE] == "failed"


def test_assumptions_rounds_and_deltas(material: Material) -> None:
    found = accounting_of(material)
    assert found is not None
    (claimed,) = [row for row in found.assumptions if row.standing == "claimed"]
    assert claimed.pld == pytest.approx(found.epsilon, rel=2e-3)
    assert all(
        row.pld is None or row.pld >= 0.998 * found.epsilon for row in found.assumptions if row.standing == "holds"
    )
    at_end = {p.rounds: p.epsilon for p in found.by_rounds}
    assert at_end[ROUNDS] == pytest.approx(found.epsilon, rel=1e-6)
    assert max(at_end) == 2 * ROUNDS
    assert list(at_end.values()) == sorted(at_end.values())
    by_delta = {p.delta: p.epsilon for p in found.by_delta}
    assert by_delta[found.delta] == pytest.approx(found.epsilon, rel=1e-6)
    assert [by_delta[d] for d in sorted(by_delta)] == sorted(by_delta.values(), reverse=True)


def test_every_client_counts_once(material: Material) -> None:
    found = clients_of(material)
    population = material.experiment.population
    assert found.clients == int((population.sizes > 0).sum()) == sum(found.histogram)
    assert sum(found.histogram_unprotected) == found.clients
    first = found.worst[0]
    images, labels = population.client(first.client)
    assert first.accuracy == min(row.accuracy for row in found.worst)
    assert first.examples == len(labels) == len(images)


def test_items_layers_and_trust(material: Material) -> None:
    items = statements_of(material)
    assert {item.layer for item in items} == set(ev.LAYERS)
    said = {item.item: item.says for item in items}
    assert "δ = 0.0001 for client-level privacy against client, release" in said["Formal statement"]
    assert said["Neighbouring relation"] == "add or remove one client"
    trusted = {row.who for row in trust_of(material)}
    assert {"The server", "All but 3 clients of a cohort", "Everybody who knows the seed"} <= trusted


def test_what_the_masks_are_worth(material: Material) -> None:
    found = secure_aggregation_of(material)
    # 54 clients and 3 colluders: (54 + 3) // 2 + 1 survivors, of whom 26 are honest.
    assert found.smallest_sum == 26
    assert found.bound is not None
    assert "any 29 survivors" in found.bound


def test_a_folder_without_a_search(tmp_path: Path) -> None:
    with pytest.raises(PrivFedError, match=r"--sweep .*holds neither sweep\.json nor tune\.json"):
        read_search(tmp_path)
