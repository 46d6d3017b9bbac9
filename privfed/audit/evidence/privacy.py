"""What is promised: an ε with all that it depends on, and the ledger that it is recomputed from."""

from __future__ import annotations

from typing import Literal

from privfed.audit.evidence.types import Count, Extended, NonNegative, Part, Sha256, Share


class PrivacyLoss(Part):
    """An ε with all that it depends on but the observer, who is named by its owner."""

    epsilon: Extended
    delta: Share
    unit: str
    neighbouring: str
    sampling: str


class Guarantee(PrivacyLoss):
    """The privacy loss to one observer, how it was computed, and why it is what it is."""

    accountant: str
    cross_check_epsilon: Extended | None
    cross_check_accountant: str | None
    noise_multiplier: NonNegative | None
    rounds: Count
    why: str


class Ledger(PrivacyLoss):
    """What the ledger says, recomputed from its file, and the hashes that tie the run's files together."""

    observers: tuple[str, ...]
    """Against whom the recomputed ε holds."""
    entries: Count
    attempts: Count
    reserved: Count
    committed: Count
    aborted: Count
    spent: Count
    """Releases that ε counts."""
    torn_bytes: Count
    """Length of an entry cut off by a kill; 0 for none."""
    head_sha256: Sha256
    transcript_sha256: Sha256 | None
    weights_sha256: Sha256 | None


class AssumptionEvidence(Part):
    """ε of the same noise if cohorts were drawn, and neighbours differed, in one way."""

    sampling: str
    neighbouring: str
    amplified: bool
    """Whether it counts that cohorts are secret."""
    pld: Extended | None
    """By privacy-loss distributions; ``None`` where no accountant is known."""
    rdp: Extended | None
    """By Rényi DP; ``None`` likewise."""
    standing: Literal["claimed", "holds", "does not apply"]
    """The run's own claim, a weaker statement that follows for it, or what other cohorts would give."""


class EpsilonAt(Part):
    """ε after so many rounds, at one δ."""

    rounds: Count
    delta: Share
    epsilon: Extended


class Accounting(PrivacyLoss):
    """How the ε of one observer depends on assumptions, on rounds and on δ; the terms are those of the claim."""

    observer: str
    assumptions: tuple[AssumptionEvidence, ...]
    """Empty for mechanisms that only one assumption fits."""
    by_rounds: tuple[EpsilonAt, ...]
    """At the claim's δ, also beyond the end of the run."""
    by_delta: tuple[EpsilonAt, ...]
    """After the run."""
