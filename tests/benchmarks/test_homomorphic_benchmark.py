"""The benchmark of encrypted sums: three sums of the same bits, CKKS within its error, and what each costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tenseal")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "homomorphic.py"


def test_sums_agree_and_costs_are_counted(tmp_path: Path) -> None:
    table = tmp_path / "RESULTS.md"
    command = [sys.executable, str(SCRIPT), "--clients", "4", "--dim", "3000", "--ring-bits", "26", "--json"]
    done = subprocess.run([*command, "--markdown", str(table)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    clear, masked, bfv, ckks = json.loads(done.stdout)
    assert clear["sha256_of_sum"] == masked["sha256_of_sum"] == bfv["sha256_of_sum"] != ckks["sha256_of_sum"]
    # Four roundings to a grid that leaves two bits for the cohort and one for the sign; CKKS: a scale of 2^40.
    assert 0 < clear["largest_error"] < 4 * 4 / 2**23
    assert 0 < ckks["largest_error"] < 1e-5
    assert clear["upload_bytes"] == 3000 * 26 / 8
    assert clear["upload_bytes"] < masked["upload_bytes"] < bfv["upload_bytes"] < ckks["upload_bytes"]
    assert bfv["key_holder_seconds"] > 0 == masked["key_holder_seconds"]
    assert "The first three sums are the same bits" in table.read_text(encoding="utf-8")
