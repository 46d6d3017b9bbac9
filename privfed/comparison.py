"""Audited runs side by side on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from privfed.errors import OutputError, PrivFedError
from privfed.files import write_text
from privfed.report import read_report
from privfed.report.compare import MOST_RUNS, Compared, render_comparison
from privfed.report.storage import REPORT_JSON


def compare_folders(folders: Sequence[Path], out: Path) -> Path:
    """Render the reports of ``folders`` beside each other into the file ``out``; returns its path.

    Raises:
        PrivFedError: Fewer than two runs, too many, or one without a valid report.
        OutputError: The page cannot be written.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        raise PrivFedError(
            f"names {len(folders)} runs", where="compare", remedy=f"Name from 2 to {MOST_RUNS} folders"
        )
    runs = [
        Compared(name, read_report(folder / REPORT_JSON))
        for name, folder in zip(_names(folders), folders, strict=True)
    ]
    page = render_comparison(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=f"--out {out}") from None
    return out


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; as they were given where these are not enough to tell them apart."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
