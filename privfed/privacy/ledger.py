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
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privfed.privacy.accounting import ObservedRelease
from privfed.privacy.errors import LedgerError
from privfed.privacy.ledger_entries import (
    GENESIS,
    VERSION,
    Header,
    entry_hash,
    header_of,
    read_entries,
    releases_to_json,
    spelling,
)


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
        entries, whole, torn = read_entries(self._path)
        # Before anything is changed: a refused ledger stays as it was.
        if entries and header_of(entries[0], self._path) != header:
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
        self._noise = {e["release"]: spelling(e["releases"]) for e in entries if e["kind"] == "reserve"}
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
        if self._noise.setdefault(key, spelling(rows)) != spelling(rows):
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
        entry["sha256"] = entry_hash(entry)
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


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
