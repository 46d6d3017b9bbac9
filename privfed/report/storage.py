"""The report's files: written whole or not at all, and read with a clear word about what is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from privfed.audit.evidence import SCHEMA_VERSION, Evidence
from privfed.errors import PrivFedError
from privfed.report.markdown import render_markdown
from privfed.report.page import render_html
from privfed.report.registry import registry_text

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
REPORT_MD, REGISTRY_JSON = "report.md", "registry.json"
AGAIN = "Run `privfed audit` again to write it anew"
CAME_WITH = {
    2: (
        "accounting",
        "clients",
        "sweep",
        "statements",
        "checks",
        "trust",
        "secure_aggregation.bound",
        "secure_aggregation.smallest_sum",
        "canaries.observers.*.roc",
    ),
    3: ("membership.claims", "membership.attacks.*.floor"),
}
"""Parts that a version of the schema has and those before it have not."""


def page_texts(evidence: Evidence) -> dict[str, str]:
    """Everything that is rendered from the evidence, by file name."""
    return {
        REPORT_HTML: render_html(evidence),
        REPORT_MD: render_markdown(evidence),
        REGISTRY_JSON: registry_text(evidence),
    }


def report_text(evidence: Evidence) -> str:
    """The content of ``report.json``: strict JSON, infinity as the string ``inf``."""
    return json.dumps(evidence.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path) -> Evidence:
    """Read and check a ``report.json``.

    Raises:
        PrivFedError: It is missing, no JSON, of another version of the schema, or does not fit the schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(
            text, parse_int=_refuse_huge, parse_constant=_refuse_constant, object_pairs_hook=_without_doublets
        )
    except FileNotFoundError:
        raise PrivFedError("no such report", where=str(path), remedy="Name a folder that a run wrote") from None
    except OSError as error:
        raise PrivFedError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except RecursionError:
        raise PrivFedError("is nested too deeply for a report", where=str(path), remedy=AGAIN) from None
    except ValueError as error:
        raise PrivFedError(f"is not strict JSON: {error}", where=str(path), remedy=AGAIN) from None
    version = _check_version(tree, path)
    if version < SCHEMA_VERSION:
        # Later versions have parts that earlier ones lack, and changed none: these are shown as not recorded.
        text = json.dumps({**tree, "schema_version": SCHEMA_VERSION}, ensure_ascii=False, allow_nan=False)
    try:
        return Evidence.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _explain(error, path) from None


def _check_version(tree: Any, path: Path) -> int:
    if not isinstance(tree, dict) or "schema_version" not in tree:
        raise PrivFedError("is no report: it has no schema_version", where=str(path), remedy=AGAIN)
    version = tree["schema_version"]
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise PrivFedError(
            f"is a report of a version that this program does not know; it reads versions 1 to {SCHEMA_VERSION}",
            where=f"{path}: schema_version",
            value=version,
            remedy="Use the version of PrivFed that wrote it (run.privfed_version)",
        )
    later = [(since, part) for since, parts in CAME_WITH.items() if since > version for part in parts]
    if younger := next((found for found in later if _has(tree, found[1].split("."))), None):
        raise PrivFedError(
            f"is not what wrote this report: {younger[1]} came with version {younger[0]}",
            where=f"{path}: schema_version",
            value=version,
            remedy=AGAIN,
        )
    return version


def _has(tree: Any, keys: Sequence[str]) -> bool:
    """Whether there is anything at these keys, ``*`` being each of a list."""
    if not keys:
        return True
    key, *rest = keys
    if key == "*":
        return isinstance(tree, list) and any(_has(part, rest) for part in tree)
    return isinstance(tree, dict) and key in tree and _has(tree[key], rest)


def _explain(error: ValidationError, path: Path) -> PrivFedError:
    """The first fault as one line."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    words = {"extra_forbidden": "unknown key", "missing": "is missing"}.get(fault["type"])
    message = words or fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    # A check of a whole part has the part as its value, which says nothing in one line.
    value = fault["input"] if isinstance(fault["input"], str | int | float) else None
    return PrivFedError(message, where=f"{path}: {where}" if where else str(path), value=value, remedy=AGAIN)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse_huge(digits: str) -> int:
    """No count is so large, and what draws figures computes with floats."""
    if len(digits) > 20:
        raise ValueError(f"{digits[:20]}… is no count of anything")
    return int(digits)


def _without_doublets(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return tree


def write_whole(texts: Mapping[Path, str]) -> None:
    """Write files of one folder, in order: all of them, or none and the old ones stay.

    Killed in between, the last one is missing, which says that there is no report yet.
    """
    finished: dict[Path, str] = {}
    try:
        for path, text in texts.items():
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
                finished[path] = file.name
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)  # temporary files are private by default; a run's files are not
        *_, last = finished
        if len(finished) > 1:
            last.unlink(missing_ok=True)
        for path, name in finished.items():
            os.replace(name, path)
    except BaseException:
        for name in finished.values():
            Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(last.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
