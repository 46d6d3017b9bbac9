"""The rows of the grid: each a round that the settings allow, and one thing different from the undefended one."""

from __future__ import annotations

from pathlib import Path

import pytest

from privfed.defences.catalogue import defences
from privfed.errors import SettingError
from privfed.settings_file import load_settings
from privfed.transcript import Kind

EXAMPLE = Path(__file__).parents[2] / "examples" / "defences.toml"
ROWS = defences(load_settings(EXAMPLE), 159_010)


def test_all_that_the_command_promises_is_there() -> None:
    families = {row.family for row in ROWS}
    assert families >= {
        "none",
        "clipping",
        "quantisation",
        "noise",
        "pruning",
        "masking",
        "local steps",
        "batch size",
    }
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert {f"noise {share:g} × clip" for share in (1e-4, 1e-3, 1e-2, 0.1, 1)} <= set(names)
    masked = [row for row in ROWS if row.kind is Kind.SUM]
    assert [row.clients for row in masked] == [2, 4, 8, 16, 100]
    assert all(row.secure_aggregation["mode"] == "protocol" for row in masked)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_its_settings_are_allowed_and_of_one_round(row) -> None:  # type: ignore[no-untyped-def]
    base = load_settings(EXAMPLE)
    settings = row.settings(base, 200)
    assert settings.training.rounds == 1
    assert settings.cohort.size == row.clients
    assert settings.training.learning_rate == base.training.learning_rate
    assert settings.data.examples_per_client == row.examples_of(base)
    noise = settings.privacy.noise_multiplier
    assert (noise is not None) == (row.family == "noise")
    bound = row.family in ("clipping", "quantisation", "noise", "masking")
    assert (settings.privacy.clip_norm is not None) == bound


def test_the_narrowest_ring_is_one_that_the_codec_takes_and_no_narrower() -> None:
    small, large = (
        [row.secure_aggregation["ring_bits"] for row in defences(load_settings(EXAMPLE), d) if "ring" in row.name][
            -1
        ]
        for d in (100, 159_010)
    )
    assert small < large <= 24


def test_without_a_clip_norm_there_is_no_grid() -> None:
    with pytest.raises(SettingError, match=r"privacy\.clip_norm"):
        defences(load_settings(EXAMPLE, ["privacy.clip_norm=none"]), 100)
