"""Settings from a TOML file and ``--set``, and back; whatever is wrong is one line.

Unknown keys, values out of range and settings that contradict each other are refused with key path, value and
remedy.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from privfed.config import Settings
from privfed.contradictions import Contradiction
from privfed.errors import SettingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NO_CANARIES = ("audit.canaries=0", "audit.canary_control=false")
"""Overrides for trainings that are no audit: its canaries would be guests in a model that nobody judges."""


def load_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read one experiment and apply ``key.path=value`` overrides, each value in TOML's syntax or a bare word.

    Raises:
        SettingError: The file is missing or no TOML; a key is unknown; a value is out of range or contradicts
            another.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(
            "no such experiment file",
            where=str(path),
            remedy="Name a TOML file, such as examples/digits.toml",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot be read: {error}", where=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"is not valid TOML: {error}", where=str(path)) from None
    for override in overrides:
        _apply(tree, override)
    return resolve_settings(tree)


def resolve_settings(tree: dict[str, Any]) -> Settings:
    """Check a tree of settings and fill in the defaults."""
    _refuse_huge(tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _explain(error) from None


def _refuse_huge(tree: Any, where: str = "") -> None:
    """TOML promises integers of 64 bits and no more; Python reads longer ones, which NumPy cannot count with."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            _refuse_huge(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, int) and abs(tree) >= 2**63:
        raise SettingError("must fit into 64 bits", where=where, value=f"{str(tree)[:20]}…")


def _apply(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise SettingError(
            "an override is written key.path=value",
            where="--set",
            value=override,
            remedy="For example --set privacy.epsilon=4",
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise SettingError("is a value, not a table", where=path, value=override)
    if value == "none":
        # TOML has no null: `--set privacy.epsilon=none` takes a key of the file away.
        if keys[-1] == "mechanism":
            tree[keys[-1]] = value
        else:
            tree.pop(keys[-1], None)
    else:
        tree[keys[-1]] = value


def _explain(error: ValidationError) -> SettingError:
    """The first fault as one line: pydantic's own list is for programmers."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        return SettingError(cause.reason, where=cause.where, value=cause.value, remedy=cause.remedy)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(fault["loc"][:-1]))
        return SettingError("unknown key", where=where, value=value, remedy=f"Known here: {known}")
    if fault["type"] == "value_error":
        return SettingError(str(cause), where=where)
    message = fault["msg"].replace("Input should be", "must be")
    if isinstance(value, float) and math.isnan(value):
        message = "must be a number"
    return SettingError(message, where=where, value=value, remedy="See the settings in the README")


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Settings
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return list(section.model_fields)


def dump_toml(settings: Settings) -> str:
    """Every resolved setting as TOML, so that a run's folder holds all that is needed to repeat it."""
    tree = settings.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, table in tree.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays of these are TOML's.
    return json.dumps(value, ensure_ascii=False)
