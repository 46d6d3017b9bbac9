"""The table of rounds on Ray tells whose bits were others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "table.py"


def test_a_line_for_each_point_with_its_cost_over_local():
    spec = importlib.util.spec_from_file_location("table_of_ray", PATH)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    rows = [
        {"workers": 0, "cohort": 1600, "seconds_per_round": 0.2},
        {
            "workers": 2,
            "cohort": 1600,
            "seconds_per_round": 0.25,
            "over_local_seconds": 0.05,
            "sent_mb_per_round": 0.125,
            "first_seconds": 9.5,
            "same_bits": True,
        },
    ]
    rows.append({**rows[1], "over_local_seconds": -0.01, "same_bits": False})
    lines = table.on_ray(rows, 3200, 20, 6.18).splitlines()
    assert {line.count("|") for line in lines[:5]} == {8}
    assert lines[2].startswith("| local | 1,600 | 200.0 |")
    assert lines[3] == "| ray, 2 workers | 1,600 | 250.0 | +50.0 | 0.12 | 9.5 | the same |"
    assert "| -10.0 |" in lines[4]
    assert lines[4].endswith("| **others** |")
    assert lines[-1].startswith("3,200 clients of 20 examples")
    assert "load average at the end 6.2" in lines[-1]
