"""What a sweep tries: the product of the varied values, each with so many seeds, checked before any is run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfed.config import Settings
from privfed.errors import SettingError
from privfed.settings_file import NO_CANARIES, load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_TRIALS = 10_000
EPSILON, SEED = "privacy.epsilon", "training.seed"
INFINITE = ("inf", "+inf", "∞")
UNWATCHED = ("attacks.enabled=false", *NO_CANARIES)
"""Of trials: what an audit adds to a training stays out of them."""
NO_NOISE = (
    "privacy.mechanism=none",
    f"{EPSILON}=none",
    "privacy.noise_multiplier=none",
    "privacy.max_epsilon=none",
)
"""What ε = ∞ stands for. The clip norm stays: the curve's end is the same training without its noise."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep or a search.

    Attributes:
        id: Names its folder; follows from the values and the repeat alone.
        values: What was varied, by key path; ``"inf"`` for infinity.
        repeat: From 0: which of the trials with the same values.
        settings: As resolved.
    """

    id: str
    values: Mapping[str, Any]
    repeat: int
    settings: Settings


@dataclass(frozen=True)
class Base:
    """The experiment that trials change.

    Attributes:
        experiment: Its file.
        overrides: ``--set`` of all trials.
    """

    experiment: Path
    overrides: tuple[str, ...] = ()

    def settings(self) -> Settings:
        """Without any change of a trial.

        Raises:
            SettingError: See ``load_settings``.
        """
        return load_settings(self.experiment, self.overrides)

    def trial(self, values: Mapping[str, str], repeat: int) -> Trial:
        """The trial with so varied values, each text as after ``--set KEY=``.

        ``training.seed`` is drawn from the experiment's own, the values and the repeat, so that no two trials
        share their noise: seeded noise of one seed over two sums would fall out of their difference, and nothing
        could be stated about both trials together. The data's seed stays, and with it who the clients are.
        Trials are not attacked, so that their transcripts hold no updates, and have no canaries, unless ``--set``
        asks for it.

        Raises:
            SettingError: The settings do not fit; names the trial.
        """
        typed = {key: typed_value(text) for key, text in values.items()}
        name = trial_id(typed, repeat)
        changes = [f"{key}={text}" for key, text in values.items() if not _is_no_noise(key, text)]
        if any(_is_no_noise(key, text) for key, text in values.items()):
            changes += NO_NOISE
        given = (*UNWATCHED, *self.overrides, *changes)
        try:
            settings = load_settings(self.experiment, given)
            if SEED not in values:
                seed = _drawn_seed(settings.training.seed, typed, repeat)
                settings = load_settings(self.experiment, (*given, f"{SEED}={seed}"))
        except SettingError as error:
            raise SettingError(
                error.what, where=f"trial {name}: {error.where}", value=error.value, remedy=error.remedy
            ) from None
        return Trial(name, typed, repeat, settings)


def grid(base: Base, vary: Sequence[str], seeds: int) -> list[Trial]:
    """All trials of a sweep, checked.

    Args:
        base: The experiment.
        vary: Each ``KEY=VALUE,VALUE,…``.
        seeds: Trials with the same values.

    Raises:
        SettingError: A value or a combination of values is refused, nothing is varied, or there are too many.
    """
    base.settings()  # a fault of the experiment itself is reported without a trial's name
    axes = dict(parse_axis(text) for text in vary)
    if len(axes) < len(vary):
        raise SettingError("one key is varied twice", where="--vary", value=list(vary), remedy="Give it one list")
    if SEED in axes and seeds > 1:
        raise SettingError(
            "seeds are varied twice", where="--seeds", value=seeds, remedy=f"Use it without --vary {SEED}"
        )
    total = math.prod(len(values) for values in axes.values()) * seeds
    if total > MOST_TRIALS:
        raise SettingError(f"more than {MOST_TRIALS} trials", where="--vary", value=total, remedy="Vary less")
    return [
        base.trial(dict(zip(axes, values, strict=True)), repeat)
        for values in itertools.product(*axes.values())
        for repeat in range(seeds)
    ]


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """``KEY=VALUE,VALUE,…`` to the key and its values; commas within brackets or quotes belong to a value.

    Raises:
        SettingError: It is not written so, or names a value twice.
    """
    key, separator, rest = text.partition("=")
    key, values = key.strip(), tuple(value.strip() for value in _split(rest))
    if not separator or not key or not all(values):
        raise SettingError(
            "is written KEY=VALUE,VALUE,…",
            where="--vary",
            value=text,
            remedy="For example --vary privacy.epsilon=1,4,inf",
        )
    if len({json.dumps(typed_value(value)) for value in values}) < len(values):
        raise SettingError("names a value twice", where="--vary", value=text, remedy="Use --seeds for repeats")
    return key, values


def typed_value(text: str) -> Any:
    """A value as ``--set`` understands it; infinity as ``"inf"``, which JSON can hold."""
    if text in INFINITE:
        return "inf"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def trial_id(values: Mapping[str, Any], repeat: int) -> str:
    """A folder's name: last parts of the keys with their values, and a hash where that would not be unique."""
    last = [key.rpartition(".")[2] for key in values]
    names = last if len(set(last)) == len(last) else list(values)
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values.values()]
    parts = [f"{name}-{text}" for name, text in zip(names, texts, strict=True)]
    readable = "_".join([*parts, f"seed-{repeat}"])
    safe = re.sub(r"[^A-Za-z0-9.+_-]+", "~", readable)
    if safe == readable and len(safe) <= 180:
        return safe
    return f"{safe[:160]}~{hashlib.sha256(readable.encode()).hexdigest()[:12]}"


def _drawn_seed(base: int, values: Mapping[str, Any], repeat: int) -> int:
    text = json.dumps([base, sorted(values.items()), repeat])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _is_no_noise(key: str, text: str) -> bool:
    return key == EPSILON and text in INFINITE


def _split(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]
