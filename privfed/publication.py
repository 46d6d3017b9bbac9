"""A run's report and what goes with it, written together: pages, manifest and signature."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privfed.audit.evidence import Evidence
from privfed.errors import OutputError, PrivFedError
from privfed.manifest import MANIFEST, SIGNATURE, manifest_text, read_manifest, renewed, signature_text
from privfed.report import read_report
from privfed.report.storage import REPORT_HTML, REPORT_JSON, page_texts, report_text, write_whole

REPORT_PDF = "report.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PRINTING_SECONDS = 120


def publish(evidence: Evidence, folder: Path, key: Ed25519PrivateKey | None = None) -> Path:
    """Write report, pages and manifest into ``folder``, and sign with ``key``; returns the page's path.

    Raises:
        OutputError: The folder cannot be written.
    """
    # Rendered first: a page that cannot be rendered leaves no half of a report behind. ``report.json`` comes last.
    pages = page_texts(evidence)
    texts = {**pages, REPORT_JSON: report_text(evidence)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        coming = {**pages, MANIFEST: manifest_text(folder, texts)}
        if key is None:
            (folder / SIGNATURE).unlink(missing_ok=True)
        else:
            coming[SIGNATURE] = signature_text(coming[MANIFEST], key)
        coming[REPORT_JSON] = texts[REPORT_JSON]
        write_whole({folder / name: text for name, text in coming.items()})
    except OSError as error:
        raise OutputError(
            f"the report cannot be written: {error.strerror}", where=str(folder), remedy="Name another folder"
        ) from None
    return folder / REPORT_HTML


def withdraw(folder: Path) -> None:
    """Take a report back, before the figures that it shows are measured again."""
    for name in (REPORT_JSON, MANIFEST, SIGNATURE):
        (folder / name).unlink(missing_ok=True)


def render_folder(folder: Path, key: Ed25519PrivateKey | None = None) -> Path:
    """Render the pages again from ``report.json``, and sign with ``key``; returns the page's path.

    Only the pages' hashes are renewed: what else was edited in the folder stays found.

    Raises:
        PrivFedError: There is no valid report to render, or a signature would be lost.
        OutputError: The folder cannot be written.
    """
    texts = page_texts(read_report(folder / REPORT_JSON))
    coming: dict[str, str] = dict(texts)
    if (folder / MANIFEST).exists():
        coming[MANIFEST] = renewed(read_manifest(folder), texts)
        if key is not None:
            coming[SIGNATURE] = signature_text(coming[MANIFEST], key)
        changed = coming[MANIFEST] != (folder / MANIFEST).read_text(encoding="utf-8")
        if changed and key is None and (folder / SIGNATURE).exists():
            raise PrivFedError(
                "the pages come out otherwise than they were signed",
                where=str(folder),
                remedy="Give --sign KEY to sign them again, or render a copy without manifest.sig",
            )
    elif key is not None:
        raise PrivFedError(
            "there is no manifest.json to sign", where=str(folder), remedy="Run `privfed audit` again"
        )
    try:
        write_whole({folder / name: text for name, text in coming.items()})
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    return folder / REPORT_HTML


def print_page(page: Path) -> Path:
    """Print ``report.html`` to ``report.pdf`` beside it, by a Chromium on the PATH; returns the path.

    Raises:
        PrivFedError: There is none, or it does not come to an end.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise PrivFedError(
            "no Chromium is on the PATH",
            where="--pdf",
            remedy=f"Install one ({', '.join(BROWSERS[:3])}), or print report.html from any browser",
        )
    target = page.with_name(REPORT_PDF)
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / REPORT_PDF
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--disable-extensions",
            f"--user-data-dir={profile}/profile",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses to sandbox for root
            "--no-pdf-header-footer",
            f"--print-to-pdf={made}",
            page.resolve().as_uri(),
        ]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=PRINTING_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PrivFedError(f"the browser did not print: {error}", where="--pdf") from None
        if not made.exists():
            words = (ended.stderr.strip().splitlines() or ["no word"])[-1]
            raise PrivFedError(f"the browser printed nothing: {words}", where="--pdf", value=browser)
        try:
            shutil.move(made, target)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(target)) from None
    return target
