"""What each observer sees, and what attacks got out of it."""

from __future__ import annotations

import math

from pydantic import model_validator

from privfed.audit.evidence.privacy import Guarantee
from privfed.audit.evidence.types import Count, NonNegative, Number, Part, Png, Share

RECOVERY_MARGIN_DB = 1.0
"""A reconstruction counts as more than a guess from this many dB above the best trivial guess."""
RECOVERED_TOKENS = 0.9
"""Text counts as recovered from this F1 of its set of tokens."""
COUNTED_LABELS = 0.5
"""Labels count as known from this share of what the best guess gets wrong."""
NO_DEFENCE, AS_CONFIGURED = "none", "as configured"
"""Defences that every report names alike; those between them are named by what they do."""


class BestAttack(Part):
    """The attack that got the most out of one observer's view."""

    attack: str
    workload: str
    defence: str
    psnr: Number
    margin_db: Number
    """PSNR above the best trivial guess."""
    trivial_psnr: Number


class ObserverEvidence(Part):
    """What one observer sees, what it is guaranteed not to learn, and what was got out of its view."""

    observer: str
    sees: str
    protected: bool
    """Whether the privacy mechanism protects against this observer; needs a finite ε."""
    guarantee: Guarantee
    best_attack: BestAttack | None

    @model_validator(mode="after")
    def _no_empty_promise(self) -> ObserverEvidence:
        if self.protected and math.isinf(self.guarantee.epsilon):
            raise ValueError(f"observer {self.observer!r} is called protected, but its ε is infinite")
        return self


class TextScores(Part):
    """Reconstructed text beside the true one, means over the sequences; F1 but for shares."""

    token_set: Share
    token_accuracy: Share
    exact: Share
    rouge1: Share
    rouge2: Share
    rouge_l: Share


class LabelScores(Part):
    """Counts of labels beside the true ones, as shares."""

    overlap: Share
    exact: bool
    occurring: Share
    trivial: dict[str, Share]
    """Overlap by the name of the guess."""
    found: tuple[Count, ...]
    """By class, like the next."""
    true: tuple[Count, ...]

    @model_validator(mode="after")
    def _two_distributions(self) -> LabelScores:
        if len(self.found) != len(self.true) or not sum(self.found) or not sum(self.true) or not self.trivial:
            raise ValueError(
                "counts of labels are of the same classes, with one label each at least, beside a guess"
            )
        return self


class AttackEvidence(Part):
    """One attack on one observation: scores beside those of trivial guesses, or the reason why there are none."""

    observer: str
    defence: str
    workload: str
    kind: str
    attack: str
    round: Count
    contributors: NonNegative
    failure: str | None
    mse: NonNegative | None
    psnr: Number | None
    ssim: Number | None
    label_correct: bool | None
    trivial_psnr: dict[str, Number] | None
    """By the name of the guess."""
    margin_db: Number | None
    text: TextScores | None = None
    """Of text, which has no scores of images."""
    labels: LabelScores | None = None
    """Of an attack that counts labels and gives no examples."""
    seconds: NonNegative
    evaluations: Count
    original: Png | None = None
    reconstruction: Png | None = None

    @model_validator(mode="after")
    def _scores_or_failure(self) -> AttackEvidence:
        scored = self.psnr is not None and self.margin_db is not None and bool(self.trivial_psnr)
        other = [found is not None for found in (self.text, self.labels, self.failure)]
        if [scored, *other].count(True) != 1:
            raise ValueError(
                "an attack has a failure, or psnr, trivial_psnr and margin_db, or scores of text or labels"
            )
        return self
