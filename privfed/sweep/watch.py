"""What a person sees while trials run: a bar of rounds on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from privfed.console import Console
from privfed.report.numbers import duration
from privfed.sweep.pool import Event
from privfed.sweep.trial import TrialResult


class Watch:
    """Follows the events of trials; ``rounds`` are those still to train."""

    def __init__(self, console: Console, title: str, trials: int, rounds: int) -> None:
        self._console, self._title, self._trials, self._rounds = console, title, trials, rounds
        self._started = time.monotonic()
        self._ended = self._trained = 0
        self._of_trial: dict[str, int] = {}

    @contextmanager
    def open(self) -> Iterator[Watch]:
        """Show the bar, if there is a terminal to show it on."""
        self._advance = None
        if not sys.stderr.isatty():
            yield self
            return
        with self._console.progress(f"{self._title}, rounds", self._rounds) as advance:
            self._advance = advance
            yield self

    def round(self, event: Event) -> None:
        """Rounds of a trial have ended."""
        self._move(event.trial.id, event.rounds, f"{self._ended}/{self._trials} trials, {event.words}")

    def ended(self, event: Event, result: TrialResult) -> None:
        """A trial has ended: what it was expected to train and did not counts as behind."""
        self._ended += 1
        missing = event.trial.settings.training.rounds - self._of_trial.get(result.id, 0)
        words = f"{result.id}: {outcome(result)}"
        self._move(result.id, max(0, missing), f"{self._ended}/{self._trials} trials")
        if self._advance is None:
            self._console.say(f"{self._title} {self._ended}/{self._trials}  {words}{self._time_to_go()}")

    def _move(self, trial: str, rounds: int, words: str) -> None:
        self._trained += rounds
        self._of_trial[trial] = self._of_trial.get(trial, 0) + rounds
        if self._advance is not None:
            for _ in range(rounds):
                self._advance(words)

    def _time_to_go(self) -> str:
        if not 0 < self._trained < self._rounds:
            return ""
        passed = time.monotonic() - self._started
        return f" (about {duration(passed * (self._rounds / self._trained - 1))} to go)"


def outcome(result: TrialResult) -> str:
    """How a trial ended, in a few words."""
    if result.status != "done":
        return f"{result.status}{f': {result.error}' if result.error else ''}"
    accuracy = "unknown" if result.test_accuracy is None else f"{result.test_accuracy:.4f}"
    return f"test accuracy {accuracy} after {result.rounds} rounds"
