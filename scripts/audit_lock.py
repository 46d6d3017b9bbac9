"""Look the locked packages up among known vulnerabilities (https://osv.dev): ``audit_lock.py [uv.lock]``.

One question for all of them. Where the database cannot be reached it says so in words, and is no failure. Packages
that TensorFlow Federated holds back are listed with what is known of them; any other one with an advisory is exit
code 1.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATABASE = "https://api.osv.dev/v1/querybatch"
SECONDS = 30
HELD_BACK = {
    "tensorflow",
    "tensorflow-federated",
    "keras",
    "jax",
    "jaxlib",
    "protobuf",
    "numpy",
    "scipy",
    "pyarrow",
}
"""TFF 0.87 and TensorFlow 2.14 run with no newer ones; see ``override-dependencies`` in pyproject.toml."""


def locked(text: str) -> list[tuple[str, str]]:
    """Names and versions of the packages of a ``uv.lock`` that come from a registry."""
    entry = re.compile(r'^name = "([^"]+)"\nversion = "([^"]+)"\nsource = \{ registry', re.MULTILINE)
    return entry.findall(text)


def question(packages: Sequence[tuple[str, str]]) -> bytes:
    """What the database is asked."""
    queries = [{"package": {"name": n, "ecosystem": "PyPI"}, "version": v} for n, v in packages]
    return json.dumps({"queries": queries}).encode()


def advisories(packages: Sequence[tuple[str, str]], answer: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Identifiers of what is known, by package; the answer is in the order of the question.

    Raises:
        ValueError: The answer is to another question.
    """
    results = answer["results"]
    if len(results) != len(packages):
        raise ValueError(f"{len(results)} answers to {len(packages)} questions")
    found = {p: [v["id"] for v in result.get("vulns", [])] for p, result in zip(packages, results, strict=True)}
    return {package: ids for package, ids in found.items() if ids}


def judge(found: Mapping[tuple[str, str], Sequence[str]]) -> int:
    """Print what was found; the exit code."""
    bad = 0
    for (name, version), ids in found.items():
        held = name in HELD_BACK
        bad += not held
        print(f"{name} {version}: {', '.join(ids)}{' (held back)' if held else ''}")
    return int(bad > 0)


def main() -> int:
    """Ask and judge."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "uv.lock")
    packages = locked(path.read_text(encoding="utf-8"))
    request = urllib.request.Request(DATABASE, question(packages), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            tree = json.load(answer)
    except (OSError, urllib.error.URLError) as error:
        print(f"audit-lock: skipped, {DATABASE} cannot be reached: {getattr(error, 'reason', error)}")
        return 0
    code = judge(advisories(packages, tree))
    print(f"audit-lock: {len(packages)} packages of {path} looked up")
    return code


if __name__ == "__main__":
    sys.exit(main())
