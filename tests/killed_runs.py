"""Runs in processes of their own that are killed, stopped or starved, and what must hold of what they leave."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import doomed
from doomed import DELTA, NOISE, RATE, ROUNDS, Death

from privfed.privacy.accounting import account
from privfed.privacy.ledger_report import verify_ledger
from privfed.privacy.sampling import PoissonSampling
from privfed.rundir import LEDGER, METRICS, SETTINGS, TRANSCRIPT, WEIGHTS
from privfed.transcript import Transcript
from privfed.verification import verify_run

EXPERIMENT = Path(__file__).parents[1] / "examples" / "digits.toml"
SMALL = (
    "data.clients=120",
    f"training.rounds={ROUNDS}",
    "training.local_epochs=2",
    "training.batch_size=4",
    f"cohort.rate={RATE}",
    "privacy.epsilon=none",
    f"privacy.noise_multiplier={NOISE}",
    f"privacy.delta={DELTA}",
    "attacks.rounds=[1, 6]",
    'attacks.methods=["dense_layer"]',
    "attacks.targets=1",
    "audit.canaries=0",
    "audit.canary_control=false",
)


@dataclass
class Run:
    """One command in a process of its own."""

    process: Any
    log: Path

    def ended(self, seconds: float) -> int | None:
        """Exit code within so many seconds, minus the number for a signal's; ``None`` while it runs."""
        self.process.join(seconds)
        code: int | None = self.process.exitcode
        return code

    def end(self) -> int:
        code = self.ended(240)
        assert code is not None, f"the run hangs: {self.output}"
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def calls(self) -> list[str]:
        """Those that changed files, in words; of a run that ended by itself."""
        found: list[str] = json.loads(Path(f"{self.log}.calls").read_text())
        return found

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self.ended(0.005) is None, f"it ended before: {self.output}"
            assert time.monotonic() < deadline


class Start:
    """Starts runs in folders below ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.runs: list[Run] = []
        self._context = multiprocessing.get_context("forkserver")

    def __call__(
        self,
        name: str,
        changes: tuple[str, ...] = (),
        command: str = "train",
        death: Death | None = None,
        fault: str | None = None,
        plain: bool = False,
    ) -> Run:
        log, folder = self.base / f"{name}.{len(self.runs)}.log", self.base / name
        arguments = arguments_of(folder, changes, command)
        told = (arguments, str(folder), str(log), death, fault, plain)
        process = self._context.Process(target=doomed.run, args=told)
        process.start()
        self.runs.append(Run(process, log))
        return self.runs[-1]


def arguments_of(folder: Path, changes: tuple[str, ...] = (), command: str = "train") -> list[str]:
    if command == "verify":
        return [command, str(folder)]
    overrides = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    return [command, str(EXPERIMENT), "--out", str(folder), *overrides]


@dataclass
class Watch:
    """What was to be seen in one folder over all attempts, against what its ledger says."""

    folder: Path
    research: bool = True
    priced: bool = True
    """Whether ε of so many rounds is known from elsewhere: it is for central noise."""
    claimed: bool = True
    """Whether there is a mechanism, and so rounds on the ledger; else it states ε = ∞ from its header on."""
    shown: set[tuple[int, str]] = field(default_factory=set)
    torn: int = 0

    def look(self) -> None:
        """The files verify, all that was ever shown is on the ledger, and ε is no less than that comes to.

        Raises:
            AssertionError: One of it does not hold.
        """
        self.shown |= {(line["round"], line["weights_sha256"]) for line in lines_of(self.folder / METRICS)}
        if not (self.folder / SETTINGS).exists():
            assert not self.shown
            return
        result = verify_run(self.folder)
        assert result.holds, result.as_text()
        assert result.epsilon is not None
        if not (self.folder / LEDGER).exists():
            assert (self.shown, result.epsilon) == (set(), 0)
            return
        report = verify_ledger(self.folder / LEDGER)
        self.torn += report.torn_bytes > 0
        assert ("cut off by a kill" in result.as_text()) == (report.torn_bytes > 0)
        if not self.claimed:
            assert result.epsilon == float("inf")
            return
        assert self.shown <= committed(self.folder)
        assert report.spent >= len(self.shown)
        if self.priced:
            assert result.epsilon >= price(len(self.shown))
        if self.research:  # replays draw the same noise for the same model, so they are no further releases
            assert report.spent <= ROUNDS


def price(rounds: int) -> float:
    return account(NOISE, PoissonSampling(RATE), rounds, DELTA).epsilon if rounds else 0.0


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Whole lines; a kill can cut the last one short."""
    content = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in content.split("\n")[:-1]]


def shown(folder: Path) -> int:
    return len(lines_of(folder / METRICS))


def committed(folder: Path) -> set[tuple[int, str]]:
    """Read without the ledger's own reader."""
    entries = lines_of(folder / LEDGER)
    return {(entry["round"], entry["value_sha256"]) for entry in entries if entry["kind"] == "commit"}


def outcome(folder: Path) -> Any:
    """All that a run leaves, by its bits: times aside, and masks, which are never drawn twice."""
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(folder / METRICS)]
    seen = Transcript.load(folder / TRANSCRIPT)
    records = [
        (
            *(record.round, record.cohort, record.shares, sorted(record.uploads)),
            *(part.tobytes() for part in (record.weights, record.new_weights, record.total)),
            *((client, record.updates[client].tobytes()) for client in sorted(record.updates)),
        )
        for record in seen.records
    ]
    ends = seen.initial_weights.tobytes(), seen.final_weights.tobytes()
    return metrics, (folder / WEIGHTS).read_bytes(), (seen.plan, seen.rounds, ends, records)


def check_the_end(folder: Path, whole: Path) -> None:
    """A run that was killed and gone on with left what the uninterrupted one did, spent as much, and no litter."""
    assert outcome(folder) == outcome(whole)
    report, expected = verify_ledger(folder / LEDGER), verify_ledger(whole / LEDGER)
    assert report.guarantees == expected.guarantees
    assert report.final_sha256 == expected.final_sha256
    assert (report.spent, report.torn_bytes) == (expected.spent, 0)
    assert expected.spent == (ROUNDS if expected.guarantees else 0)
    assert not any(folder.rglob(".*"))
