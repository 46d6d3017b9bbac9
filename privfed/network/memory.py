"""What a client remembers from one process to the next: the plans it accepted, and how often it contributed."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privfed.errors import DataError, OutputError
from privfed.files import write_text
from privfed.network.errors import DeclinedError
from privfed.secagg import SessionsOnDisk

_RUNS = "runs.json"


@dataclass(frozen=True)
class AcceptedRun:
    """A run that a client takes part in.

    Attributes:
        offer: Digest of the offer that it accepted.
        epsilon: What it counts for the whole run.
        rounds: It contributes to so many rounds at most.
        contributed: To so many it did.
        revocations: Number of the newest revocation list it was shown.
        apart: Rounds from one contribution to the next, at least; 1 where the claim does not rest on it.
        last: Round of the last contribution; 0 before the first.
    """

    offer: str
    epsilon: float
    rounds: int
    contributed: int = 0
    revocations: int = 0
    apart: int = 1
    last: int = 0


class ClientMemory:
    """A folder of one client's, for one process at a time.

    Raises:
        OutputError: The folder cannot be made, or another process has it.
        DataError: What it holds cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a")
        except OSError as error:
            raise OutputError(f"cannot be made: {error.strerror}", where=str(folder)) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise OutputError(
                f"cannot be used: {error.strerror}",
                where=str(folder),
                remedy="One process at a time acts for an identity",
            ) from None
        self.sessions = SessionsOnDisk(folder / "sessions")
        self._path = folder / _RUNS
        self._runs: dict[str, AcceptedRun] = {}
        if self._path.exists():
            try:
                stored: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
                self._runs = {run: AcceptedRun(**values) for run, values in stored.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"cannot be read: {error}", where=str(self._path)) from None

    def close(self) -> None:
        """Leave the folder to others."""
        self._lock.close()

    def spent_elsewhere(self, run: str) -> float:
        """The ε of all accepted runs but this one, added up."""
        return sum(accepted.epsilon for name, accepted in self._runs.items() if name != run)

    def check(self, run: str, offer: str) -> None:
        """Refuse another offer for a run that was accepted.

        Raises:
            DeclinedError: The server has changed the plan.
        """
        known = self._runs.get(run)
        if known is not None and known.offer != offer:
            raise DeclinedError("plan changed", "the plan of this run is not the one that was accepted")

    def accept(self, run: str, offer: str, epsilon: float, rounds: int, apart: int = 1) -> None:
        """Note an accepted run; one that is known already stays as it is."""
        if run not in self._runs:
            self._runs[run] = AcceptedRun(offer, epsilon, rounds, apart=apart)
            self._save()

    def claim_contribution(self, run: str, number: int) -> None:
        """Note one more contribution, to round ``number``, on disk before it is made.

        The same round again is one that the server lost before anybody saw its sum.

        Raises:
            DeclinedError: The plan has had all its rounds, or this one comes sooner after the last than the plan's
                claim allows: what is asked for now was not accounted.
        """
        known = self._runs[run]
        if known.contributed >= known.rounds:
            raise DeclinedError(
                "rounds used up", f"all {known.rounds} rounds of the accepted plan were contributed to"
            )
        if known.apart > 1 and known.last and number != known.last and number - known.last < known.apart:
            raise DeclinedError(
                "rounds used up",
                f"round {number} comes after round {known.last}: the plan has {known.apart} rounds between",
            )
        more = {"contributed": known.contributed + 1, "last": number}
        self._runs[run] = AcceptedRun(**{**asdict(known), **more})
        self._save()

    def note_revocations(self, run: str, number: int) -> None:
        """Note the number of a revocation list.

        Raises:
            DeclinedError: A newer one was shown before.
        """
        known = self._runs[run]
        if number < known.revocations:
            raise DeclinedError(
                "revocation list", f"revocation list {number} is older than {known.revocations}, shown before"
            )
        if number > known.revocations:
            self._runs[run] = AcceptedRun(**{**asdict(known), "revocations": number})
            self._save()

    def _save(self) -> None:
        write_text(self._path, json.dumps({run: asdict(a) for run, a in self._runs.items()}, indent=1) + "\n")
