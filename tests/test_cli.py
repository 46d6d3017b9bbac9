"""The command line from outside: figures, and refusals in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

DIGITS = str(Path(__file__).parents[1] / "examples" / "digits.toml")


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=300)


def test_account_and_calibrate_print_the_anchors(privfed_command: list[str]) -> None:
    terms = ["--sampling", "poisson", "--delta", "1e-5", "--json"]
    got = run(privfed_command, "account", "--noise-multiplier", "1", "--rate", "0.01", "--rounds", "1000", *terms)
    assert json.loads(got.stdout)["epsilon"] == pytest.approx(1.828, abs=0.002)
    got = run(privfed_command, "calibrate", "--epsilon", "3", "--rate", "0.1", "--rounds", "60", *terms)
    assert json.loads(got.stdout)["noise_multiplier"] == pytest.approx(1.422, abs=0.003)


@pytest.mark.parametrize(
    "change", ["privacy.epsilon=0", "cohort.rate=1.5", "colour=1", "secure_aggregation.threshold=99"]
)
def test_wrong_settings_are_one_line_and_exit_code_2(
    privfed_command: list[str], tmp_path: Path, change: str
) -> None:
    got = run(privfed_command, "train", DIGITS, "--set", change, "--out", str(tmp_path / "run"))
    assert got.returncode == 2
    assert len(got.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
