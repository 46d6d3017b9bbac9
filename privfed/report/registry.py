"""A draft entry for the Differential Privacy Deployments Registry (registry.opendp.org).

The layout is that of the registry's template, with its names and its order. Its files are YAML, which this JSON is
as well. What only the people behind a deployment know (who they are, what the model is for) says so and is left to
them; the entry is a draft until they have filled it in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from privfed.audit.evidence import Evidence, ObserverEvidence
from privfed.report.numbers import epsilon

TO_FILL_IN = "To be filled in by the curator."
ONLY_PURPOSE = "Federated training of a model"


def registry_text(evidence: Evidence) -> str:
    """The content of ``registry.json``."""
    return json.dumps(registry_record(evidence), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def registry_record(e: Evidence) -> dict[str, Any]:
    """The entry as plain values; without a finite ε it has no privacy parameters."""
    stated = _stated(e)
    return {
        "url_slug": _slug(e.run.name, e.run.created),
        "deployment": {
            "basic": _basic(e),
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": f"{e.run.data.dataset}: {e.run.data.clients} clients with their examples",
                "unprotected_quantities": _sentences(f"{item.name}: {item.why}" for item in e.unnoised),
            },
            "privacy_loss": _privacy_loss(e, stated),
            "deployment_model": _model(e),
            "implementation": _implementation(e),
            "administrative": {
                "evidence_sources": {},
                "status": "Draft",
                "registry_authors": [TO_FILL_IN],
                "tier": 3,
            },
        },
    }


def _basic(e: Evidence) -> dict[str, Any]:
    data = e.run.data
    return {
        "name": e.run.name,
        "data_curators": [{"data_curator_name": TO_FILL_IN, "data_curator_type": TO_FILL_IN}],
        "description": f"{ONLY_PURPOSE} ({data.model}, {data.parameters} weights) on {data.examples} examples of "
        f"{data.clients} clients. {e.verdict.text}",
        "intended_use": TO_FILL_IN,
        "data_product_type": "Machine learning model",
        "data_product_region": TO_FILL_IN,
        "data_product_sector": TO_FILL_IN,
        "publication_date": e.run.created[:10],
    }


def _stated(e: Evidence) -> ObserverEvidence | None:
    """Whoever sees the released model: it is the data product."""
    return next((row for row in e.observers if row.observer == "release" and row.protected), None)


def _privacy_loss(e: Evidence, stated: ObserverEvidence | None) -> dict[str, Any]:
    if stated is None:
        return {
            "privacy_unit": e.ledger.unit,
            "privacy_unit_details": f"Neighbours: {e.ledger.neighbouring}",
            "number_of_privacy_units": 1,
            "privacy_parameters": {},
            "privacy_parameters_details": "Nothing is promised: ε = ∞ for whoever sees the released model.",
        }
    g = stated.guarantee
    who = {row.observer: row.guarantee.epsilon for row in e.observers}
    others = "; ".join(f"{name}: ε = {epsilon(value)}" for name, value in who.items())
    # Rounded up in its third digit, as everywhere: an upper bound must stay one.
    return {
        "privacy_unit": "User-level" if g.unit == "client" else "Record-level",
        "privacy_unit_details": f"One {g.unit}. Neighbours: {g.neighbouring}; sampling: {g.sampling}.",
        "number_of_privacy_units": 1,
        "privacy_parameters": {"epsilon": float(epsilon(g.epsilon)), "delta": g.delta},
        "privacy_parameters_details": f"Against whoever sees the released model. By observer, at δ = {g.delta:g}: "
        f"{others}.",
    }


def _model(e: Evidence) -> dict[str, Any]:
    setting = _statement(e, "Setting")
    central, local = setting.startswith("central"), setting.startswith("local")
    trust = _sentences(f"{t.who}: trusted to {t.trusted_to}; otherwise {t.otherwise}" for t in e.trust)
    return {
        "model_name": "Central" if central else "Local" if local else "Federated",
        "model_name_details": setting or "not recorded",
        "trust_assumptions": trust or "not recorded",
        "actors": _sentences(f"{row.observer}: sees {row.sees}" for row in e.observers),
        "release_type": "Many releases",
        "release_type_details": _statement(e, "What is released") or "not recorded",
        "data_source_type": "Static",
        "data_source_type_details": f"One dataset, fingerprint {e.run.data.fingerprint}",
        "access_type": "Non-interactive",
        "access_type_details": "The model is published; nobody queries the data.",
    }


def _implementation(e: Evidence) -> dict[str, Any]:
    search = "not recorded; the ε stated is that of one training" if e.sweep is None else e.sweep.statement
    gap = e.accuracy.gap
    measured = (
        [f"test accuracy {e.accuracy.final_protected:.4f}"] if e.accuracy.final_protected is not None else []
    )
    measured += [f"{gap:.4f} below the same training without protection"] if gap is not None else []
    versions = ", ".join(f"{name} {version}" for name, version in sorted(e.run.packages.items()))
    return {
        "preprocessing_and_hyperparameter_tuning": f"Choice of settings: {search}",
        "mechanisms": _sentences(f"{s.item}: {s.says}" for s in e.statements if s.layer == "implementation")
        + f" PrivFed {e.run.privfed_version} with {versions}.",
        "composition": _statement(e, "Accounting") or "not recorded",
        "post_processing": "None after the noise but the server's step.",
        "justification": TO_FILL_IN,
        "utility": ", ".join(measured) or "not measured",
        "additional_information": f"Ledger {e.ledger.head_sha256}; settings {e.run.settings_fingerprint}",
    }


def _statement(e: Evidence, item: str) -> str:
    return next((s.says for s in e.statements if s.item == item), "")


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(f"{part.rstrip('.')}." for part in parts)


def _slug(name: str, created: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return "-".join(filter(None, [*kept.split("-"), created[:4]]))[:80]
