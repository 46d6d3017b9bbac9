"""An append-only record of everything that counts against ε, written before it is spent.

One JSON object a line, each with the SHA-256 of the line before and its own. The order of a round is

    reserve, on disk ▸ draw the noise ▸ commit the hash of the new model, on disk ▸ show the new model

so whatever was shown is on the ledger, wherever the process was killed. What was reserved counts as spent,
committed or not. In research mode a rerun draws the same noise: releases of the same key whose hashes agree are
one release seen twice, and count once; if they differ, each counts. In secure mode every attempt has keys of its
own.

A chain cannot show that whole lines are missing at its end. ``close`` names the released model, and the report
names the chain's last hash, so that a cut ledger does not fit them any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfed.privacy.accounting import Guarantee, Release, compose
from privfed.privacy.errors import LedgerError
from privfed.privacy.sampling import SamplingScheme, scheme_from_json, scheme_to_json

VERSION = 1
GENESIS = "0" * 64
KINDS = ("header", "reserve", "commit", "abort", "recovered", "close")


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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
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
        if torn:
            os.ftruncate(self._file, whole)
        self._head = entries[-1]["sha256"] if entries else GENESIS
        self._sequence = len(entries)
        self.attempt = 1 + max((entry["attempt"] for entry in entries), default=0)
        self._secure = header.secure
        if not entries:
            self._append("header", version=VERSION, **header.__dict__)
            _sync_folder(self._path.parent)
        elif _header(entries[0], self._path) != header:
            raise LedgerError(
                "belongs to a run with other settings", where=str(self._path), remedy="Name another folder"
            )
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

    def reserve(self, round_number: int, sampling: SamplingScheme, noise_multiplier: float) -> None:
        """Count a round as spent; on disk when this returns."""
        key = f"{self.attempt}/{round_number}" if self._secure else str(round_number)
        self._append(
            "reserve",
            round=round_number,
            sampling=scheme_to_json(sampling),
            noise_multiplier=noise_multiplier,
            release=key,
        )

    def commit(self, round_number: int, digest: str) -> None:
        """Note the hash of what is about to be shown; on disk when this returns."""
        self._append("commit", round=round_number, value_sha256=digest)

    def abort(self, round_number: int, reason: str) -> None:
        """Note that a round ended without a release; it stays spent."""
        self._append("abort", round=round_number, reason=reason)

    def finish(self, digest: str) -> None:
        """Note that the training is done, and the hash of the released model."""
        self._append("close", value_sha256=digest)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, kind: str, **values: Any) -> None:
        entry = {
            "sequence": self._sequence,
            "attempt": self.attempt,
            "kind": kind,
            **values,
            "previous": self._head,
        }
        entry["sha256"] = _hash(entry)
        line = (json.dumps(entry, allow_nan=False, ensure_ascii=True) + "\n").encode()
        if os.write(self._file, line) != len(line):
            raise LedgerError(
                "could not be written in full", where=str(self._path), remedy="Check the disk's space"
            )
        os.fsync(self._file)
        self._head, self._sequence = entry["sha256"], self._sequence + 1


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
        guarantee: Composition of what counts; ``None`` when no mechanism is claimed.
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
    guarantee: Guarantee | None
    final_sha256: str | None
    head: str
    torn_bytes: int


def verify_ledger(path: Path) -> LedgerReport:
    """Recompute every hash and the ε of a ledger from the file alone.

    Raises:
        LedgerError: The file is missing, or a line is not what was written.
    """
    entries, _, torn = _read(path)
    header = _header(entries[0], path) if entries else None
    releases = _spent(entries, path)
    guarantee = None
    if header is not None and header.mechanism != "none":
        guarantee = compose(releases, header.delta)
    closes = [entry for entry in entries if entry["kind"] == "close"]
    kinds = [entry["kind"] for entry in entries]
    return LedgerReport(
        header,
        len(entries),
        max((entry["attempt"] for entry in entries), default=0),
        kinds.count("reserve"),
        kinds.count("commit"),
        kinds.count("abort"),
        sum(release.count for release in releases),
        guarantee,
        closes[-1]["value_sha256"] if closes and entries[-1] is closes[-1] else None,
        entries[-1]["sha256"] if entries else GENESIS,
        torn,
    )


def _spent(entries: Iterable[Mapping[str, Any]], path: Path) -> list[Release]:
    """What counts: each release key once for every different value committed under it, and at least once."""
    kinds: dict[str, tuple[str, float]] = {}
    values: dict[str, set[str]] = {}
    current: dict[int, str] = {}
    for entry in entries:
        if entry["kind"] == "reserve":
            key = entry["release"]
            kind = (json.dumps(entry["sampling"], sort_keys=True), float(entry["noise_multiplier"]))
            if kinds.setdefault(key, kind) != kind:
                raise LedgerError(f"line {entry['sequence'] + 1} reserves {key} with other noise", where=str(path))
            values.setdefault(key, set())
            current[entry["round"]] = key
        elif entry["kind"] == "commit":
            if entry["round"] not in current:
                raise LedgerError(f"line {entry['sequence'] + 1} commits what was not reserved", where=str(path))
            values[current[entry["round"]]].add(entry["value_sha256"])
    counts: dict[tuple[str, float], int] = {}
    for key, kind in kinds.items():
        counts[kind] = counts.get(kind, 0) + max(1, len(values[key]))
    return [Release(scheme_from_json(json.loads(text)), z, count) for (text, z), count in counts.items()]


def _read(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Checked entries, bytes of whole lines, and bytes of a torn line at the end."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"cannot be read: {error.strerror}", where=str(path)) from None
    whole = content.rfind(b"\n") + 1
    entries: list[dict[str, Any]] = []
    previous = GENESIS
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        entry = _parse(line, number, path)
        if entry["previous"] != previous or entry["sequence"] != number - 1:
            raise LedgerError(f"line {number} does not follow line {number - 1}", where=str(path))
        if entry["sha256"] != _hash(entry):
            raise LedgerError(f"line {number} is not what was written: its hash differs", where=str(path))
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
        if complete and entry["kind"] in KINDS and json.dumps(entry, ensure_ascii=True).encode() == line:
            return dict(entry)
    except (ValueError, TypeError, RecursionError):
        pass
    raise LedgerError(f"line {number} is not an entry of a ledger", where=str(path))


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
