"""The lines of a ledger: what each kind of entry holds, their chain of hashes, and how they are read back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfed.privacy.accounting import ObservedRelease, Release
from privfed.privacy.errors import LedgerError, PrivacyError
from privfed.privacy.sampling import scheme_from_json, scheme_to_json

if TYPE_CHECKING:
    from privfed.privacy.distributed_accounting import DistributedRelease

VERSION = 2
GENESIS = "0" * 64
_START = '{"sequence": 0, "attempt": 1, "kind": "header", '
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "header": {
        "version": int,
        "settings": str,
        "mechanism": str,
        "unit": str,
        "delta": (int, float),
        "secure": bool,
    },
    "reserve": {"round": int, "releases": list, "release": str},
    "commit": {"round": int, "value_sha256": str, "releases": (list, type(None))},
    "abort": {"round": int, "reason": str},
    "recovered": {"bytes_dropped": int},
    "close": {"value_sha256": str},
}
"""What each kind of entry holds beside its place in the chain."""


@dataclass(frozen=True)
class Header:
    """What the whole ledger is about; a ledger never changes its header.

    Attributes:
        settings: Fingerprint of the run's settings.
        mechanism: Name of the mechanism; ``none`` when nothing is claimed.
        unit: Whose data is protected as one.
        delta: δ that ε is stated at.
        secure: Whether each attempt draws fresh noise.
    """

    settings: str
    mechanism: str
    unit: str
    delta: float
    secure: bool


def releases_to_json(releases: Sequence[ObservedRelease]) -> list[dict[str, Any]]:
    """Plain values."""
    return [
        {
            "observers": sorted(seen.observers),
            "sampling": scheme_to_json(seen.release.sampling),
            "noise_multiplier": seen.release.noise_multiplier,
            "shares": None if seen.release.shares is None else asdict(seen.release.shares),
        }
        for seen in releases
    ]


def releases_from_json(rows: Sequence[Mapping[str, Any]]) -> list[ObservedRelease]:
    """From plain values.

    Raises:
        PrivacyError: A row is none that ``releases_to_json`` writes.
    """
    found = []
    for row in rows:
        try:
            observers, z, scheme, _ = row["observers"], row["noise_multiplier"], row["sampling"], row["shares"]
            fits = (
                isinstance(observers, list)
                and observers
                and all(isinstance(o, str) for o in observers)
                and isinstance(z, int | float)
                and not isinstance(z, bool)
                and math.isfinite(z)
                and z >= 0
                and len(row) == 4
            )
        except (TypeError, KeyError):
            fits = False
        if not fits or not isinstance(scheme, Mapping):
            raise PrivacyError("not a release", value=row)
        release = Release(scheme_from_json(scheme), float(z), 1, _shares_from_json(row["shares"]))
        found.append(ObservedRelease(frozenset(observers), release))
    return found


def _shares_from_json(values: Mapping[str, Any] | None) -> DistributedRelease | None:
    if values is None:
        return None
    from privfed.privacy.distributed import DistributedParams
    from privfed.privacy.distributed_accounting import DistributedRelease

    try:
        return DistributedRelease(**{**values, "params": DistributedParams(**values["params"])})
    except (TypeError, KeyError):
        raise PrivacyError("not shares of integer noise", value=values) from None


def spelling(rows: Sequence[Any]) -> str:
    """One text for equal releases."""
    return json.dumps(rows, sort_keys=True)


def read_entries(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Checked entries, bytes of whole lines, and bytes of a torn line at the end."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"cannot be read: {error.strerror}", where=str(path)) from None
    whole = content.rfind(b"\n") + 1
    start = _START.encode()
    if not content.startswith(start[: len(content)]):
        # Never taken for a torn first entry, which a resuming writer would cut off.
        raise LedgerError("line 1 is not an entry of a ledger", where=str(path))
    entries: list[dict[str, Any]] = []
    previous = GENESIS
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        entry = _parse(line, number, path)
        if entry["previous"] != previous or entry["sequence"] != number - 1:
            raise LedgerError(f"line {number} does not follow line {number - 1}", where=str(path))
        if entry["sha256"] != entry_hash(entry):
            raise LedgerError(f"line {number} is not what was written: its hash differs", where=str(path))
        _check_fields(entry, number, path)
        previous = entry["sha256"]
        entries.append(entry)
    return entries, whole, len(content) - whole


def _parse(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        complete = (
            isinstance(entry, dict) and {"sequence", "attempt", "kind", "previous", "sha256"} <= entry.keys()
        )
        # One spelling for each entry: white space or escapes that JSON ignores would be a change nobody sees.
        if complete and entry["kind"] in tuple(FIELDS) and json.dumps(entry, ensure_ascii=True).encode() == line:
            return dict(entry)
    except (ValueError, TypeError, RecursionError):
        pass
    raise LedgerError(f"line {number} is not an entry of a ledger", where=str(path))


def _check_fields(entry: Mapping[str, Any], number: int, path: Path) -> None:
    """A chain says that nothing was changed after writing, not that this program wrote it."""
    fields = {"attempt": int, **FIELDS[entry["kind"]]}
    if surplus := entry.keys() - fields.keys() - {"sequence", "kind", "previous", "sha256"}:
        raise LedgerError(f"line {number} has an unknown {min(surplus)!r}", where=str(path))
    for name, kind in fields.items():
        value = entry.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise LedgerError(f"line {number} has no valid {name!r}", where=str(path), value=value)
    if entry.get("releases") is not None:
        try:
            releases_from_json(entry["releases"])
        except PrivacyError as error:
            raise LedgerError(f"line {number} has no valid 'releases': {error}", where=str(path)) from None


def header_of(entry: Mapping[str, Any], path: Path) -> Header:
    """The header in the first entry.

    Raises:
        LedgerError: It is none, or of a version that this program does not know.
    """
    if entry["kind"] != "header" or entry.get("version") != VERSION:
        raise LedgerError("line 1 is not a header of a version that this program knows", where=str(path))
    return Header(**{name: entry[name] for name in Header.__dataclass_fields__})


def entry_hash(entry: Mapping[str, Any]) -> str:
    """SHA-256 over all of an entry but its own hash."""
    body = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
