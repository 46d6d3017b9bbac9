"""The whole content of ``report.json``."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import model_validator

from privfed.audit.evidence.empirical import Canaries, Membership
from privfed.audit.evidence.exposure import AttackEvidence, ObserverEvidence
from privfed.audit.evidence.judgement import PitfallCheck, Statement, SweepEvidence, TrustAssumption
from privfed.audit.evidence.privacy import Accounting, Ledger
from privfed.audit.evidence.run import Accuracy, ClientAccuracy, RoundEvidence, Run, SecureAggregation
from privfed.audit.evidence.types import Part

SCHEMA_VERSION: Final = 3


class Verdict(Part):
    """The answer in one paragraph."""

    level: Literal["protected", "partly", "exposed"]
    text: str


class UnnoisedQuantity(Part):
    """A figure of the run that is published as it is, outside the guarantee."""

    name: str
    why: str
    """Why it matters."""


class Evidence(Part):
    """The content of ``report.json``."""

    schema_version: Literal[3] = SCHEMA_VERSION
    run: Run
    verdict: Verdict
    observers: tuple[ObserverEvidence, ...]
    accuracy: Accuracy
    rounds: tuple[RoundEvidence, ...]
    attacks: tuple[AttackEvidence, ...]
    secure_aggregation: SecureAggregation
    ledger: Ledger
    membership: Membership | None = None
    canaries: Canaries | None = None
    accounting: Accounting | None = None
    clients: ClientAccuracy | None = None
    sweep: SweepEvidence | None = None
    statements: tuple[Statement, ...] = ()
    checks: tuple[PitfallCheck, ...] = ()
    trust: tuple[TrustAssumption, ...] = ()
    unnoised: tuple[UnnoisedQuantity, ...]
    limits: tuple[str, ...]

    @model_validator(mode="after")
    def _one_row_each(self) -> Evidence:
        names = [entry.observer for entry in self.observers]
        if len(names) != len(set(names)):
            raise ValueError(f"each observer has one entry, got {', '.join(names)}")
        return self
