"""What the report says of a run beside its figures: the checklist has teeth, and the rest follows from the run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.audit import evidence as ev
from privfed.audit.assemble.accounting import accounting_of, read_search
from privfed.audit.assemble.checks import checks_of
from privfed.audit.assemble.clients import clients_of
from privfed.audit.assemble.document import limits_of
from privfed.audit.assemble.material import Material, guarantees_of
from privfed.audit.assemble.statements import statements_of, trust_of, unnoised_of
from privfed.audit.assemble.training import secure_aggregation_of
from privfed.composition import compose
from privfed.console import Console
from privfed.errors import PrivFedError
from privfed.rundir import RunFolder
from privfed.runs import train_baseline, train_protected
from privfed.settings_file import load_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import report_sample

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
    return {check.name: check.result for check in checks_of(material, canaries, sweep, [*unnoised_of(material)])}


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


NOISE = "The noise is as strong as accounted"
SERVER = "The server itself is held off by noise"
HOLES = "The noise has no floating-point holes"
PUBLISHED = "Every published figure is noised"


def audited(checks: dict[str, str], **server: Any) -> ev.Canaries:
    """Canaries that flag nobody, with these checks from inside; ``server`` changes the server's row."""
    canaries = report_sample.sample(ROUNDS).canaries
    assert canaries is not None
    rows = [row.model_copy(update={"flagged": False}) for row in canaries.observers]
    rows = [row.model_copy(update=server) if row.observer == "server" else row for row in rows]
    found = (ev.SelfCheck(name=name, status=status, finding="", p_value=None) for name, status in checks.items())  # type: ignore[arg-type]  # one of three
    return canaries.model_copy(update={"observers": tuple(rows), "checks": tuple(found)})


@pytest.mark.parametrize(
    ("layers", "rounds", "result"),
    [
        ("passed", "passed", "passed"),
        ("failed", "passed", "failed"),
        ("passed", "failed", "failed"),
        ("not checked", "not checked", "not checked"),
    ],
)
def test_noise_passes_by_what_was_measured_of_it_alone(
    material: Material, layers: str, rounds: str, result: str
) -> None:
    names = ("noise of each layer is as strong as claimed", "noise of different rounds is independent")
    assert results(material, audited(dict(zip(names, (layers, rounds), strict=True))))[NOISE] == result
    # Another row's failure is not the noise's.
    other = audited({names[0]: layers, names[1]: rounds, "models follow from noised sums alone": "failed"})
    assert results(material, other)[NOISE] == result


def test_a_flag_fails_the_noise(material: Material) -> None:
    passed = {"noise of each layer is as strong as claimed": "passed"}
    assert results(material, audited(passed, flagged=True))[NOISE] == "failed"


def test_the_server_is_held_off_only_where_that_was_measured(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results(material, audited({}))[SERVER] == "failed"  # the noise is central
    proven = {name: guarantees_of(material)["release"] for name in ("server", "release")}
    monkeypatch.setattr("privfed.audit.assemble.checks.guarantees_of", lambda m: proven)
    assert results(material)[SERVER] == "not checked"
    estimate = ev.CanaryEstimate(method="as composed", epsilon=2.5, low=2.0, high=3.0, confidence=0.99)
    assert results(material, audited({}, estimates=(estimate,)))[SERVER] == "passed"
    assert results(material, audited({}, estimates=(estimate,), flagged=True))[SERVER] == "failed"
    assert results(material, audited({}, estimates=()))[SERVER] == "not checked"


def test_integers_of_distributed_noise_are_drawn_and_looked_at(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["privacy.mechanism=skellam", "audit.canaries=0", "audit.canary_control=false"]
    experiment = compose(load_settings(ROOT / "examples" / "digits.toml", changes))
    of_integers = replace(material, experiment=experiment)
    assert results(of_integers)[HOLES] == "passed"
    on_client = type(experiment.mechanism).on_client

    def off_the_grid(*arguments: Any) -> Any:
        sent = on_client(*arguments)
        return replace(sent, unscaled=sent.unscaled + 0.25)

    monkeypatch.setattr(type(experiment.mechanism), "on_client", off_the_grid)
    assert results(of_integers)[HOLES] == "failed"


def test_what_is_published_without_noise_is_what_this_run_publishes(material: Material) -> None:
    names = {item.name for item in unnoised_of(material)}
    assert "accuracy client by client" in names
    assert "accuracy of the training without protection, or without canaries" in names
    assert not {"membership scores", "originals in the gallery"} & names  # there are none in this report
    alone = {item.name for item in unnoised_of(replace(material, baseline=None))}
    assert names - alone == {"accuracy of the training without protection, or without canaries"}
    assert results(material)[PUBLISHED] == "failed"
    published = {check.name: check.result for check in checks_of(material, None, None, [])}
    assert published[PUBLISHED] == "passed"


def test_single_updates_in_the_clear_are_counted(material: Material) -> None:
    settings, transcript = material.experiment.settings, material.result.transcript
    off = settings.secure_aggregation.model_copy(update={"mode": "off"})
    experiment = replace(material.experiment, settings=settings.model_copy(update={"secure_aggregation": off}))
    clear = replace(transcript, plan=replace(transcript.plan, mode="off"))
    changed = replace(material, experiment=experiment, result=replace(material.result, transcript=clear))
    (found,) = [check for check in checks_of(changed, None, None, []) if check.name == MASKED]
    sent = sum(len(record.updates) for record in transcript.records)
    assert (found.result, sent > 0) == ("failed", True)
    assert f"{sent} in the {len(transcript.records)} recorded rounds" in found.why


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("off", "has every update in the clear"),
        ("ring", "has every update in the clear"),
        ("protocol", "may call clients dropped until the threshold"),
        ("bfv", "has the key holder decrypt"),
    ],
)
def test_limits_tell_what_an_active_server_may_do_in_this_mode(material: Material, mode: str, words: str) -> None:
    settings = material.experiment.settings
    summed = settings.secure_aggregation.model_copy(update={"mode": mode})
    experiment = replace(material.experiment, settings=settings.model_copy(update={"secure_aggregation": summed}))
    found = [text for text in limits_of(replace(material, experiment=experiment), None) if "crafts models" in text]
    assert len(found) == 1
    assert words in found[0]


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
    sizes = material.experiment.population.sizes
    assert {item.layer for item in items} == set(ev.LAYERS)
    said = {item.item: item.says for item in items}
    assert "δ = 0.0001 for client-level privacy against client, release" in said["Formal statement"]
    assert said["Neighbouring relation"] == "add or remove one client"
    # "Clients" are named as those who are trusted, too.
    of_unit = next(item.says for item in items if (item.layer, item.item) == ("unit", "Clients"))
    assert of_unit == f"359, with {sizes.min()} to {sizes.max()} examples each"
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
