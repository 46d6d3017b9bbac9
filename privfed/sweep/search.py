"""Where a search looks: ranges of settings, points spread evenly over them, and points around the best ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from privfed.audit.evidence import Part
from privfed.config import Settings
from privfed.errors import SettingError

SEARCHED = (
    "privacy.clip_norm=0.05:2:log",
    "training.learning_rate=0.01:1:log",
    "training.local_epochs=1:10:log",
    "training.server_learning_rate=0.1:2:log",
    "training.server_momentum=0:0.95",
)
"""What is searched unless ``--range`` says otherwise."""
FIXED = ("cohort.", "data.", "secure_aggregation.", "attacks.", "audit.")
SPENDING = (
    *(f"privacy.{key}" for key in ("mechanism", "against", "unit", "epsilon", "noise_multiplier", "max_epsilon")),
    *(f"privacy.{key}" for key in ("delta", "randomness")),
    *(f"training.{key}" for key in ("rounds", "seed", "patience", "evaluate_every", "checkpoint_every")),
)
"""What no search may move: all trials are to spend the same, on the same clients. Rounds are among it, since the
noise is calibrated to them, so that a short trial says little about a long one."""
FIRST_SPREAD, SHRINK = 0.15, 0.75
"""Standard deviation of the first refinement, of each range's width, and what each further one has of it."""
MOST_DRAWS = 100


class Range(Part):
    """Values of one setting.

    Attributes:
        key: Its path.
        low: Smallest.
        high: Largest.
        log: Whether equal ratios count as equal steps.
        whole: Whether values are whole numbers.
    """

    key: str
    low: FiniteFloat
    high: FiniteFloat
    log: bool
    whole: bool

    def text(self, place: float) -> str:
        """The value at ``place`` in [0, 1], to three digits, as after ``--set KEY=``."""
        if self.log:
            value = self.low * (self.high / self.low) ** place
        else:
            value = self.low + (self.high - self.low) * place
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.whole else f"{value:.3g}"

    def place(self, value: float) -> float:
        """Where a value lies, in [0, 1] if it is within the range; the nearer end if not."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def ranges_for(settings: Settings, given: Sequence[str]) -> list[Range]:
    """The usual ranges that fit the settings, with those of ``given`` in their place or beside them.

    Raises:
        SettingError: A range is not written so, empty, or of a setting that a search may not move.
    """
    chosen: dict[str, str] = {}
    for text in SEARCHED:
        key, _, rest = text.partition("=")
        if key == "privacy.clip_norm" and settings.privacy.clip_norm is None:
            continue
        if key == "training.server_momentum" and settings.training.server_optimizer != "sgd":
            continue
        chosen[key] = rest
    for text in given:
        key, separator, rest = (part.strip() for part in text.partition("="))
        if not separator or not key:
            raise _unreadable(text)
        if key in SPENDING or key.startswith(FIXED):
            raise SettingError(
                "is not searched: all trials spend the same, on the same clients",
                where="--range",
                value=text,
                remedy="Use privfed sweep --vary",
            )
        chosen[key] = rest
    found = [_range(key, rest, settings) for key, rest in chosen.items() if rest != "none"]
    if not found:
        raise SettingError("nothing is left to search", where="--range", value=list(given))
    return found


def value_of(settings: Settings, key: str) -> Any:
    """A setting by its path.

    Raises:
        SettingError: There is none.
    """
    found: Any = settings
    for part in key.split("."):
        if part not in getattr(type(found), "model_fields", {}):
            raise SettingError("unknown key", where="--range", value=key, remedy="Name a key of the settings")
        found = getattr(found, part)
    return found


def spread(ranges: Sequence[Range], count: int, seed: int) -> list[dict[str, str]]:
    """``count`` points of a scrambled Sobol sequence (Owen 1998), evenly spread; a longer one begins the same."""
    from scipy.stats import qmc  # half a second to import

    power = max(0, math.ceil(math.log2(max(1, count))))
    places = qmc.Sobol(len(ranges), seed=seed).random_base2(power)[:count]
    return [_values(ranges, row) for row in places]


def around(
    ranges: Sequence[Range], centres: Sequence[Mapping[str, Any]], generation: int, seed: int, tried: set[str]
) -> list[dict[str, str]]:
    """One new point near each of ``centres``, nearer in later generations (from 0), and none of ``tried``."""
    rng = np.random.default_rng([seed, generation])
    spread_now = FIRST_SPREAD * SHRINK**generation
    found = []
    for centre in centres:
        middle = np.array([one.place(float(centre[one.key])) for one in ranges])
        for _ in range(MOST_DRAWS):
            drawn = middle + rng.normal(0, spread_now, len(ranges))
            drawn = np.abs(drawn)  # reflected at both ends, so that the borders are not favoured
            values = _values(ranges, np.clip(1 - np.abs(1 - drawn), 0, 1))
            if signature(values) not in tried:
                tried.add(signature(values))
                found.append(values)
                break
    return found


def signature(values: Mapping[str, Any]) -> str:
    """Tells points apart."""
    return ",".join(f"{key}={float(value):.6g}" for key, value in values.items())


def _values(ranges: Sequence[Range], places: NDArray[np.float64]) -> dict[str, str]:
    return {one.key: one.text(float(place)) for one, place in zip(ranges, places, strict=True)}


def _range(key: str, text: str, settings: Settings) -> Range:
    present = value_of(settings, key)
    if isinstance(present, bool | str | list) or hasattr(present, "model_fields"):
        raise SettingError("is not a number, which ranges are of", where="--range", value=key)
    low, *rest = text.split(":")
    if not 1 <= len(rest) <= 2 or (len(rest) == 2 and rest[1] not in ("log", "linear")):
        raise _unreadable(f"{key}={text}")
    log, whole = rest[-1] == "log", isinstance(present, int)
    try:
        ends = float(low), float(rest[0])
    except ValueError:
        raise _unreadable(f"{key}={text}") from None
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
        raise SettingError("needs a low end below its high end", where="--range", value=f"{key}={text}")
    if log and ends[0] <= 0:
        raise SettingError("begins above 0 when it is logarithmic", where="--range", value=f"{key}={text}")
    if whole and any(end != round(end) for end in ends):
        raise SettingError("is of whole numbers", where="--range", value=f"{key}={text}")
    return Range(key=key, low=ends[0], high=ends[1], log=log, whole=whole)


def _unreadable(text: str) -> SettingError:
    return SettingError(
        "is written KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=none",
        where="--range",
        value=text,
        remedy="For example --range privacy.clip_norm=0.05:2:log",
    )
