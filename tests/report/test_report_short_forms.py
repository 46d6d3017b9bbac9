"""The report for a pull request, and the draft for the registry: terms with every ε, hostile text as text."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from report_sample import canaries, guarantee, observers, run, sample

from privfed.audit import evidence as ev
from privfed.report.markdown import render_markdown
from privfed.report.registry import TO_FILL_IN, registry_record, registry_text

LAYOUT = {
    "basic": [
        "name",
        "data_curators",
        "description",
        "intended_use",
        "data_product_type",
        "data_product_region",
        "data_product_sector",
        "publication_date",
    ],
    "dp_variant": ["variant_name", "data_domain", "unprotected_quantities"],
    "privacy_loss": [
        "privacy_unit",
        "privacy_unit_details",
        "number_of_privacy_units",
        "privacy_parameters",
        "privacy_parameters_details",
    ],
    "deployment_model": [
        "model_name",
        "model_name_details",
        "trust_assumptions",
        "actors",
        "release_type",
        "release_type_details",
        "data_source_type",
        "data_source_type_details",
        "access_type",
        "access_type_details",
    ],
    "implementation": [
        "preprocessing_and_hyperparameter_tuning",
        "mechanisms",
        "composition",
        "post_processing",
        "justification",
        "utility",
        "additional_information",
    ],
    "administrative": ["evidence_sources", "status", "registry_authors", "tier"],
}
"""The template of opendp/deployments-registry-data (tests/good_deployments/template.yaml)."""


def test_the_registry_record_has_the_templates_layout() -> None:
    record = registry_record(sample())
    assert list(record) == ["url_slug", "deployment"]
    parts = record["deployment"]
    assert list(parts) == list(LAYOUT)
    for name, keys in LAYOUT.items():
        assert set(parts[name]) == set(keys), name
    assert re.fullmatch(r"[a-z0-9-]+", record["url_slug"])
    assert json.loads(registry_text(sample())) == record


def test_the_registry_record_states_epsilon_rounded_up_and_its_terms() -> None:
    loss = registry_record(sample())["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": 3.0, "delta": 1e-4}  # of 2.9987
    assert "add or remove one client" in loss["privacy_unit_details"]
    assert "server: ε = ∞" in loss["privacy_parameters_details"]
    exposed = [
        row.model_copy(update={"protected": False, "guarantee": guarantee(math.inf)}) for row in observers()
    ]
    nothing = registry_record(sample(observers=exposed))["deployment"]["privacy_loss"]
    assert nothing["privacy_parameters"] == {}
    assert "Nothing is promised" in nothing["privacy_parameters_details"]


def test_what_only_people_know_is_left_to_them() -> None:
    basic = registry_record(sample())["deployment"]["basic"]
    assert basic["intended_use"] == basic["data_product_sector"] == TO_FILL_IN
    assert registry_record(sample())["deployment"]["administrative"]["status"] == "Draft"


def test_the_pull_requests_form_has_verdict_matrix_and_terms() -> None:
    text = render_markdown(sample())
    assert text.startswith("## Privacy report: digits\n\n**Partly protected.** ")
    for words in (
        "| release | ≤ 3.00 | gradient matching: no better than a guess |",
        "δ = 10⁻⁴, unit: client, neighbours: add or remove one client, sampling: Poisson, rate 0.15",
        "Test accuracy 86.9\u202f%, 95.5\u202f% without protection: it costs 8.6 points.",
        "Checklist: 1 passed, 1 failed, 1 not checked",
        "| client | ≤ 3.00 | 2.90 (1.90 to 4.90) | ≥ 0.340 | not refuted |",
    ):
        assert words in text, words
    assert len(text) < 10_000  # far below what a comment may have


def test_a_flagged_claim_stands_out() -> None:
    seen = canaries().observers[1]
    estimate = seen.estimates[0].model_copy(update={"low": 3.5})
    refuted = ev.CanaryObserver(**{**seen.model_dump(), "estimates": (estimate,), "flagged": True})
    text = render_markdown(sample(canaries=canaries().model_copy(update={"observers": (refuted,)})))
    assert "| **flagged** |" in text


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "a | b",
        "line\n\n# heading",
        "[click](https://evil.example)",
        "![x](http://evil.example/x.png)",
        "@everybody",
        "https://evil.example",
        "`code` **bold**",
    ],
)
def test_hostile_text_stays_text(hostile: str) -> None:
    changed: list[Any] = [row.model_copy(update={"sees": hostile}) for row in observers()]
    text = render_markdown(sample(run=run(name=hostile), observers=changed))
    assert hostile not in text
    for mark in ("<script", "\n# ", "@everybody", "https://", "http://"):
        assert mark not in text
    unescaped = re.sub(r"\\.", "", text.replace("**Partly protected.**", ""))
    assert not re.search(r"\]\(|!\[|`code|\*\*bold", unescaped)
    row, *_ = [line for line in re.sub(r"\\.", "", text).splitlines() if line.startswith("| server |")]
    assert row.count("|") == 5


def test_a_partial_report_says_so() -> None:
    bare = ev.Accuracy(protected=[], unprotected=[], final_protected=None, final_unprotected=None, gap=None)
    text = render_markdown(sample(run=run(status="partial"), accuracy=bare, membership=None, canaries=None))
    assert "**Partial report**" in text
    assert "Accuracy was not measured." in text
