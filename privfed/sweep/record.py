"""``sweep.json``, ``sweep.csv`` and the baseline that a sweep can be compared with."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError

from privfed.audit.evidence import Count, Extended, NonNegative, Part, Share, Tree
from privfed.errors import PrivFedError
from privfed.sweep.cost import SearchCost
from privfed.sweep.statistics import Summary
from privfed.sweep.trial import OBSERVERS, TrialResult

SCHEMA_VERSION: Final = 1
SWEEP_JSON, SWEEP_CSV, SWEEP_HTML = "sweep.json", "sweep.csv", "sweep.html"
FIGURES = ("test_accuracy", "train_accuracy", "rounds", "seconds", "status", "error", "folder")
P = TypeVar("P", bound=Part)
COLUMNS = ("epsilon", "accuracy", "label")


class BaselinePoint(Part):
    """One point of another system's curve."""

    epsilon: Extended
    accuracy: Share
    label: Annotated[str, Field(min_length=1, max_length=80)]


class Sweep(Part):
    """Everything that ``sweep.json`` holds and the page shows."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601: when the sweep was last written."""
    privfed_version: str
    status: Literal["complete", "partial"]
    """``partial`` when a trial failed or was not finished."""
    settings: Tree
    """Of the experiment, without what a trial changes."""
    varied: dict[str, list[JsonValue]]
    seeds: Count
    observer: str
    """Whose ε the curve is drawn against."""
    trials: tuple[TrialResult, ...]
    summaries: tuple[Summary, ...]
    cost: SearchCost
    baseline: tuple[BaselinePoint, ...] = ()
    seconds: NonNegative


def read_sweep(path: Path) -> Sweep:
    """Read and check a ``sweep.json``.

    Raises:
        PrivFedError: It is missing or not what this program writes.
    """
    return read_part(Sweep, path)


def read_part(kind: type[P], path: Path) -> P:
    """Read and check a file that holds one ``kind``.

    Raises:
        PrivFedError: It is missing or not what this program writes.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PrivFedError(f"cannot be read: {error}", where=str(path)) from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise PrivFedError(fault["msg"], where=f"{path}: {where}") from None


def csv_text(sweep: Sweep) -> str:
    """One line a trial; infinity as ``inf``, what is not known empty."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    names = [f"epsilon {observer}" for observer in OBSERVERS]
    head = ["id", *sweep.varied, "seed", "training.seed", *names, "delta", "unit", "neighbouring", "sampling"]
    writer.writerow([*head, *FIGURES])
    for trial in sweep.trials:
        losses = [trial.privacy.get(observer) for observer in OBSERVERS]
        release = trial.privacy.get(sweep.observer)
        terms: list[Any] = (
            [release.delta, release.unit, release.neighbouring, release.sampling] if release else [None] * 4
        )
        row: list[Any] = [
            trial.id,
            *(_cell(trial.values[key]) for key in sweep.varied),
            trial.seed,
            trial.training_seed,
        ]
        epsilons = [loss.epsilon if loss else None for loss in losses]
        writer.writerow([*row, *epsilons, *terms, *(getattr(trial, name) for name in FIGURES)])
    return target.getvalue()


def read_baseline(path: Path) -> tuple[BaselinePoint, ...]:
    """Points of another system's curve, from a CSV file with the columns epsilon, accuracy and label.

    Raises:
        PrivFedError: The file is missing, or a line is not such a point.
    """
    remedy = f"Its first line is {','.join(COLUMNS)}; ε above 0 or inf, accuracy from 0 to 1"
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PrivFedError(f"cannot be read: {error}", where=f"--baseline {path}") from None
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            point = BaselinePoint(
                epsilon=float(row["epsilon"]), accuracy=float(row["accuracy"]), label=row["label"].strip()
            )
            if not point.epsilon > 0:
                raise ValueError
        except (KeyError, TypeError, AttributeError, ValueError):
            raise PrivFedError(
                f"line {number} is no point", where=f"--baseline {path}", value=dict(row), remedy=remedy
            ) from None
        found.append(point)
    if not found:
        raise PrivFedError("holds no points", where=f"--baseline {path}", remedy=remedy)
    return tuple(found)


def in_words(values: dict[str, JsonValue] | Sequence[tuple[str, JsonValue]]) -> str:
    """Varied values as a person reads them: ``epsilon 0.5, mode ring``."""
    pairs = list(values.items() if isinstance(values, dict) else values)
    last = [key.rpartition(".")[2] for key, _ in pairs]
    names = last if len(set(last)) == len(last) else [key for key, _ in pairs]
    said = [f"{name.replace('_', ' ')} {shown(value)}" for name, (_, value) in zip(names, pairs, strict=True)]
    return ", ".join(said)


def shown(value: JsonValue) -> str:
    """One varied value."""
    if value in ("inf", math.inf):
        return "∞"
    return value if isinstance(value, str) else json.dumps(value)


def _cell(value: JsonValue) -> Any:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)
