"""Trials run, watched and kept in one folder: what sweeps and searches have in common."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from privfed.console import Console
from privfed.errors import OutputError
from privfed.sweep.grid import Trial
from privfed.sweep.pool import Event, Runner
from privfed.sweep.trial import TrialFolders, TrialResult
from privfed.sweep.watch import Watch

TRIALS, LOGS = "trials", "logs"


class Campaign:
    """Runs trials and keeps their results, those of earlier runs in the same folder among them.

    Attributes:
        results: By trial, in the order they were asked for; ``unfinished`` until it is known better.
    """

    def __init__(self, folders: TrialFolders, runner: Runner, console: Console) -> None:
        self._folders, self._runner, self._console = folders, runner, console
        self.results: dict[str, TrialResult] = {}

    def run(self, trials: Sequence[Trial], title: str = "trial") -> list[TrialResult]:
        """Run what is not done yet; a trial that fails does not keep the others from running.

        Raises:
            OutputError: A trial's folder holds another run; nothing was run then.
            KeyboardInterrupt: The user stopped it; ``results`` hold what is done.
        """
        self._folders.check(trials)
        waiting = []
        for trial in trials:
            earlier = self._folders.finished(trial)
            self.results[trial.id] = earlier or self._folders.unfinished(trial)
            if earlier is None:
                waiting.append(trial)
        if len(waiting) < len(trials):
            done = len(trials) - len(waiting)
            self._console.say(f"{title}: {done} of {len(trials)} trials are done already")
        if waiting:
            rounds = sum(trial.settings.training.rounds for trial in waiting)
            with Watch(self._console, title, len(waiting), rounds).open() as watch:
                self._runner.run(
                    [(trial, self._folders.of(trial)) for trial in waiting], lambda event: self._note(event, watch)
                )
        return [self.results[trial.id] for trial in trials]

    def _note(self, event: Event, watch: Watch) -> None:
        if event.kind == "round":
            watch.round(event)
            return
        if event.kind == "done" and event.figures is not None:
            result = self._folders.done(event.trial, event.figures)
        elif event.kind == "failed":
            result = self._folders.failed(event.trial, event.words)
        else:
            result = self._folders.unfinished(event.trial)
        self.results[result.id] = result
        watch.ended(event, result)


@contextmanager
def claimed(out: Path, files: Collection[str]) -> Iterator[TrialFolders]:
    """The folder of a sweep for as long as it runs, new, empty, or holding nothing but trials and ``files``.

    Raises:
        OutputError: It cannot be written, holds something else, or another process works in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}", where=f"--out {out}", remedy="Name another folder"
        ) from None
    try:
        foreign = {path.name for path in out.iterdir() if not path.name.startswith(".")} - {TRIALS, LOGS, *files}
        if foreign:
            raise OutputError(
                "is not empty and holds something else",
                where=f"--out {out}",
                value=min(foreign),
                remedy="Name an empty or a new folder",
            )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(
                "another process works in it", where=f"--out {out}", remedy="Wait for it to end"
            ) from None
        yield TrialFolders(out)
    finally:
        os.close(lock)
