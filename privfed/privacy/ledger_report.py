"""What a ledger says: ε by observer and the state of the run, recomputed from its file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privfed.privacy.accounting import Guarantee, ObservedRelease, by_observer
from privfed.privacy.errors import LedgerError, PrivacyError
from privfed.privacy.ledger_entries import GENESIS, Header, header_of, read_entries, releases_from_json, spelling


@dataclass(frozen=True)
class LedgerReport:
    """What a ledger says, recomputed from its file alone.

    Attributes:
        header: As written; ``None`` when not even the header was.
        entries: Whole lines.
        attempts: How often the run was started.
        reserved: Rounds reserved, all attempts together.
        committed: Rounds committed, all attempts together.
        aborted: Rounds that ended without a release.
        spent: Releases that count.
        guarantees: By observer, the composition of what counts against it; ε = ∞ for who is not named.
        final_sha256: Hash of the released model; ``None`` while the run is not finished.
        head: Hash of the last entry.
        torn_bytes: Length of an entry cut off at the end by a kill in mid-write; it is no release.
    """

    header: Header | None
    entries: int
    attempts: int
    reserved: int
    committed: int
    aborted: int
    spent: int
    guarantees: Mapping[str, Guarantee]
    final_sha256: str | None
    head: str
    torn_bytes: int

    @property
    def guarantee(self) -> Guarantee | None:
        """Against whoever sees the released model only; ``None`` when no mechanism is claimed."""
        return self.guarantees.get("release")


def verify_ledger(path: Path) -> LedgerReport:
    """Recompute every hash and the ε of a ledger from the file alone.

    Raises:
        LedgerError: The file is missing, or a line is not what was written.
    """
    entries, _, torn = read_entries(path)
    header = header_of(entries[0], path) if entries else None
    spent = _spent(entries, path)
    guarantees: Mapping[str, Guarantee] = {}
    if header is not None and header.mechanism != "none":
        try:
            guarantees = by_observer(spent, header.delta, header.unit)
        except PrivacyError as error:
            raise LedgerError(f"holds what does not compose: {error}", where=str(path)) from None
    closes = [entry for entry in entries if entry["kind"] == "close"]
    kinds = [entry["kind"] for entry in entries]
    return LedgerReport(
        header,
        len(entries),
        max((entry["attempt"] for entry in entries), default=0),
        kinds.count("reserve"),
        kinds.count("commit"),
        kinds.count("abort"),
        len(spent),
        guarantees,
        closes[-1]["value_sha256"] if closes and entries[-1] is closes[-1] else None,
        entries[-1]["sha256"] if entries else GENESIS,
        torn,
    )


def spent_releases(path: Path) -> tuple[Header | None, list[list[ObservedRelease]]]:
    """The header, and what counts, one item a release: to compose one run with others on the same clients.

    Raises:
        LedgerError: The file is missing, or a line is not what was written.
    """
    entries, _, _ = read_entries(path)
    return (header_of(entries[0], path) if entries else None), _spent(entries, path)


def ended_rounds(path: Path) -> set[int]:
    """Rounds that were committed or aborted, in any attempt.

    Raises:
        LedgerError: The file is missing, or a line is not what was written.
    """
    entries, _, _ = read_entries(path)
    return {entry["round"] for entry in entries if entry["kind"] in ("commit", "abort")}


def _spent(entries: Iterable[Mapping[str, Any]], path: Path) -> list[list[ObservedRelease]]:
    """What counts: each release key once with its noise, and once without for every further value under it."""
    reserved: dict[str, list[Any]] = {}
    realised: dict[str, list[Any]] = {}
    values: dict[tuple[str, int], set[str]] = {}
    current: dict[int, str] = {}
    for entry in entries:
        if entry["kind"] == "reserve":
            key, rows = entry["release"], entry["releases"]
            if spelling(reserved.setdefault(key, rows)) != spelling(rows):
                raise LedgerError(f"line {entry['sequence'] + 1} reserves {key} with other noise", where=str(path))
            current[entry["round"]] = key
        elif entry["kind"] == "commit":
            key = current.get(entry["round"], "")
            if not key:
                raise LedgerError(f"line {entry['sequence'] + 1} commits what was not reserved", where=str(path))
            values.setdefault((key, entry["round"]), set()).add(entry["value_sha256"])
            rows = entry["releases"]
            if rows is not None and spelling(realised.setdefault(key, rows)) != spelling(rows):
                raise LedgerError(f"line {entry['sequence'] + 1} commits {key} with other noise", where=str(path))
    spent = [releases_from_json(realised.get(key, rows)) for key, rows in reserved.items()]
    for (key, _), digests in values.items():
        # One draw of noise, several values: see the module's docstring.
        for _ in range(len(digests) - 1):
            bare = releases_from_json(reserved[key])
            spent.append([replace(seen, release=replace(seen.release, noise_multiplier=0.0)) for seen in bare])
    return spent
