"""Next-word prediction: the example's updates say which words its clients wrote, and a small one's sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from privfed.console import Console
from privfed.settings_file import load_settings

NEXT_WORD = Path(__file__).parents[1] / "examples" / "next-word.toml"


@pytest.mark.slow
def test_the_words_of_every_client_and_the_sentences_of_a_small_one_are_read_from_updates(tmp_path: Path) -> None:
    from privfed.runs import run_attack

    settings = load_settings(NEXT_WORD, ["training.rounds=10", "training.evaluate_every=10", "attacks.targets=3"])
    found = run_attack(settings, "server", tmp_path, Console(quiet=True))
    tokens = [row for row in found["outcomes"] if row["attack"] == "tokens"]
    assert sorted(row["examples"] for row in tokens) == [10, 32, 41]
    assert all(row["text"]["token_set"] == 1 for row in tokens)

    dager = [row for row in found["outcomes"] if row["attack"] == "dager"]
    read = [row for row in dager if row["failure"] is None]
    assert [(row["examples"], row["text"]["exact"]) for row in read] == [(10, 1.0)]
    assert all("excludes no token" in row["failure"] for row in dager if row["failure"] is not None)
