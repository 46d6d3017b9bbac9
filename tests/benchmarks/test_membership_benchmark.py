"""The row of membership inference at reduced size, by its own function."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

DATA = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
METHODS = ("loss", "lira", "lira_offline", "rmia", "rmia_offline")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="neither FASHION_MNIST nor Debian's folder holds its IDX files")
def test_members_are_found_and_strangers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # Last: the script attacks.py beside it must not hide the package.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[2] / "benchmarks")])
    membership = importlib.import_module("attacks_membership")
    row = membership.ROWS["membership"]
    reduced = replace(row, examples=20, shadow_models=4, training={**row.training, "rounds": 30})
    result = membership.run(reduced, 1, DATA)
    assert result["targets"] == 1
    # Of 100 clients on either side an AUC has a standard error of at most 0.041: 0.7 is five of them above chance,
    # 0.25 six around it. The false-alarm rate of all of these is below 1e-5.
    assert result["results"]["none, client"]["rmia"]["auc"] > 0.7
    for name in METHODS:
        assert 0.25 < result["results"]["not trained on either, client"][name]["auc"] < 0.75
    assert "TPR" in membership.table(result)
