"""A thousand mutated experiments and a thousand mutated reports: each that is wrong is one line and exit code 2.

Seeded mutations of files that are right: of their bytes, their lines, and of their values to those that programs
trip over. A mutant may still be right; those are counted apart, and must be taken.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import Commands, mutated_bytes

from privfed.composition import compose

ROOT = Path(__file__).parents[2]
REFUSALS = 1000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXPERIMENT = """
name = "mutant"
[data]
source = "digits"
clients = 50
partition = "iid"
[model]
name = "softmax"
[training]
rounds = 3
local_epochs = 1
batch_size = 20
learning_rate = 0.1
server_momentum = 0.5
[cohort]
sampling = "poisson"
rate = 0.3
[privacy]
mechanism = "gaussian"
clip_norm = 0.5
noise_multiplier = 1.0
delta = 1e-4
[secure_aggregation]
mode = "protocol"
threshold = 3
[attacks]
methods = ["dense_layer"]
rounds = [1, 2]
targets = 1
[audit]
baseline = true
membership = ["loss"]
"""
VALUES = (
    *("0", "-1", "1.5", "1e400", "nan", "inf", "-inf", "true", '""', '"none"', "[]", "{}", "[1, 2]", '"\\u0000"'),
    *(
        "9" * 400,
        "0x7fffffffffffffff",
        "1979-05-27",
        '"../../etc/passwd"',
        '"🙂"',
        "'''a\nb'''",
        '"a\\nb"',
        "[[]]",
    ),
)
TREE_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**400, "", "NaN", "inf", [], {}, [None], "a\nb", "\ud800", {"x": []}, 1e308),
)


def mutated_experiment(rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        return mutated_bytes(EXPERIMENT.encode(), rng)
    lines = EXPERIMENT.strip().splitlines()
    for _ in range(int(rng.integers(1, 3))):
        at, other = (int(i) for i in rng.integers(len(lines), size=2))
        key, equals, value = lines[at].partition(" = ")
        way = int(rng.integers(6))
        if way == 0 and equals:  # another value
            lines[at] = f"{key} = {rng.choice(VALUES)}"
        elif way == 1 and equals:  # that of another key
            lines[at] = f"{key} = {lines[other].partition(' = ')[2] or value}"
        elif way == 2:  # gone
            lines[at] = ""
        elif way == 3:  # twice
            lines.insert(other, lines[at])
        elif way == 4:  # another key
            lines[at] = re.sub(r"\w", lambda _: chr(97 + int(rng.integers(26))), lines[at], count=1)
        else:  # a number much larger, or negative
            lines[at] = re.sub(r"\d+", str(rng.choice([-7, 10**6 + 1, 10**15, 10**25])), lines[at])
    return "\n".join(lines).encode()


def mutated_report(tree: Any, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.2:
        return mutated_bytes(json.dumps(tree).encode(), rng)
    tree = copy.deepcopy(tree)
    parents = list(_containers(tree))
    parent = parents[int(rng.integers(len(parents)))]
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    key = keys[int(rng.integers(len(keys)))]
    way = int(rng.integers(4))
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = TREE_VALUES[int(rng.integers(len(TREE_VALUES)))]
    return json.dumps(tree).encode()


def _containers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree[:3]:
            yield from _containers(value)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capsys)


def test_mutated_experiments(
    command: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Up to where the training would begin: data, model and privacy are made."""

    def only_composed(settings: Any, out: Path, console: Any) -> dict[str, Any]:
        compose(settings)
        return {"statements": []}

    monkeypatch.setattr("privfed.runs.run_training", only_composed)
    rng, path = np.random.default_rng(2024), tmp_path / "mutant.toml"
    while command.refused < REFUSALS:
        path.write_bytes(mutant := mutated_experiment(rng))
        command(mutant, "train", path, "--out", tmp_path / "run")
    assert command.taken > 50  # else the mutations are too coarse to get past the first checks
    record_property(
        "says", f"{command.refused} mutated experiments refused in one line, {command.taken} still right"
    )


def test_mutated_reports(command: Commands, tmp_path: Path, record_property: Any) -> None:
    rng, folder = np.random.default_rng(2025), tmp_path / "run"
    folder.mkdir()
    shutil.copy(ROOT / "reports" / "reference" / "report.json", folder)
    tree = small(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    command(b"", "report", folder)
    (folder / "report.json").write_text(json.dumps(tree), encoding="utf-8")
    command(b"", "report", folder)
    assert command.taken == 2
    while command.refused < REFUSALS:
        (folder / "report.json").write_bytes(mutant := mutated_report(tree, rng))
        command(mutant, "report", folder)
    record_property("says", f"{command.refused} mutated reports refused in one line, {command.taken} still right")


def small(tree: Any) -> Any:
    """The same report with short lists, so that a mutation seldom hits the hundredth picture."""
    if isinstance(tree, dict):
        return {key: small(value) for key, value in tree.items()}
    if isinstance(tree, list) and len(tree) > 3 and isinstance(tree[0], dict) and "observer" not in tree[0]:
        return [small(value) for value in tree[:3]]
    return [small(value) for value in tree] if isinstance(tree, list) else tree
