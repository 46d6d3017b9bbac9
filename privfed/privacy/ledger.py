"""An append-only record of everything that counts against ε, written before it is spent.

One JSON object a line, each with the SHA-256 of the line before and its own. The order of a round is

    reserve, on disk ▸ draw the noise ▸ commit the hash of the new model, on disk ▸ show the new model

so whatever was shown is on the ledger, wherever the process was killed. What was reserved counts as spent,
committed or not. In research mode a rerun draws the same noise: releases of the same key whose hashes agree are
one release seen twice, and count once. If they differ, the same noise hides two sums, and the difference of the
releases is the difference of the sums without any noise: each value after the first counts as a release with noise
multiplier 0, and ε is infinite. In secure mode every attempt has keys of its own.

A release names the observers whose ε it counts towards, each under the noise that hides it from them; who is not
named has ε = ∞. A commit may name the noise that the survivors really added, in place of what was reserved. Noise
that is correlated over rounds is one release of the whole run, under one key.

A chain cannot show that whole lines are missing at its end. ``close`` names the released model, and the report
names the chain's last hash, so that a cut ledger does not fit them any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfed.privacy.accounting import Guarantee, ObservedRelease, Release, by_observer
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


class Ledger:
    """The ledger of one run, open for writing; one writer at a time."""

    def __init__(self, path: Path, header: Header) -> None:
        """Create the ledger, or go on with the one that is there.

        Raises:
            LedgerError: It is damaged, in use, or has another header.
        """
        self._path = path
        self._broken = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LedgerError(f"cannot be opened: {error.strerror}", where=str(path)) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise LedgerError(
                "another process writes to it", where=str(path), remedy="Wait for it to end"
            ) from None
        try:
            self._resume(header)
        except BaseException:
            self.close()
            raise

    def _resume(self, header: Header) -> None:
        entries, whole, torn = _read(self._path)
        # Before anything is changed: a refused ledger stays as it was.
        if entries and _header(entries[0], self._path) != header:
            raise LedgerError(
                "belongs to a run with other settings", where=str(self._path), remedy="Name another folder"
            )
        if torn:
            os.ftruncate(self._file, whole)
        self._head = entries[-1]["sha256"] if entries else GENESIS
        self._sequence = len(entries)
        self._closed_with = entries[-1]["value_sha256"] if entries and entries[-1]["kind"] == "close" else None
        self.attempt = 1 + max((entry["attempt"] for entry in entries), default=0)
        self._secure = header.secure
        self._noise = {e["release"]: _spelling(e["releases"]) for e in entries if e["kind"] == "reserve"}
        self._reserved: set[int] = set()
        if not entries:
            self._append("header", version=VERSION, **header.__dict__)
            _sync_folder(self._path.parent)
        if torn:
            # An entry that was cut in mid-write came before anything was shown: it is no release.
            self._append("recovered", bytes_dropped=torn)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self._head

    def reserve(self, round_number: int, releases: Sequence[ObservedRelease], *, whole_run: bool = False) -> None:
        """Count a round as spent; on disk when this returns.

        Args:
            round_number: From 1.
            releases: What the round releases at worst, to whom.
            whole_run: Whether all rounds together are one release, whose noise is correlated over them.

        Raises:
            LedgerError: Not written, or an earlier attempt reserved the same release with other noise.
        """
        for seen in releases:
            z = seen.release.noise_multiplier
            if not (math.isfinite(z) and z >= 0):
                raise LedgerError("must be 0 or more", where="noise_multiplier", value=z)
        name = "run" if whole_run else str(round_number)
        key = f"{self.attempt}/{name}" if self._secure else name
        rows = releases_to_json(releases)
        # Refused here and not only by `verify_ledger`, since a line once written cannot be taken back.
        if self._noise.setdefault(key, _spelling(rows)) != _spelling(rows):
            raise LedgerError(
                f"an earlier attempt reserved round {round_number} with other noise or sampling",
                where=str(self._path),
                remedy="Name another folder",
            )
        self._append("reserve", round=round_number, releases=rows, release=key)
        self._reserved.add(round_number)

    def commit(self, round_number: int, digest: str, releases: Sequence[ObservedRelease] | None = None) -> None:
        """Note the hash of what is about to be shown; on disk when this returns.

        ``releases`` takes the place of what was reserved, now that it is known whose noise is in the sum.

        Raises:
            LedgerError: Not written, or this attempt has not reserved the round.
        """
        self._must_be_reserved(round_number)
        rows = None if releases is None else releases_to_json(releases)
        self._append("commit", round=round_number, value_sha256=digest, releases=rows)

    def abort(self, round_number: int, reason: str) -> None:
        """Note that a round ended without a release; it stays spent.

        Raises:
            LedgerError: Not written, or this attempt has not reserved the round.
        """
        self._must_be_reserved(round_number)
        self._append("abort", round=round_number, reason=reason)

    def finish(self, digest: str) -> None:
        """Note that the training is done, and the hash of the released model; once, if nothing followed."""
        if self._closed_with != digest:
            self._append("close", value_sha256=digest)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _must_be_reserved(self, round_number: int) -> None:
        if round_number not in self._reserved:
            raise LedgerError("was not reserved by this attempt", where="round", value=round_number)

    def _append(self, kind: str, **values: Any) -> None:
        if self._broken or self._file < 0:
            raise LedgerError(
                "takes no more entries, since it is closed or a write to it failed",
                where=str(self._path),
                remedy="Start the run again; it goes on from the last whole entry",
            )
        entry = {
            "sequence": self._sequence,
            "attempt": self.attempt,
            "kind": kind,
            **values,
            "previous": self._head,
        }
        entry["sha256"] = _hash(entry)
        line = (json.dumps(entry, allow_nan=False, ensure_ascii=True) + "\n").encode()
        # Until the entry is known to be on disk the file may end anywhere, and nothing must follow.
        self._broken = True
        try:
            written = os.write(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            raise LedgerError(f"cannot be written: {error.strerror}", where=str(self._path)) from None
        if written != len(line):
            raise LedgerError(
                "could not be written in full", where=str(self._path), remedy="Check the disk's space"
            )
        self._broken = False
        self._head, self._sequence = entry["sha256"], self._sequence + 1
        self._closed_with = entry["value_sha256"] if kind == "close" else None


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
    entries, _, torn = _read(path)
    header = _header(entries[0], path) if entries else None
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
    entries, _, _ = _read(path)
    return (_header(entries[0], path) if entries else None), _spent(entries, path)


def _spent(entries: Iterable[Mapping[str, Any]], path: Path) -> list[list[ObservedRelease]]:
    """What counts: each release key once with its noise, and once without for every further value under it."""
    reserved: dict[str, list[Any]] = {}
    realised: dict[str, list[Any]] = {}
    values: dict[tuple[str, int], set[str]] = {}
    current: dict[int, str] = {}
    for entry in entries:
        if entry["kind"] == "reserve":
            key, rows = entry["release"], entry["releases"]
            if _spelling(reserved.setdefault(key, rows)) != _spelling(rows):
                raise LedgerError(f"line {entry['sequence'] + 1} reserves {key} with other noise", where=str(path))
            current[entry["round"]] = key
        elif entry["kind"] == "commit":
            key = current.get(entry["round"], "")
            if not key:
                raise LedgerError(f"line {entry['sequence'] + 1} commits what was not reserved", where=str(path))
            values.setdefault((key, entry["round"]), set()).add(entry["value_sha256"])
            rows = entry["releases"]
            if rows is not None and _spelling(realised.setdefault(key, rows)) != _spelling(rows):
                raise LedgerError(f"line {entry['sequence'] + 1} commits {key} with other noise", where=str(path))
    spent = [releases_from_json(realised.get(key, rows)) for key, rows in reserved.items()]
    for (key, _), digests in values.items():
        # One draw of noise, several values: see the module's docstring.
        for _ in range(len(digests) - 1):
            bare = releases_from_json(reserved[key])
            spent.append([replace(seen, release=replace(seen.release, noise_multiplier=0.0)) for seen in bare])
    return spent


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


def _spelling(rows: Sequence[Any]) -> str:
    return json.dumps(rows, sort_keys=True)


def _read(path: Path) -> tuple[list[dict[str, Any]], int, int]:
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
        if entry["sha256"] != _hash(entry):
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


def _header(entry: Mapping[str, Any], path: Path) -> Header:
    if entry["kind"] != "header" or entry.get("version") != VERSION:
        raise LedgerError("line 1 is not a header of a version that this program knows", where=str(path))
    return Header(**{name: entry[name] for name in Header.__dataclass_fields__})


def _hash(entry: Mapping[str, Any]) -> str:
    body = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
