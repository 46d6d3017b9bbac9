"""The report of a run: ``report.json`` holds the evidence, the pages show it; nothing is computed here."""

from privfed.report.page import render_html
from privfed.report.storage import read_report

__all__ = ["read_report", "render_html"]
