"""What must fail loudly, or be stated as infinite, and never as a number that is too small or a stack trace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mechanism_calls import central, on_server

from privfed.privacy.accounting import account
from privfed.privacy.errors import LedgerError, PrivacyError
from privfed.privacy.ledger import Ledger
from privfed.privacy.ledger_entries import GENESIS, Header, entry_hash
from privfed.privacy.ledger_report import verify_ledger
from privfed.privacy.mechanisms import CentralGaussian
from privfed.privacy.randomness import SeededSource, SystemSource
from privfed.privacy.sampling import FixedSizeSampling, FullParticipation, PoissonSampling, SamplingScheme

SCHEME = PoissonSampling(0.1)
POISSON = {"name": "poisson", "rate": 0.1}
ROW = {"observers": ["release"], "sampling": POISSON, "noise_multiplier": 1.0, "shares": None}
RESEARCH = Header("settings", "gaussian", "client", 1e-5, secure=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_one_draw_of_noise_does_not_hide_two_sums(path: Path) -> None:
    # Why the ledger may not let the values of one release key compose as if their noise were independent:
    mechanism, sums = CentralGaussian(1.0, 1.0), (np.zeros(4), np.array([0.9, 0, 0, 0]))
    first, second = (on_server(mechanism, total, SeededSource(7, 5, 1)) for total in sums)
    np.testing.assert_allclose(second - first, sums[1] - sums[0], atol=1e-12)

    for outcome in ("one", "two"):
        with Ledger(path, RESEARCH) as ledger:
            ledger.reserve(1, central(1.0))
            ledger.commit(1, outcome)
    guarantee = verify_ledger(path).guarantee
    assert guarantee is not None
    assert guarantee.epsilon == math.inf


@pytest.mark.parametrize("scheme", [SCHEME, FullParticipation(), FixedSizeSampling(10, 100)])
@pytest.mark.parametrize("noise_multiplier", [1e-200, 1e-4, 1e-3, 1e6])
def test_extreme_noise_is_accounted_for_without_a_stack_trace(
    scheme: SamplingScheme, noise_multiplier: float
) -> None:
    epsilon = account(noise_multiplier, scheme, 60, 1e-5).epsilon
    assert epsilon >= 1e5 if noise_multiplier < 1 else epsilon <= 1e-3


@pytest.mark.parametrize(("rounds", "delta"), [(10**6, 1e-5), (100, 1e-30)])
def test_the_smaller_of_two_upper_bounds_is_stated(rounds: int, delta: float) -> None:
    # PLD alone: four times RDP through coarse discretisation, and infinite through its truncated tail.
    guarantee = account(1, SCHEME if rounds > 1000 else PoissonSampling(0.01), rounds, delta)
    assert guarantee.accountant == "RDP"
    assert guarantee.epsilon <= guarantee.cross_check_epsilon
    assert math.isfinite(guarantee.epsilon)


def short_write(descriptor: int, line: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
    return write(descriptor, line[:20])


def failing(*_: object) -> int:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(("call", "fault"), [("write", short_write), ("write", failing), ("fsync", failing)])
def test_nothing_follows_an_entry_that_may_not_be_on_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: Callable[..., int]
) -> None:
    with Ledger(path, RESEARCH) as ledger:
        ledger.reserve(1, central(1.0))
        with monkeypatch.context() as patched:
            patched.setattr(os, call, fault)
            with pytest.raises(LedgerError, match="written"):
                ledger.commit(1, "model")
        with pytest.raises(LedgerError, match="takes no more entries"):
            ledger.abort(1, "disk full")
    with Ledger(path, RESEARCH) as ledger:  # what is on disk still is a ledger
        ledger.reserve(1, central(1.0))
    assert verify_ledger(path).spent == 1


def test_a_refused_ledger_stays_as_it_was(path: Path) -> None:
    with Ledger(path, RESEARCH) as ledger:
        ledger.reserve(1, central(1.0))
    with path.open("ab") as file:
        file.write(b'{"seq')
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="other settings"):
        Ledger(path, Header("other", "gaussian", "client", 1e-5, secure=False))
    assert path.read_bytes() == before


def test_a_file_that_is_no_ledger_is_not_overwritten(path: Path) -> None:
    path.write_text("somebody's notes, without a line end")
    with pytest.raises(LedgerError, match="not an entry of a ledger"):
        Ledger(path, RESEARCH)
    assert path.read_text() == "somebody's notes, without a line end"
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(path / "below a file", RESEARCH)


def test_what_would_not_verify_is_not_written(path: Path) -> None:
    with Ledger(path, RESEARCH) as ledger:
        for act in (lambda: ledger.commit(1, "model"), lambda: ledger.abort(1, "why")):
            with pytest.raises(LedgerError, match="was not reserved"):
                act()
        for noise_multiplier in (-1.0, math.nan, math.inf):
            with pytest.raises(LedgerError, match="noise_multiplier"):
                ledger.reserve(1, central(noise_multiplier))
        ledger.reserve(1, central(1.0))
    with Ledger(path, RESEARCH) as ledger, pytest.raises(LedgerError, match="other noise"):
        ledger.reserve(1, central(2.0))
    assert verify_ledger(path).spent == 1


@pytest.mark.parametrize(
    ("number", "field", "value"),
    [(1, "delta", None), (1, "delta", 7.0), (1, "secure", 0), (2, "attempt", "x"), (2, "release", None)]
    + [(2, "releases", value) for value in (None, [{}], ["x"], {})]
    + [(2, "releases", [{**ROW, "sampling": value}]) for value in ("poisson", {}, {"name": "poisson", "rate": 7})]
    + [(2, "releases", [{**ROW, "noise_multiplier": value}]) for value in (-1.0, True, "1")]
    + [(2, "releases", [{**ROW, "observers": value}]) for value in ([], "release", [1])]
    + [(2, "surplus", 1)]
    + [(3, "value_sha256", 3)],
)
def test_an_unbroken_chain_of_senseless_entries_is_refused(
    path: Path, number: int, field: str, value: Any
) -> None:
    with Ledger(path, RESEARCH) as ledger:
        ledger.reserve(1, central(1.0))
        ledger.commit(1, "model")
    lines, previous = [], GENESIS
    for position, line in enumerate(path.read_text().splitlines(), start=1):
        entry = {**json.loads(line), "previous": previous}
        del entry["sha256"]
        if position == number:
            entry[field] = value
        previous = entry["sha256"] = entry_hash(entry)
        lines.append(json.dumps(entry) + "\n")
    path.write_text("".join(lines))
    with pytest.raises(LedgerError):
        verify_ledger(path)


def test_secure_mode_takes_no_seed_and_no_sum_beyond_its_grid() -> None:
    mechanism = CentralGaussian(1.0, 1.0, secure=True)
    with pytest.raises(PrivacyError, match="seed"):
        on_server(mechanism, np.zeros(2), SeededSource(1))
    for total in (1e15, -1e300):
        with pytest.raises(PrivacyError, match="grid cannot hold"):
            on_server(mechanism, np.array([total, 0.0]), SystemSource())
