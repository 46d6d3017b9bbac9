"""``privfed attack EXPERIMENT --grid defences``: every attack on every defence, cell by cell."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attacks import AttackOutcome, run_attacks
from privfed.attack_scores import outcome_values
from privfed.audit.evidence import png
from privfed.composition import compose, load_population_of
from privfed.config import Settings
from privfed.console import Advance, Console
from privfed.defences.catalogue import defences
from privfed.defences.folder import GRID_HTML, GRID_JSON, GridFolder, Row, cell_of, finished
from privfed.defences.page import render_grid
from privfed.defences.record import LABELS, STRONGEST, build
from privfed.defences.workload import Workload, prepare
from privfed.errors import SettingError, Stopped
from privfed.exposure import examples_behind, held_out
from privfed.files import write_text


def run_grid(
    settings: Settings, out: Path | None, console: Console, *, seconds: float | None = None
) -> dict[str, Any]:
    """Run what is not finished of the grid; returns the content of ``attack.json``.

    Args:
        settings: The experiment; ``attacks.targets`` are the targets of each cell.
        out: Folder for ``attack.jsonl``, ``attack.json`` and ``defences.html``; new, empty, or of the same grid.
        console: For progress.
        seconds: Begin no further cell after so many.

    Raises:
        PrivFedError: Something was refused, before anything was run.
        Stopped: An interrupt; finished cells are in the files.
    """
    started = time.monotonic()
    with _folder(settings, out) as folder:
        examples = load_population_of(settings)
        if examples.tokens is not None or len(examples.input_shape) not in (2, 3):
            raise SettingError("the grid is of images", where="data.source", value=settings.data.source)
        model = compose(settings, examples).model
        works = [prepare(settings, defence, examples) for defence in defences(settings, model.dimension)]
        plan = [(work.defence, [attack.name for attack in work.attacks]) for work in works]
        stopped = False
        with folder.outcomes() as (rows, lines):

            def keep(row: Row) -> None:
                rows.append(row)
                lines.write(row)

            try:
                _run(works, rows, keep, console, None if seconds is None else started + seconds)
            except KeyboardInterrupt:
                stopped = True
            found = build(
                settings,
                plan,
                rows,
                dataset=examples.name,
                model=f"{model.name} with {model.dimension:,} weights",
                held_out=len(examples.test_labels),
                seconds=time.monotonic() - started,
            )
            content = found.as_json(finished(rows))
            write_text(folder.path / GRID_JSON, json.dumps(content, indent=1, allow_nan=False) + "\n")
            write_text(folder.path / GRID_HTML, render_grid(found))
    if stopped:
        done = len({cell_of(row) for row in finished(rows)})
        kept = f", kept in {out}; the same command goes on from there" if out else ""
        raise Stopped(f"stopped with {done} of {sum(len(names) for _, names in plan)} cells done{kept}", 130)
    return content


@contextmanager
def _folder(settings: Settings, out: Path | None) -> Iterator[GridFolder]:
    """The grid's, or one that is gone in the end."""
    if out is not None:
        yield GridFolder(out, settings)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield GridFolder(Path(scratch), settings)


def _run(
    works: Sequence[Workload],
    rows: list[Row],
    keep: Callable[[Row], None],
    console: Console,
    until: float | None,
) -> None:
    done = {cell_of(row) for row in rows}
    steps = sum(work.targets * len(work.attacks) for work in works)
    behind = sum(
        work.targets for work in works for attack in work.attacks if (work.defence.name, attack.name) in done
    )
    with console.progress("grid", steps, behind) as advance:
        for work in works:
            missing = [attack for attack in work.attacks if (work.defence.name, attack.name) not in done]
            if not missing or (until is not None and time.monotonic() > until):
                continue
            view, clipped = work.record()
            population = work.experiment.population
            for attack in missing:
                if until is not None and time.monotonic() > until:
                    break
                run_attacks(
                    view,
                    [attack],
                    lambda seen, data=population: examples_behind(data, seen),  # type: ignore[misc]  # default
                    population.mean_image(),
                    np.random.default_rng([work.experiment.settings.attacks.seed, *attack.name.encode()]),
                    max_observations=work.targets,
                    progress=_keeper(work, clipped, keep, advance),
                    held_out=held_out(population),
                    public_labels=population.test_labels,
                )


def _keeper(
    work: Workload, clipped: float | None, keep: Callable[[Row], None], advance: Advance
) -> Callable[[int, int, AttackOutcome], None]:
    def note(number: int, of: int, outcome: AttackOutcome) -> None:
        keep(
            {
                "defence": work.defence.name,
                "target": number,
                "of": of,
                "clipped": clipped,
                **outcome_values(outcome),
                "original": _picture(outcome.original),
                "reconstruction": _picture(outcome.reconstruction),
            }
        )
        advance(f"{work.defence.name}, {outcome.attack}")

    return note


def _labels(line: Mapping[str, Any]) -> float | None:
    """Share of labels that are counted right."""
    found = next((c["figures"]["labels"] for c in line["cells"] if c["attack"] == LABELS), None)
    return found["overlap"]["value"] if found else None


def _picture(image: Any) -> str | None:
    return None if image is None else png(image)


def show_grid(found: Mapping[str, Any], out: Path | None, console: Console) -> None:
    """The end of a grid on a terminal: each defence against the strongest attack."""
    rows = []
    for line in found["defences"]:
        cell = next((c for c in line["cells"] if c["attack"] == STRONGEST), None)
        figures = cell["figures"] if cell else None
        rows.append(
            {
                "defence": line["defence"],
                "verdict": line["verdict"],
                "exact": figures["exact"]["value"] if figures else None,
                "PSNR, dB": figures["psnr"]["value"] if figures and figures["psnr"] else None,
                "over a guess, dB": figures["margin_db"]["value"] if figures and figures["margin_db"] else None,
                "identified": figures["identified"]["value"] if figures and figures["identified"] else None,
                "labels": _labels(line),
            }
        )
    console.table("Defences against the strongest attack", rows)
    if out is not None:
        console.path("page", out / GRID_HTML)
