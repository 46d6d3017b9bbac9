"""The published JSON schema of ``report.json``; ``python -m privfed.report.schema`` writes it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privfed.audit.evidence import SCHEMA_VERSION, Evidence

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def report_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12), made from the evidence model."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:privfed:report:{SCHEMA_VERSION}",
        **Evidence.model_json_schema(),
    }


def schema_text() -> str:
    """As it is published."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
