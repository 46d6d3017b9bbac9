"""What is promised: an ε with all that it depends on, and the ledger that it is recomputed from."""

from __future__ import annotations

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
