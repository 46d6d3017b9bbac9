"""What a reader has to know to judge the promise: the checklist, whom it trusts, and what choosing it cost."""

from __future__ import annotations

from typing import Literal

from privfed.audit.evidence.privacy import PrivacyLoss
from privfed.audit.evidence.types import Count, Extended, Number, Part, Share

Layer = Literal["guarantee", "unit", "implementation", "trust"]
LAYERS: tuple[Layer, ...] = ("guarantee", "unit", "implementation", "trust")
"""From the top of the pyramid of NIST SP 800-226 to its base, on which all above rests."""


class Statement(Part):
    """One thing that a claim of differential privacy has to say (Ponomareva et al. 2023, section 5.3)."""

    layer: Layer
    item: str
    says: str


class PitfallCheck(Part):
    """One common mistake, and whether this run makes it."""

    layer: Layer
    name: str
    result: Literal["passed", "failed", "not checked"]
    why: str
    """What was looked at, or why nothing was."""


class TrustAssumption(Part):
    """Somebody or something that the promise relies on."""

    who: str
    trusted_to: str
    otherwise: str
    """What is left of the promise if the trust is broken."""


class SweepPoint(Part):
    """Trainings that differ in their seeds only."""

    label: str
    epsilon: Extended
    """The largest over the seeds."""
    accuracy: Share
    low: Number | None
    """Of the 95 % interval for the mean over seeds; ``None`` for one seed."""
    high: Number | None
    trainings: Count


class SweepEvidence(PrivacyLoss):
    """A sweep or search on the same clients: its trade-off curve, and what it spends itself.

    The loss is that of all trials together, at one δ, against ``observer``.
    """

    name: str
    observer: str
    points: tuple[SweepPoint, ...]
    trials: Count
    same_data: bool
    """Whether its trials were on the clients and the data settings of this run."""
    statement: str
    """What the trials spend, and what that means."""
