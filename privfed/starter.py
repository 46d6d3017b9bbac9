"""A first experiment with every setting in it: those that matter are set, the others are comments."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from privfed.config import Settings
from privfed.errors import SettingError
from privfed.files import write_text
from privfed.settings_file import resolve_settings

FIRST: Mapping[str, Mapping[str, Any]] = {
    "data": {"source": "digits", "partition": "iid", "clients": 359},
    "model": {"name": "softmax"},
    "training": {
        "rounds": 40,
        "local_epochs": 5,
        "batch_size": 2,
        "learning_rate": 0.5,
        "server_learning_rate": 0.5,
        "server_momentum": 0.9,
    },
    "cohort": {"sampling": "poisson", "rate": 0.15},
    "privacy": {"mechanism": "gaussian", "clip_norm": 0.5, "epsilon": 3.0, "delta": 1e-4},
    "secure_aggregation": {"mode": "protocol"},
}
"""What a starter sets: client-level differential privacy and masking on the digits that come along."""

WIDTH = 100


def write_starter(path: Path) -> None:
    """Write the experiment.

    Raises:
        SettingError: There is something at ``path`` already, or it cannot be written.
    """
    if path.exists():
        raise SettingError("exists already", where=str(path), remedy="Name a new file")
    try:
        write_text(path, starter(path.stem))
    except OSError as error:
        raise SettingError(f"cannot be written: {error}", where=str(path)) from None


def starter(name: str) -> str:
    """The text of an experiment called ``name``; read back, it is ``FIRST`` and defaults.

    Raises:
        SettingError: An experiment cannot be called that.
    """
    resolve_settings({"name": name})
    lines = [
        "# Every setting is here. Those behind a # have the default that follows; --set changes any of them.",
        f"name = {json.dumps(name)}",
        *_entries(Settings, {}, only_plain=True),
    ]
    for key, field in Settings.model_fields.items():
        section = field.annotation
        if inspect.isclass(section) and issubclass(section, BaseModel):
            lines += ["", f"[{key}]", *_entries(section, FIRST.get(key, {}))]
    return "\n".join(lines) + "\n"


def _entries(section: type[BaseModel], chosen: Mapping[str, Any], *, only_plain: bool = False) -> Iterator[str]:
    documented = documentation(section)
    for key, field in section.model_fields.items():
        if only_plain and (key == "name" or inspect.isclass(field.annotation)):
            continue
        text = " ".join([*_choices(field.annotation), documented.get(key, "").replace("``", "")]).strip()
        yield from textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
        if key in chosen:
            yield f"{key} = {_toml(chosen[key])}"
        elif field.default is None:
            yield f"# {key} ="
        else:
            yield f"# {key} = {_toml(field.default)}"


def _choices(annotation: Any) -> list[str]:
    """What may stand there, where it is one of a few words."""
    if get_origin(annotation) is Literal:
        return [" | ".join(f'"{word}"' for word in get_args(annotation)) + "."]
    parts = [part for part in get_args(annotation) if part is not type(None)]
    words = [word for part in parts for word in _choices(part)]
    others = isinstance(annotation, types.UnionType) and len(parts) > len(words)
    return [f"A number, or {word}" for word in words] if others else words


def documentation(section: type[BaseModel]) -> dict[str, str]:
    """What stands below the fields of a table of ``privfed.config``, by key."""
    (table,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(table, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(table.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)
