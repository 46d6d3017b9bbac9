"""In secure mode a replay is one more release: a run that crashed ends early rather than exceed its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from privfed.api import Population, Run, load_population, train
from privfed.federated.spending import LedgerSpending
from privfed.privacy.ledger_report import verify_ledger

pytestmark = pytest.mark.slow

ROUNDS, EPSILON = 12, 4.0


@pytest.fixture(scope="module")
def population() -> Population:
    return load_population("digits", clients=60)


def go(population: Population, out: Path, randomness: str, budget: dict[str, Any]) -> Run:
    return train(
        population,
        "softmax",
        out=out,
        quiet=False,
        training={"rounds": ROUNDS, "checkpoint_every": 100, "learning_rate": 0.5},
        cohort={"sampling": "poisson", "rate": 0.2},
        privacy={"mechanism": "gaussian", "clip_norm": 0.5, "delta": 1e-4, "randomness": randomness, **budget},
        attacks={"enabled": False},
    )


def crash_in_round(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = LedgerSpending.commit

    def and_die(self: LedgerSpending, round_number: int, digest: str, survivors: int) -> None:
        commit(self, round_number, digest, survivors)
        if round_number == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(LedgerSpending, "commit", and_die)


@pytest.mark.parametrize(
    "budget",
    [{"epsilon": EPSILON}, {"noise_multiplier": 1.1, "max_epsilon": EPSILON}],
    ids=["epsilon", "max_epsilon"],
)
@pytest.mark.parametrize("randomness", ["secure", "research"])
def test_replays_never_exceed_the_budget(
    randomness: str,
    budget: dict[str, Any],
    population: Population,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    whole = len(go(population, tmp_path / "whole", randomness, budget).result.reports)
    for _ in range(2):
        with monkeypatch.context() as patch:
            crash_in_round(2, patch)
            with pytest.raises(KeyboardInterrupt):
                go(population, out, randomness, budget)
    capsys.readouterr()
    run = go(population, out, randomness, budget)
    said = " ".join("".join(capsys.readouterr()).split())
    report = verify_ledger(out / "ledger.jsonl")
    assert report.guarantee is not None
    assert report.guarantee.epsilon <= EPSILON
    if randomness == "research":  # the same noise again is the same release
        assert (len(run.result.reports), report.spent) == (whole, whole)
        assert "count again" not in said
        return
    assert report.spent == 4 + len(run.result.reports)
    assert 0 < len(run.result.reports) < whole
    assert f"the training ends after round {len(run.result.reports)} of {whole}" in said
    # It is finished: nothing more is spent by asking again.
    again = go(population, out, randomness, budget)
    assert len(again.result.reports) == len(run.result.reports)
    assert verify_ledger(out / "ledger.jsonl").spent == report.spent
