"""Print the public names of PrivFed with their signatures, a line each: what users build on.

    python scripts/api_surface.py > tests/api_surface.txt

A test compares the two, so that nothing of it changes by accident.
"""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

MODULES = (
    "privfed.api",
    "privfed.data",
    "privfed.privacy.mechanisms",
    "privfed.report",
    "privfed.secagg",
    "attacks",
)


def surface() -> Iterator[str]:
    """Each module's ``__all__``; of classes their public methods and attributes too."""
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name in sorted(loaded.__all__):
            yield from described(f"{module}.{name}", getattr(loaded, name))


def described(path: str, value: Any) -> Iterator[str]:
    """The lines of one name."""
    if isinstance(value, enum.EnumMeta):
        yield f"{path}: {', '.join(value.__members__)}"
    elif inspect.isclass(value):
        yield f"{path}{_signature(value)}"
        for name, member in sorted(vars(value).items()):
            if not name.startswith("_"):
                yield f"{path}.{name}{_signature(member)}"
    elif callable(value):
        yield f"{path}{_signature(value)}"
    elif isinstance(value, dict):
        yield f"{path}: {', '.join(map(str, value))}"
    else:
        yield f"{path}: {type(value).__name__}"


def _signature(value: Any) -> str:
    inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if not callable(inner):
        return ""  # an attribute or property
    try:
        return str(inspect.signature(inner))
    except ValueError:  # errors, whose arguments are a built-in type's
        return ""


if __name__ == "__main__":
    print("\n".join(surface()))
