"""A run that cannot fit is refused before it starts, with an estimate; the estimate is never above the truth."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from privfed import memory
from privfed.cli import main
from privfed.composition import compose
from privfed.errors import SettingError
from privfed.settings_file import load_settings

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
BASE = ("privacy.epsilon=none", "privacy.noise_multiplier=1", "audit.canaries=0", "audit.canary_control=false")


def settings(*changes: str):
    return load_settings(DIGITS, (*BASE, *changes))


def test_an_impossible_model_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [part for c in (*BASE, "model.name=mlp", "model.hidden=[1000000, 1000000]") for part in ("--set", c)]
    monkeypatch.setattr(sys, "argv", ["privfed", "train", str(DIGITS), "--out", str(tmp_path / "run"), *changes])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("privfed: memory: the run needs ")
    for words in (" GiB at the least", "updates of 54 clients", " are free", "attacks.rounds"):
        assert words in line
    assert list((tmp_path / "run").iterdir()) == []


def test_the_parts_by_hand() -> None:
    """650 weights, 53.85 clients a round on average, two rounds recorded, masked: by the module's bytes."""
    experiment = compose(settings())
    assert memory.estimate(experiment) == {
        "the model and its sum": 20 * 650,
        "updates of 54 clients in 2 recorded rounds": (2 * 16 + 8) * 54 * 650,
    }
    plain = compose(settings("secure_aggregation.mode=off", "attacks.enabled=false"))
    assert memory.estimate(plain) == {"the model and its sum": 20 * 650}


def test_refused_by_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = compose(settings())
    needed = sum(memory.estimate(experiment).values())
    monkeypatch.setattr(memory, "available", lambda: needed)
    memory.check_memory(experiment)
    monkeypatch.setattr(memory, "available", lambda: needed - 1)
    with pytest.raises(SettingError, match=r"memory: the run needs 1\.4 MiB at the least.* 1\.4 MiB are free"):
        memory.check_memory(experiment)


def test_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert memory._of_the_control_group(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._of_the_control_group(tmp_path) is None
    assert memory._of_the_control_group(tmp_path / "none") is None
    assert 0 < memory.available() < 2**63


@pytest.mark.slow
def test_the_estimate_is_no_more_than_what_is_used() -> None:
    """Of a masked run whose vectors are most of it: 27 clients with 425,000 weights each."""
    from subprocess import run

    program = f"""
from pathlib import Path
from privfed import memory
from privfed.console import Console
from privfed.composition import compose
from privfed.runs import train_protected
from privfed.settings_file import load_settings
changes = {[*BASE, "model.name=mlp", "model.hidden=[5000, 20]", "training.rounds=2", "data.clients=30"]!r}
experiment = compose(load_settings(Path({str(DIGITS)!r}), [*changes, "cohort.rate=0.9"]))

def peak():  # of this program: ru_maxrss is also that of the process which started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

before = peak()
train_protected(experiment, None, Console(quiet=True))
used = peak() - before
print(sum(memory.estimate(experiment).values()), used)
"""
    got = run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert got.returncode == 0, got.stderr
    estimated, used = map(int, got.stdout.split())
    assert 0.2 * used < estimated < used
