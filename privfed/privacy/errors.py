"""Faults of this package, each one line: what, where, value, remedy."""

from __future__ import annotations


class PrivacyError(ValueError):
    """A parameter for which no guarantee can be stated."""

    def __init__(self, what: str, *, where: str = "", value: object = None, remedy: str = "") -> None:
        place = f"{where}: " if where else ""
        shown = f" (got {value!r})" if value is not None else ""
        advice = f". {remedy}" if remedy else ""
        super().__init__(" ".join(f"{place}{what}{shown}{advice}".split()))


class NonFiniteUpdateError(PrivacyError):
    """A client update that holds NaN or infinity, which no clip can bound."""


class LedgerError(PrivacyError):
    """A ledger that is damaged, belongs to another run, or is in use."""
