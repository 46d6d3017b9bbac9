"""Figures as a reader of the page should see them."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any

from privfed.audit.evidence import RECOVERY_MARGIN_DB

DASH = "–"
THIN = "\u202f"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: float | None) -> str:
    """A whole number with its thousands apart, anything else to one decimal place."""
    if value is None:
        return DASH
    return (f"{value:,.0f}" if value == int(value) else f"{value:,.1f}").replace(",", THIN)


def percent(share: float | None, places: int = 1) -> str:
    """A share of 1."""
    return DASH if share is None else f"{share * 100:.{places}f}{THIN}%"


def points(share: float | None) -> str:
    """A difference of two shares, in percentage points."""
    return DASH if share is None else f"{_signed(share * 100).removeprefix('+')} points"


def decibels(value: float | None, *, signed: bool = False) -> str:
    """A PSNR, or with its sign a difference of two."""
    if value is None:
        return DASH
    return f"{_signed(value) if signed else f'{value:.1f}'.replace('-', '−')}{THIN}dB"


def epsilon(value: float | None) -> str:
    """Three digits, rounded up: an upper bound must stay one."""
    if value is None:
        return DASH
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    # Decimal, since a binary fraction would be lifted by its own rounding: 2.98 is not to become 2.99.
    raised = Context(prec=3, rounding=ROUND_CEILING).create_decimal(repr(float(value)))
    return f"{raised:.{max(0, 2 - raised.adjusted())}f}" if 0.001 <= raised < 1e6 else f"{raised:.2e}"


def epsilon_from(value: float) -> str:
    """Three digits, rounded down: a lower bound must stay one."""
    if math.isinf(value) or value == 0:
        return epsilon(value)
    lowered = Context(prec=3, rounding=ROUND_FLOOR).create_decimal(repr(float(value)))
    return f"{lowered:.{max(0, 2 - lowered.adjusted())}f}" if 0.001 <= lowered < 1e6 else f"{lowered:.2e}"


def power(value: float) -> str:
    """A small probability such as δ: 0.05, 10⁻⁵, 2.5·10⁻⁶."""
    if value == 0 or value >= 0.01:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    raised = "10" + str(int(exponent)).translate(_RAISED)
    factor = mantissa.rstrip("0").rstrip(".")
    return raised if factor == "1" else f"{factor}·{raised}"


def ratio(value: float | None) -> str:
    """A ratio that may be infinite."""
    if value is None:
        return DASH
    return "∞" if math.isinf(value) else f"{value:.3g}"


def octets(value: float | None) -> str:
    """Bytes, in decimal units."""
    if value is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g}{THIN}{unit}"
        value /= 1000
    return f"{value:.3g}{THIN}TB"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.3g}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def moment(created: str) -> str:
    """A UTC time stamp in ISO 8601, to the minute."""
    return f"{created[:10]} {created[11:16]} UTC"


def against_guess(margin_db: float) -> str:
    """What a margin over the best trivial guess comes to."""
    if margin_db >= RECOVERY_MARGIN_DB:
        return f"beats a guess by {decibels(margin_db)}"
    return "no better than a guess" if margin_db <= 0 else f"within {RECOVERY_MARGIN_DB:g} dB of a guess"


def words(name: str) -> str:
    """A name of a registry, to be read."""
    return name.replace("_", " ")


def yes_no(value: bool | None) -> str:
    """In words."""
    return DASH if value is None else "yes" if value else "no"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def sort_key(value: Any) -> str:
    """For the script that sorts: numbers as numbers, ∞ behind them, unknown ones last."""
    if value is None:
        return ""
    if value == "inf":
        return "Infinity"
    return str(value).replace("inf", "Infinity") if isinstance(value, float) else str(value)
