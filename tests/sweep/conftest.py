"""An experiment to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_trials import EXPERIMENT

from privfed.sweep.grid import Base


@pytest.fixture
def base(tmp_path: Path) -> Base:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return Base(path)
