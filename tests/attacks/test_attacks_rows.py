"""The rows of ``benchmarks/attacks.py`` at reduced size, by the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
DATA = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
ROWS = {
    "dense-layer": (20, 1.0, 140),
    "sparse-decomposition-4": (20, 1.0, 140),
    "sparse-decomposition-8": (20, 1.0, 140),
    "sparse-decomposition-16": (10, 0.9, 140),
    "sparse-decomposition-epochs": (20, 0.9, 140),
    "sparse-decomposition-sum": (20, 0.95, 140),
    "recursive-analytic": (20, 1.0, 100),
    "recursive-analytic-relu": (20, 0.95, 100),
    "recursive-analytic-relu-glorot": (10, 0.8, 100),
    "feature-inversion-8": (3, 0.9, 80),
    "gradient-matching-1": (10, 0.9, 80),
    "gradient-matching-2": (5, 0.9, 80),
    "gradient-matching-4": (2, 0.75, 60),
    "gradient-matching-relu": (2, 0.0, None),
    "gradient-matching-trained": (2, 0.0, None),
    "gradient-matching-resnet": (2, 0.0, None),
    "labels-lenet-32-auxiliary": (20, 1.0, None),
    "labels-mlp-32": (20, 0.95, None),
    "tokens-32": (10, 1.0, None),
    "sequences-4": (5, 1.0, None),
    "imprint-64": (5, 0.9, 60),
    "model-inconsistency": (10, 0.95, 80),
}
"""Targets, the least success rate (0: only reported), and the least median PSNR. Seconds depend on the machine:
not tested here."""
TOGETHER = {
    "sparse-decomposition-1": (1.0, 140),
    "sparse-decomposition-2": (1.0, 140),
    "sparse-decomposition-sum-8": (1.0, 140),
    "labels-lenet-1": (1.0, None),
    "labels-lenet-8": (1.0, None),
    "labels-lenet-32": (1.0, None),
    "labels-lenet-8-clipped": (0.9, None),
    "labels-lenet-32-clipped": (0.0, None),
    "labels-lenet-8-llg": (0.0, None),
    "labels-lenet-32-llg": (0.0, None),
    "feature-inversion-1": (1.0, 80),
    "feature-inversion-sum": (0.9, 80),
    "feature-inversion-trained": (0.0, None),
    "labels-mlp-8": (0.9, None),
    "tokens-1": (1.0, None),
    "tokens-8": (1.0, None),
    "sequences-1": (1.0, None),
    "imprint-sum": (0.9, 60),
    "sparse-decomposition-24": (0.5, 80),
    "recursive-analytic-relu-trained": (1.0, 100),
    "gradient-matching-clipped": (0.0, None),
    "gradient-matching-cnn": (0.0, None),
    "local-training": (0.0, None),
    "local-training-one-step": (0.0, None),
    "dlg": (0.0, None),
    "idlg": (0.0, None),
}
"""Rows by one process, two targets of each."""


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="neither FASHION_MNIST nor Debian's folder holds its IDX files")
@pytest.mark.parametrize("row", sorted(ROWS))
def test_row(row):
    targets, rate, psnr = ROWS[row]
    command = [sys.executable, str(SCRIPT), "--row", row, "--targets", str(targets), "--data", str(DATA), "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["targets"] == targets
    assert result["draws"] == min(5, targets)
    assert result["success_rate"] >= rate
    if psnr is not None:
        assert result["psnr_median"] >= psnr


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="neither FASHION_MNIST nor Debian's folder holds its IDX files")
def test_rows_together():
    command = [sys.executable, str(SCRIPT), "--row", *TOGETHER, "--targets", "2", "--data", str(DATA), "--json"]
    results = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert list(results) == list(TOGETHER)
    for row, (rate, psnr) in TOGETHER.items():
        assert results[row]["targets"] == 2
        assert results[row]["success_rate"] >= rate
        assert psnr is None or results[row]["psnr_median"] >= psnr


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="neither FASHION_MNIST nor Debian's folder holds its IDX files")
def test_eight_images_of_different_labels():
    command = [sys.executable, str(SCRIPT), "--row", "gradient-matching-8", "--first", "4", "--targets", "1"]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # more threads than cores wait for each other
    command += ["--data", str(DATA), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
    assert json.loads(done.stdout)["success_rate"] >= 0.85


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="neither FASHION_MNIST nor Debian's folder holds its IDX files")
def test_no_wrong_answer_of_several_local_steps_is_believed():
    """Targets 53 to 59: in two of them zeros leave one image open, which only its bytes tell."""
    command = [
        sys.executable,
        str(SCRIPT),
        "--row",
        "sparse-decomposition-steps",
        "--first",
        "53",
        "--targets",
        "7",
    ]
    done = subprocess.run([*command, "--data", str(DATA), "--json"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert result["success_rate"] >= 0.85
    assert result["verified_rate"] >= 0.85
    assert not [answer for answer in result["wrong"] if answer["verified"]]


def test_an_unknown_row_is_refused_with_the_choices():
    done = subprocess.run([sys.executable, str(SCRIPT), "--row", "magic"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "dense-layer" in done.stderr
