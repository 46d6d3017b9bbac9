"""``privfed tune``: search for good settings on a budget of trials, and state what the search spends.

Half of the trials are spread evenly, the experiment's own settings first; then generations of points around the
best ones; at the end the finalists are trained again with other seeds. The best of many noisy trials is lucky as
well as good, so that the finalists, the experiment's own settings among them, are compared by these fresh
trainings alone.

All trials have the experiment's number of rounds and spend the same: noise is calibrated to the rounds, which is
why short trials are no stand-in for long ones here (as successive halving would have it).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import JsonValue

from privfed import __version__
from privfed.audit.evidence import Count, NonNegative, Part, Share, Tree
from privfed.console import Console
from privfed.errors import SettingError, Stopped
from privfed.files import write_text
from privfed.settings_file import dump_toml, load_settings
from privfed.sweep.campaign import LOGS, Campaign, claimed
from privfed.sweep.cost import SearchCost, search_cost
from privfed.sweep.grid import Base, Trial
from privfed.sweep.pool import Pool, Runner
from privfed.sweep.record import read_part
from privfed.sweep.run import show_failures
from privfed.sweep.search import Range, around, ranges_for, signature, spread, value_of
from privfed.sweep.statistics import Mean, mean
from privfed.sweep.trial import TrialResult, dump

SCHEMA_VERSION: Final = 1
TUNE_JSON, BEST_TOML = "tune.json", "best.toml"
GENERATION = 4
"""Trials of a refinement: a number of its own, so that the search does not depend on ``--jobs``."""
FINALISTS = 3
OBJECTIVES = ("test_accuracy", "train_accuracy")
Stage = Literal["start", "explore", "refine", "confirm"]


class Searched(Part):
    """One trial, and what it was for."""

    stage: Stage
    trial: TrialResult


class Best(Part):
    """The settings that were chosen."""

    values: dict[str, JsonValue]
    found: Share
    """The objective when these settings were found: the best of many, so it flatters."""
    confirmed: Mean | None
    """Of fresh trainings with other seeds; ``None`` when the budget left none."""


class Tune(Part):
    """Everything that ``tune.json`` holds."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601."""
    privfed_version: str
    status: Literal["complete", "partial"]
    """``partial`` when a trial failed or was not finished."""
    settings: Tree
    """Of the experiment."""
    objective: str
    ranges: tuple[Range, ...]
    budget: Count
    seed: Count
    start: Share | None
    """The objective with the experiment's own settings."""
    start_confirmed: Mean | None
    """The same of fresh trainings with other seeds."""
    best: Best | None
    trials: tuple[Searched, ...]
    cost: SearchCost
    seconds: NonNegative


def read_tune(path: Path) -> Tune:
    """Read and check a ``tune.json``.

    Raises:
        PrivFedError: It is missing or not what this program writes.
    """
    return read_part(Tune, path)


def run_tune(
    base: Base,
    ranges: Sequence[str],
    budget: int,
    jobs: int,
    out: Path,
    console: Console,
    *,
    objective: str = "test_accuracy",
    seed: int = 0,
    runner: Runner | None = None,
) -> Tune:
    """Search, and write ``tune.json`` and ``best.toml``.

    Args:
        base: The experiment and the overrides of all trials.
        ranges: Each ``KEY=LOW:HIGH[:log]``, in place of the usual ones or beside them.
        budget: Trials in all.
        jobs: Worker processes.
        out: The search's folder: new, empty, or of a search that goes on.
        console: For progress.
        objective: What is to be large: one of ``OBJECTIVES``.
        seed: Of the search, not of the trainings.
        runner: In place of worker processes.

    Raises:
        PrivFedError: Something was refused.
        Stopped: The user asked for it; what is finished is kept, and written.
    """
    started = time.monotonic()
    if objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise SettingError("no such objective", where="--objective", value=objective, remedy=f"Known: {known}")
    settings = base.settings()
    chosen = ranges_for(settings, ranges)
    with claimed(out, (TUNE_JSON, BEST_TOML)) as folders, Pool(jobs, out / LOGS) as pool:
        campaign = Campaign(folders, runner or pool, console)
        search = Search(base, chosen, budget, objective, seed, campaign)
        interrupted = False
        try:
            search.run()
        except KeyboardInterrupt:
            interrupted = True
        best = search.best()
        results = tuple(campaign.results.values())
        tune = Tune(
            name=settings.name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            privfed_version=__version__,
            status="partial" if interrupted or any(r.status != "done" for r in results) else "complete",
            settings=settings.model_dump(mode="json"),
            objective=objective,
            ranges=tuple(chosen),
            budget=budget,
            seed=seed,
            start=search.start_score(),
            start_confirmed=search.start_confirmed(),
            best=best,
            trials=tuple(Searched(stage=search.stages[r.id], trial=r) for r in results),
            cost=search_cost(out, search.found(best)),
            seconds=time.monotonic() - started,
        )
        write_text(out / TUNE_JSON, dump(tune))
        if best is not None:
            changes = [f"{key}={value}" for key, value in best.values.items()]
            tuned = load_settings(base.experiment, (*base.overrides, *changes))
            write_text(out / BEST_TOML, dump_toml(tuned))
    if interrupted:
        done = sum(result.status == "done" for result in results)
        raise Stopped(f"stopped with {done} of {budget} trials done; the same command goes on from there", 130)
    return tune


class Search:
    """The trials one after another: the same for the same experiment, ranges, budget, seed and results."""

    def __init__(
        self, base: Base, ranges: Sequence[Range], budget: int, objective: str, seed: int, campaign: Campaign
    ) -> None:
        self._base, self._ranges, self._objective, self._seed = base, ranges, objective, seed
        self._campaign = campaign
        self._confirmations = budget // 5 if budget >= 10 else 0
        self._searched = budget - self._confirmations
        self._explored = math.ceil(self._searched / 2)
        self._start: Trial | None = None
        self.stages: dict[str, Stage] = {}

    def run(self) -> None:
        """Run all stages; the first one is resolved, and refused if need be, before anything is run."""
        self._campaign.run(self._first(), "explore")
        tried = {signature(result.values) for result in self._campaign.results.values()}
        generation, left = 0, self._searched - len(tried)
        while left > 0 and (ranked := self.ranked()):
            # Most points near the best one, and one near the runner-up: the best may be lucky.
            centres = [
                ranked[min(i // (GENERATION - 1), len(ranked) - 1)].values for i in range(min(GENERATION, left))
            ]
            points = around(self._ranges, centres, generation, self._seed, tried)
            if not points:
                break  # the ranges hold nothing that was not tried
            self._campaign.run([self._trial("refine", values) for values in points], f"refine {generation + 1}")
            generation, left = generation + 1, left - len(points)
        again = [
            self._trial("confirm", {key: str(value) for key, value in finalist.values.items()}, repeat)
            for finalist, repeat in self._fresh(self._finalists())
        ]
        self._campaign.run(again, "confirm")

    def ranked(self) -> list[TrialResult]:
        """The trials of the search that came to a result, the best first."""
        scored = [r for r in self._campaign.results.values() if r.seed == 0 and self._score(r) is not None]
        return sorted(scored, key=lambda result: -(self._score(result) or 0.0))

    def best(self) -> Best | None:
        """The finalist that did best in its fresh trainings, or the best of the search when there are none."""
        ranked, found = self.ranked(), []
        for finalist in self._finalists():
            confirmed = self._confirmed(finalist)
            if confirmed is not None:
                found.append(Best(values=finalist.values, found=self._known(finalist), confirmed=confirmed))
        if found:
            return max(found, key=lambda best: best.confirmed.value if best.confirmed else 0.0)
        return Best(values=ranked[0].values, found=self._known(ranked[0]), confirmed=None) if ranked else None

    def found(self, best: Best | None) -> TrialResult | None:
        """The trial that found the best settings."""
        return next((r for r in self.ranked() if best is not None and r.values == best.values), None)

    def start_confirmed(self) -> Mean | None:
        """The same in fresh trainings."""
        return self._confirmed(self._campaign.results[self._start.id]) if self._start else None

    def start_score(self) -> float | None:
        """The objective with the experiment's own settings."""
        return self._score(self._campaign.results[self._start.id]) if self._start else None

    def _finalists(self) -> list[TrialResult]:
        """The best of the search, and the experiment's own settings, which nothing replaces uncompared."""
        ranked = self.ranked()
        start = [r for r in ranked if self._start is not None and r.id == self._start.id]
        others = [r for r in ranked if r not in start]
        return (start + others)[:FINALISTS]

    def _confirmed(self, finalist: TrialResult) -> Mean | None:
        again = [r for r in self._campaign.results.values() if r.seed > 0 and r.values == finalist.values]
        scores = [score for r in again if (score := self._score(r)) is not None]
        return mean(scores) if scores else None

    def _first(self) -> list[Trial]:
        own = {one.key: value_of(self._base.settings(), one.key) for one in self._ranges}
        trials = []
        if all(value is not None for value in own.values()):
            self._start = self._trial("start", {key: str(value) for key, value in own.items()})
            trials.append(self._start)
        seen = {trial.id for trial in trials}
        for values in spread(self._ranges, self._explored - len(trials), self._seed):
            trial = self._trial("explore", values)
            if trial.id not in seen:  # two points of a range of whole numbers can be the same
                seen.add(trial.id)
                trials.append(trial)
        return trials

    def _trial(self, stage: Stage, values: dict[str, str], repeat: int = 0) -> Trial:
        trial = self._base.trial(values, repeat)
        self.stages.setdefault(trial.id, stage)
        return trial

    def _fresh(self, finalists: Sequence[TrialResult]) -> Iterator[tuple[TrialResult, int]]:
        for turn in range(self._confirmations if finalists else 0):
            yield finalists[turn % len(finalists)], 1 + turn // len(finalists)

    def _score(self, result: TrialResult) -> float | None:
        return result.test_accuracy if self._objective == "test_accuracy" else result.train_accuracy

    def _known(self, result: TrialResult) -> float:
        score = self._score(result)
        assert score is not None  # ranked trials have one
        return score


def fragment(values: dict[str, JsonValue]) -> str:
    """The chosen settings as TOML, table by table."""
    tables: dict[str, list[str]] = {}
    for path, value in values.items():
        table, _, key = path.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {value}")
    parts = [[f"[{table}]", *lines] if table else lines for table, lines in sorted(tables.items())]
    return "\n\n".join("\n".join(part) for part in parts)


def show_tune(tune: Tune, out: Path, console: Console) -> None:
    """The end of a search on a terminal."""
    show_failures(tuple(searched.trial for searched in tune.trials), console)
    if tune.best is None:
        console.say_result("No trial has come to a result.")
    else:
        console.say_result(fragment(tune.best.values))
        console.figures(_figures(tune, tune.best))
        console.path("best settings, complete", out / BEST_TOML)
    console.say_result(f"{tune.cost.statement} Training {BEST_TOML} anew spends its own ε once more.")


def _figures(tune: Tune, best: Best) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"{tune.objective} of the experiment as it was": tune.start,
        f"{tune.objective} when found, the best of {len(tune.trials)} trials": best.found,
    }
    for who, again in (("the experiment as it was", tune.start_confirmed), ("the best", best.confirmed)):
        if again is not None:
            half = "" if again.half_width is None else f" ± {again.half_width:.4f} (95 %)"
            figures[f"{tune.objective} of {who} in fresh trainings (n = {again.n})"] = f"{again.value:.4f}{half}"
    return figures
