"""The report of a run: ``report.json`` holds the evidence, ``report.html`` shows it; nothing is computed here."""

from privfed.report.page import render_html
from privfed.report.storage import read_report, render_folder, write_report

__all__ = ["read_report", "render_folder", "render_html", "write_report"]
