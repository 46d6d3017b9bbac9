"""What a server counts: by cause, by stage, since it was started. Read by the metrics and the status page."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privfed.privacy.accounting import Guarantee

MOST_LINES = 1000
"""About one client, since the start: what it does beyond is counted and no longer written down."""


@dataclass(frozen=True)
class Counts:
    """Copies of counters: refusals by cause, rounds by outcome, closed stages and their seconds by name."""

    refused: Mapping[str, int]
    rounds: Mapping[str, int]
    stages: Mapping[str, int]
    stage_seconds: Mapping[str, float]


class Tally:
    """Counters, and the newest figures of the training; for any thread.

    Args:
        events: A file to append what happens to, a JSON object a line; never keys, shares or updates.
    """

    def __init__(self, events: Path | None = None) -> None:
        self._lock = threading.Lock()
        self.refused: Counter[str] = Counter()
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        self.stages: Counter[str] = Counter()
        self.received_bytes = self.sent_bytes = self.late = self.repeated = 0
        self.rounds: Counter[str] = Counter()
        self.now: dict[str, Any] = {"state": "starting", "round": 0, "stage": None, "cohort": 0, "survivors": 0}
        self.present = 0
        self.accuracy: float | None = None
        self.epsilon: Mapping[str, tuple[float, Mapping[str, str]]] = {}
        self.started = time.time()
        self._events = None if events is None else events.open("a", encoding="utf-8")
        self._lines: Counter[int] = Counter()

    def event(self, what: str, *, client: int | None = None, **values: Any) -> None:
        """Write an event down, unless there were too many about ``client``."""
        if self._events is None:
            return
        if client is not None:
            with self._lock:
                self._lines[client] += 1
                lines = self._lines[client]
            if lines > MOST_LINES:
                return
            values["client"] = client
            if lines == MOST_LINES:
                what, values = "no more lines", {"client": client}
        line = json.dumps({"time": round(time.time(), 3), "event": what, **values}, allow_nan=False)
        with self._lock:
            self._events.write(line + "\n")
            self._events.flush()

    def refuse(self, cause: str, client: int | None = None, reason: str = "") -> None:
        """Count a refusal; one of a client that is known is written down as well."""
        with self._lock:
            self.refused[cause] += 1
        if client is not None:
            self.event("refused", client=client, cause=cause, reason=reason[:400])

    def round(self, outcome: str) -> None:
        """Count a round that ended: ``completed`` or ``aborted``."""
        with self._lock:
            self.rounds[outcome] += 1

    def counts(self) -> Counts:
        """What is counted by name, as of now: it may be gone through while other threads count on."""
        with self._lock:
            return Counts(dict(self.refused), dict(self.rounds), dict(self.stages), dict(self.stage_seconds))

    def stage(self, name: str, seconds: float) -> None:
        """Count a stage that ended."""
        with self._lock:
            self.stage_seconds[name] += seconds
            self.stages[name] += 1

    def spend(self, guarantees: Mapping[str, Guarantee]) -> None:
        """Note what is spent by now, with all that it depends on."""
        self.epsilon = {
            observer: (
                g.epsilon,
                {"delta": f"{g.delta:g}", "unit": g.unit, "neighbouring": g.neighbouring, "sampling": g.sampling},
            )
            for observer, g in guarantees.items()
        }

    def close(self) -> None:
        """Close the file of events."""
        if self._events is not None:
            self._events.close()
            self._events = None
