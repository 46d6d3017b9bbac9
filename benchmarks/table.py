"""Tables of results, and the file that keeps the printed ones."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any


def engines(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each engine, then the machine and the versions."""
    if not rows:
        return "no engine gave figures"
    lines = [
        "| engine | s/round | × | CPU-s/round | × | first round, s | peak RSS, MB | train | test | of sgemm |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        cells = [
            r["engine"],
            _short(r["seconds_per_round"]),
            _ratio(r["ratio"]),
            _short(r["cpu_per_round"]),
            _ratio(r["cpu_ratio"]),
            f"{r['first_round']:.2f}",
            f"{r['peak_rss_mb']:,.0f}",
            f"{r['train_accuracy']:.4f}",
            f"{r['test_accuracy']:.4f}",
            f"{100 * r['share_of_peak']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    versions = dict(sorted({k: v for r in rows for k, v in r["versions"].items() if k != "numpy"}.items()))
    peaks = [r["sgemm_gflops"] for r in rows]
    load = max(r["other_load"] for r in rows)
    notes = [
        f"{rows[0]['workload']}, {rows[0]['rounds']} rounds; sgemm {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s; "
        f"others used up to {load:.1f} cores meanwhile; {machine()}.",
        ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    ]
    return "\n".join([*lines, "", *notes])


def machine() -> str:
    """Date, processor, cores and Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    return f"{date.today()}, {cores} cores of {name or platform.machine()}, Python {platform.python_version()}"


def replace_section(path: Path, title: str, body: str) -> None:
    """Put ``body`` under the heading ``title`` of a Markdown file, in place of what was there."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"## {title}\n\n{body}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: section + "\n", text, count=1)
    else:
        text = text.rstrip() + "\n\n" + section
    path.write_text(text.rstrip() + "\n", encoding="utf-8")


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
