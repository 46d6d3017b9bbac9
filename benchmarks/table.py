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


def scaling(rows: list[dict[str, Any]], fits: dict[str, float], examples: int) -> str:
    """Markdown: one line for each point, then the fitted lines and the machine."""
    lines = [
        "| swept | clients | cohort | s/round | CPU-s/round | peak RSS, MB | of it after loading, MB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        cells = [
            r["sweep"],
            f"{r['clients']:,}",
            f"{r['cohort']:,}",
            _short(r["seconds_per_round"]),
            _short(r["cpu_per_round"]),
            f"{r['peak_rss_mb']:,.0f}",
            f"{r['loaded_rss_mb']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = []
    if "ms_per_client" in fits:
        notes.append(
            f"Against the cohort: {fits['ms_per_client']:.3f} ms a client and {fits['ms_per_round']:.0f} ms "
            f"a round (R² {fits['r_squared']:.3f}); {fits['mb_per_client']:.3f} MB a client."
        )
    if "ms_per_million" in fits:
        notes.append(
            f"Against the population: {fits['ms_per_million']:+.0f} ms a round and "
            f"{fits['mb_per_million']:+.0f} MB for a million clients."
        )
    load = max(r["other_load"] for r in rows)
    notes.append(
        f"{examples} examples a client, mapped from disk; "
        f"others used up to {load:.1f} cores meanwhile; {machine()}."
    )
    return "\n".join([*lines, "", *notes])


def on_ray(rows: list[dict[str, Any]], clients: int, examples: int, load: float) -> str:
    """Markdown: one line for each number of workers and each cohort, then population, load average and machine."""
    lines = [
        "| executor | cohort | ms/round | over `local`, ms | examples sent, MB/round | first round, s | bits |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for r in rows:
        cells = [
            f"ray, {r['workers']} workers" if r["workers"] else "local",
            f"{r['cohort']:,}",
            f"{1000 * r['seconds_per_round']:.1f}",
        ]
        if r["workers"]:
            cells += [
                f"{1000 * r['over_local_seconds']:+.1f}",
                f"{r['sent_mb_per_round']:.2f}",
                f"{r['first_seconds']:.1f}",
                "the same" if r["same_bits"] else "**others**",
            ]
        lines.append("| " + " | ".join([*cells, *[""] * (7 - len(cells))]) + " |")
    notes = (
        f"{clients:,} clients of {examples} examples; the first round trains all of them, starts the workers "
        f"and has all examples sent; load average at the end {load:.1f}, this program's own included: times of a "
        f"machine with more than one for each core are not to be compared; {machine()}."
    )
    return "\n".join([*lines, "", notes])


def secure_sums(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each party and library, then what it comes to, the parameters and the machine."""
    lines = []
    for r in rows:
        lines += [
            "| | client, CPU-s | server, CPU-s | total, CPU-s | wall, s | upload a client, bytes | peak RSS, MB |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for name, part in (("privfed", r), ("flower", r.get("flower"))):
            if part is not None:
                cells = [
                    name,
                    f"{part['client_seconds']:.4f}",
                    _short(part["server_seconds"]),
                    _short(part["total_seconds"]),
                    _short(part["wall"]),
                    f"{part['upload_bytes']:,.0f}",
                    f"{part['peak_rss_mb']:,.0f}",
                ]
                lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *_secure_sum_notes(r), ""]
    return "\n".join(lines).rstrip()


def _secure_sum_notes(r: dict[str, Any]) -> list[str]:
    notes = [
        f"Over keystream + add in counter mode: masking {r['masking_over_floor']:.2f}, the whole round "
        f"{r['total_over_floor']:.2f}; over the keystream as made here {r['masking_over_own_keystream']:.2f} "
        f"and {r['total_over_own_keystream']:.2f}. Upload over 16 bits a coordinate in clear: "
        f"{r['upload_over_clear']:.2f}. Of the server's seconds, {_short(r['server_own_keystream_seconds'])} are "
        f"the keystream as made here and its addition alone."
    ]
    if "flower" in r:
        notes.append(
            f"Against Flower: client {_ratio(r['client_vs_flower'])}×, server {_ratio(r['server_vs_flower'])}×."
        )
    if "speedup" in r:
        notes.append(
            f"On {r['cores']} cores {_short(r['wall_on_cores'])} s: {r['speedup']:.2f}× faster; "
            f"{r['cores_peak_rss_mb']:,.0f} MB."
        )
    versions = ", ".join(f"{name} {number}" for name, number in sorted(r["versions"].items()))
    notes += [
        f"{r['clients']:,} clients, {r['dim']:,} coordinates, {_packing(r)}, {100 * r['dropout']:.0f} % vanish "
        f"after sharing keys; {r['neighbours']} neighbours, threshold {r['threshold']} "
        f"({r['adversary']}).",
        f"Others used up to {r['other_load']:.1f} cores meanwhile; {machine()}. {versions}.",
    ]
    return notes


def _packing(r: dict[str, Any]) -> str:
    together = f"{r['lanes']} at a time " if r["lanes"] > 1 else ""
    return f"{together}in {r['ring_bits']} bits"


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
