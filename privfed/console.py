"""What a person sees while a command runs: progress with time to go, and a table at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from privfed.audit.evidence import Evidence

PLAIN_LINES = 10
"""Lines of progress for each piece of work when nobody watches a terminal."""

Advance = Callable[[str], None]


class Telling(Enum):
    """How a command tells how it stands, on standard error."""

    USUAL = "a bar on a terminal, some lines elsewhere"
    QUIET = "not at all"
    VERBOSE = "a line for every step"
    JSON = "a JSON object for every message and step"


class Console:
    """Progress goes to standard error, results to standard output; ``quiet`` keeps the first to the caller."""

    telling = Telling.USUAL
    """Of all consoles of a process: what its user asked for."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or self.telling is Telling.QUIET
        self._out = RichConsole(file=sys.stdout, highlight=False)
        self._err = RichConsole(file=sys.stderr, highlight=False)

    def say(self, text: str) -> None:
        """One line about what comes next."""
        if self.quiet:
            return
        if self.telling is Telling.JSON:
            self._event("message", text=text)
        else:
            self._err.print(text, markup=False, soft_wrap=True)

    def fault(self, text: str) -> None:
        """What ends the command, however quiet it is."""
        if self.telling is Telling.JSON:
            self._event("error", text=text)
        else:
            self._err.print(f"privfed: {text}", markup=False, soft_wrap=True)

    def _event(self, event: str, **fields: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        print(json.dumps({"time": now, "event": event, **fields}), file=self._err.file, flush=True)

    @contextmanager
    def progress(self, title: str, steps: int, done: int = 0) -> Iterator[Advance]:
        """A bar with the time to go on a terminal, about ``PLAIN_LINES`` lines elsewhere.

        ``done`` of the ``steps`` are behind already. Yields a function to call after each step, with a few
        words on how it stands.
        """
        if self.quiet:
            yield lambda _: None
        elif not self._err.is_terminal or self.telling is not Telling.USUAL:
            yield self._plain(title, steps, done)
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
            )
            with Progress(*columns, console=self._err) as bar:
                task = bar.add_task(title, total=steps, completed=done, state="")
                yield lambda state: bar.update(task, advance=1, state=state)

    def _plain(self, title: str, steps: int, done: int) -> Advance:
        started, before = time.monotonic(), done

        def advance(state: str) -> None:
            nonlocal done
            done += 1
            left = (time.monotonic() - started) / (done - before) * (steps - done)
            if self.telling is Telling.JSON:
                self._event("step", of=title, done=done, steps=steps, seconds_left=round(left, 1), state=state)
            elif self.telling is Telling.VERBOSE or done == steps or done % max(1, steps // PLAIN_LINES) == 0:
                self.say(f"{title} {done}/{steps}, about {left:.0f} s to go  {state}")

        return advance

    def figures(self, values: Mapping[str, Any], title: str = "") -> None:
        """Names and values, a line each."""
        table = Table(title=title or None, show_header=False, box=None, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), show(value))
        self._out.print(table)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with the same keys."""
        table = Table(title=title, title_justify="left")
        for name in rows[0] if rows else ():
            table.add_column(name.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(show(value) for value in row.values()))
        self._out.print(table)

    def summary(self, evidence: Evidence, page: Path) -> None:
        """The audit's end: who is protected how far, what it cost, and where the report lies."""
        rows = []
        for seen in evidence.observers:
            g, best = seen.guarantee, seen.best_attack
            rows.append(
                {
                    "observer": seen.observer,
                    "ε": g.epsilon,
                    "δ": g.delta,
                    "best attack, dB": best.psnr if best else None,
                    "over a guess, dB": best.margin_db if best else None,
                }
            )
        self.table("Who learns what", rows)
        terms: dict[str, list[str]] = {}
        for seen in evidence.observers:
            g = seen.guarantee
            words = f"{g.unit}-level; neighbours: {g.neighbouring}; sampling: {g.sampling}"
            terms.setdefault(words, []).append(seen.observer)
        for words, observers in terms.items():
            self.say_result(f"ε against {', '.join(observers)} is {words}.")
        accuracy = evidence.accuracy
        self.figures(
            {
                "test accuracy": accuracy.final_protected,
                "test accuracy without protection": accuracy.final_unprotected,
                "verdict": evidence.verdict.text,
            }
        )
        self.path("report", page)

    def training_summary(self, summary: Mapping[str, Any]) -> None:
        """The end of a training: its figures, and what it spent, in words."""
        apart = ("statements", "guarantees", "held_out_clients")
        self.figures({name: value for name, value in summary.items() if name not in apart})
        if found := summary.get("held_out_clients"):
            rows = {"mean": found["mean"], "mean by examples": found["weighted_mean"]}
            rows |= {f"percentile {number}": value for number, value in found["percentiles"].items()}
            self.say_result("Accuracy over clients held out:")
            self.figures(rows)
        for text in summary["statements"]:
            self.say_result(text)

    def say_result(self, text: str) -> None:
        """One paragraph of a result."""
        self._out.print(text, markup=False)

    def attacks(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """One table for each observer and kind of vector, with a line for each attack."""
        seen: dict[str, list[Mapping[str, Any]]] = {}
        for row in summary:
            seen.setdefault(f"{row['observer']}: {row['kind']}", []).append(row)
        for view, rows in seen.items():
            self.table(view, [_attack_line(row) for row in rows])
        self.say_result("In brackets: 95 % intervals; of text and labels, means over the targets.")

    def path(self, label: str, path: Path) -> None:
        """Where a result lies, on a line of its own that can be copied whole."""
        self._out.print(f"{label}: {path}", markup=False, soft_wrap=True)


def _attack_line(row: Mapping[str, Any]) -> dict[str, str]:
    """What an attack came to, in columns that fit on 80 characters."""
    targets, failed = row["targets"], row["failed"]
    if text := row["text"]:
        found = f"tokens {_share(text['token_set'])}, whole sequences {_share(text['exact'])}"
        found += f", ROUGE-L {_interval(text['rouge_l'])}"
    elif labels := row["labels"]:
        found = f"labels right {_share(labels['overlap'])}, by a guess {_share(labels['trivial'])}"
        found += f"; all of them {_share(labels['exact'])}"
    elif failed == targets:
        found = "nothing"
    else:
        found = f"exact {_share(row['exact'])}, identified {_share(row['identified'])}"
        found += f"; PSNR {_interval(row['psnr'])} dB, of a guess {_interval(row['trivial_psnr'])}"
    return {
        "attack": row["attack"],
        "targets": f"{targets}, {failed} without a guess" if failed else str(targets),
        "verified": str(row["verified"]),
        "found": found,
    }


def _share(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "–"
    value, low, high = (None if figure[name] is None else f"{100 * figure[name]:.0f}" for name in KEYS)  # type: ignore[operator]  # no None
    return f"{value} %" if low is None else f"{value} % ({low} to {high})"


KEYS = ("value", "low", "high")


def _interval(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "–"
    if figure["low"] is None:
        return show(figure["value"])
    return f"{show(figure['value'])} ({show(figure['low'])} to {show(figure['high'])})"


def show(value: Any) -> str:
    """A value as a person writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == float("inf"):
            return "∞"
        return f"{value:.4g}"
    return str(value)
