"""``privfed sweep``: a grid of trials, their accuracy against their ε, and what the sweep itself spends."""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from privfed import __version__
from privfed.console import Console
from privfed.errors import SettingError, Stopped
from privfed.files import write_text
from privfed.sweep.campaign import LOGS, Campaign, claimed
from privfed.sweep.cost import search_cost, select
from privfed.sweep.grid import Base, grid, parse_axis, typed_value
from privfed.sweep.page import render_sweep
from privfed.sweep.pool import Pool, Runner
from privfed.sweep.record import SWEEP_CSV, SWEEP_HTML, SWEEP_JSON, Sweep, csv_text, in_words, read_baseline
from privfed.sweep.statistics import Summary, summaries
from privfed.sweep.trial import OBSERVERS, TrialResult, dump

FILES = (SWEEP_JSON, SWEEP_CSV, SWEEP_HTML)


def run_sweep(
    base: Base,
    vary: list[str],
    seeds: int,
    jobs: int,
    out: Path,
    console: Console,
    *,
    baseline: Path | None = None,
    runner: Runner | None = None,
    executor: str = "local",
    address: str | None = None,
) -> Sweep:
    """Run all trials that are not done yet, and write ``sweep.json``, ``sweep.csv`` and ``sweep.html``.

    Args:
        base: The experiment and the overrides of all trials.
        vary: Each ``KEY=VALUE,VALUE,…``.
        seeds: Trials with the same values.
        jobs: Worker processes.
        out: The sweep's folder: new, empty, or of a sweep that goes on.
        console: For progress.
        baseline: A CSV file with another system's curve.
        runner: In place of worker processes.
        executor: Where the workers are: ``local`` or ``ray``.
        address: Of Ray's cluster; of one on this machine when not given.

    Raises:
        PrivFedError: Something was refused, before anything was run.
        Stopped: The user asked for it; what is finished is kept, and written.
    """
    started = time.monotonic()
    trials = grid(base, vary, seeds)
    points = read_baseline(baseline) if baseline else ()
    settings = base.settings()
    against = settings.privacy.against
    if executor == "ray" and settings.executor == "ray":
        raise SettingError(
            "trials on Ray train on one machine each",
            where="executor",
            value="ray",
            remedy='Set executor = "local"',
        )
    with claimed(out, FILES) as folders, _pool(executor, address, jobs, out / LOGS) as pool:
        campaign = Campaign(folders, runner or pool, console)
        interrupted = False
        try:
            campaign.run(trials)
        except KeyboardInterrupt:
            interrupted = True
        results = tuple(campaign.results.values())
        sweep = Sweep(
            name=settings.name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            privfed_version=__version__,
            status="complete" if all(result.status == "done" for result in results) else "partial",
            settings=settings.model_dump(mode="json"),
            varied={key: [typed_value(v) for v in values] for key, values in map(parse_axis, vary)},
            seeds=seeds,
            observer=against if against in OBSERVERS else "release",
            trials=results,
            summaries=tuple(summaries(results)),
            cost=search_cost(out, select(results)),
            baseline=points,
            seconds=time.monotonic() - started,
        )
        write_sweep(sweep, out)
    if interrupted:
        done = sum(result.status == "done" for result in results)
        raise Stopped(
            f"stopped with {done} of {len(trials)} trials done; the same command goes on from there", 130
        )
    return sweep


def write_sweep(sweep: Sweep, out: Path) -> None:
    """Write the three files."""
    write_text(out / SWEEP_JSON, dump(sweep))
    write_text(out / SWEEP_CSV, csv_text(sweep))
    write_text(out / SWEEP_HTML, render_sweep(sweep))


def _pool(executor: str, address: str | None, jobs: int, logs: Path) -> Pool:
    if executor == "local":
        if address is not None:
            raise SettingError(
                "is of a Ray cluster", where="--address", value=address, remedy="Add --executor ray"
            )
        return Pool(jobs, logs)
    if executor != "ray":
        raise SettingError("no such executor", where="--executor", value=executor, remedy="Use local or ray")
    from privfed.sweep.ray_pool import RayPool

    return RayPool(jobs, logs, address)


def show_sweep(sweep: Sweep, out: Path, console: Console) -> None:
    """The end of a sweep on a terminal."""
    if sweep.summaries:
        console.table(
            f"ε against {sweep.observer}", [_row(summary, sweep.observer) for summary in sweep.summaries]
        )
        losses = [trial.privacy[sweep.observer] for trial in sweep.trials if sweep.observer in trial.privacy]
        for terms in dict.fromkeys(
            f"δ = {loss.delta:g}, {loss.unit}-level; neighbours: {loss.neighbouring}; sampling: {loss.sampling}"
            for loss in losses
        ):
            console.say_result(f"ε is each trial's own, at {terms}.")
    show_failures(sweep.trials, console)
    console.say_result(sweep.cost.statement)
    console.path("page", out / SWEEP_HTML)


def show_failures(results: tuple[TrialResult, ...], console: Console) -> None:
    """A line for each trial that came to nothing."""
    for result in results:
        if result.status == "failed":
            console.say_result(f"failed: {result.id}: {result.error}")


def _row(summary: Summary, observer: str) -> dict[str, Any]:
    accuracy = summary.accuracy
    half = "–" if accuracy.half_width is None else f"± {accuracy.half_width:.4f}"
    return {
        "trials": in_words(summary.values) or "as configured",
        "ε": summary.epsilon.get(observer, math.inf),
        "test accuracy": accuracy.value,
        "95 %": half,
        "n": accuracy.n,
    }
