"""The commands ``privfed report``, ``compare`` and ``verify``: what is done with the folders of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from privfed.cli_accounting import AsJson, print_json
from privfed.errors import PrivFedError

Folder = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="DIR")]
Sign = Annotated[
    Path | None, typer.Option(metavar="KEY", help="Ed25519 private key (PEM) to sign the files' hashes with.")
]
Open = Annotated[bool, typer.Option("--open", help="Show the page in the browser.")]


def report(
    folder: Folder,
    open_page: Open = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Print it to report.pdf by a Chromium on the PATH.")] = False,
    sign: Sign = None,
) -> None:
    """Render report.html, report.md and registry.json again from report.json."""
    from privfed.publication import print_page, render_folder

    page = render_folder(folder, signing_key(sign))
    typer.echo(page)
    if pdf:
        typer.echo(print_page(page))
    if open_page:
        _show(page)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of audited runs.", metavar="DIR DIR…")],
    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE")] = Path("compare.html"),
    open_page: Open = False,
) -> None:
    """Put audited runs side by side on one page: the trade-off, the exposure, the cost."""
    from privfed.comparison import compare_folders

    page = compare_folders(folders, out)
    typer.echo(page)
    if open_page:
        _show(page)


def verify(
    folder: Folder,
    key: Annotated[
        Path | None, typer.Option(metavar="PUBLIC", help="Ed25519 public key (PEM): who must have signed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute hashes, ε, scores and pages from the files of a run alone, finished or not; check who signed them.

    What the files state and nobody can compute again is NOT CHECKED, and the exit code 1, as if it did not hold.
    """
    from privfed.verification import verify_run

    result = verify_run(folder, key)
    if as_json:
        print_json(result.as_json())
    else:
        typer.echo(result.as_text())
    if not result.holds:
        raise typer.Exit(1)


def signing_key(path: Path | None) -> Any:
    """The Ed25519 private key in a PEM file; ``None`` without a path."""
    from privfed.manifest import load_private_key

    return None if path is None else load_private_key(path)


def _show(page: Path) -> None:
    if typer.launch(page.resolve().as_uri()):
        raise PrivFedError("no browser could be started", where="--open", remedy=f"Open {page} by hand")
