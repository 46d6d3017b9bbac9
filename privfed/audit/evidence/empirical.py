"""What was measured against the promise: membership inference, and canaries in the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from privfed.audit.evidence.privacy import PrivacyLoss
from privfed.audit.evidence.types import Count, Extended, NonNegative, Number, Part, Share


class OperatingPoint(Part):
    """What an attack finds at a bounded rate of false alarms; intervals are Clopper-Pearson, 95 %."""

    fpr_at_most: Share
    fpr: Share
    """Measured; at most the bound."""
    fpr_interval: tuple[Share, Share]
    tpr: Share
    tpr_interval: tuple[Share, Share]


class FoundClient(Part):
    """A client of whom an attack is most sure: named in ``report.json``, and not on the page."""

    client: Count
    """Identifier in the simulation."""
    units: Count
    """Examples of it, or itself."""
    found: Count
    """Of them, at 1 % false alarms."""
    lowest_fpr: Share
    """Share of non-members that score as high as its highest."""


class EpsilonFloor(Part):
    """Lower end of an interval for the least ε that an attack's rates leave possible; units as if independent."""

    epsilon: NonNegative
    confidence: Share
    """Of all attacks on the model together."""
    members: Count
    """Units that it rests on: one of each client where the claim is about clients."""
    non_members: Count
    says: Literal["member", "non-member"]
    """What the test behind it says of those beyond its threshold."""
    right: Share
    """Lower end of how often that is right."""
    wrong: Share
    """Upper end of how often it is said wrongly."""


class MembershipClaim(PrivacyLoss):
    """A claim against an observer, who has the released model as all have, and can infer membership from it."""

    observer: str
    flagged: bool
    """Whether an attack's floor lies above it."""


class MembershipAttack(Part):
    """One attack on the membership of examples, or of clients, in the released model."""

    method: str
    unit: Literal["example", "client"]
    members: Count
    non_members: Count
    assumption: str
    """What the attacker was given beside the model."""
    auc: Share
    auc_interval: tuple[Share, Share] | None = None
    """95 %, DeLong et al. (1988)."""
    at_1_percent_fpr: OperatingPoint | None
    """``None`` where the non-members are too few to resolve the rate."""
    at_0_1_percent_fpr: OperatingPoint | None
    roc: tuple[tuple[Share, Share], ...]
    """``(false-positive rate, true-positive rate)``, from (0, 0) to (1, 1)."""
    worst_off: tuple[FoundClient, ...] = ()
    floor: EpsilonFloor | None = None
    """``None`` without a claim that it could test."""


class Membership(Part):
    """Membership inference on the released model, by method and unit."""

    non_members_from: str
    """Whether members and non-members differ in membership alone rests on this."""
    shadow_models: Count
    """Trained on random halves of members and non-members; 0 where no method needs any."""
    attacks: Annotated[tuple[MembershipAttack, ...], Field(min_length=1)]
    claims: tuple[MembershipClaim, ...] = ()
    """Finite ones, by observer."""

    @model_validator(mode="after")
    def _flags_fit(self) -> Membership:
        highest = max((a.floor.epsilon for a in self.attacks if a.floor is not None), default=0.0)
        if any(claim.flagged != (highest > claim.epsilon) for claim in self.claims):
            raise ValueError("a claim is flagged exactly when the floor of an attack lies above it")
        return self


class CanaryEstimate(Part):
    """A heuristic estimate of ε with an interval (Andrew et al. 2023)."""

    method: str
    epsilon: Extended
    low: Extended
    high: Extended
    confidence: Share


class CanaryObserver(Part):
    """What canaries showed to one observer, beside the claim."""

    observer: str
    sees: str
    claim: Extended
    """ε claimed; infinite where nothing is."""
    estimates: tuple[CanaryEstimate, ...]
    bound: NonNegative
    """Lower bound on ε (Steinke, Nasr, Jagielski 2023)."""
    bound_confidence: Share
    guesses: Count
    right: Count
    flagged: bool
    """Whether an interval or the bound lies above the claim."""
    histogram_low: Number | None
    """Lower edge of the scores' histogram; ``None`` where scores are not finite."""
    histogram_high: Number | None
    present: tuple[Count, ...]
    """Canaries that took part, by bins of equal width."""
    absent: tuple[Count, ...]
    roc: tuple[tuple[Share, Share], ...] = ()
    """``(false-positive rate, true-positive rate)`` of the scores, from (0, 0) to (1, 1)."""

    @model_validator(mode="after")
    def _flag_fits(self) -> CanaryObserver:
        if self.flagged != any(low > self.claim for low in (self.bound, *(e.low for e in self.estimates))):
            raise ValueError("a claim is flagged exactly when an interval or the bound lies above it")
        if len(self.present) != len(self.absent):
            raise ValueError("both histograms have the same bins")
        return self


class SelfCheck(Part):
    """One thing that the claim rests on, checked in the audited training, where the auditor has all sums."""

    name: str
    status: Literal["passed", "failed", "not checked"]
    finding: str
    p_value: Share | None
    """Chance of so much or more if all is as claimed; ``None`` where no chance is involved."""


class Canaries(Part):
    """Canary clients in the training, and what they say about the claims."""

    kind: Literal["update", "input"]
    count: Count
    """There or not by a fair coin each."""
    included: Count
    participations: Count
    """Canaries in sums, all rounds together."""
    rounds: Count
    noise_share: NonNegative
    """Expected norm of a round's canaries over that of its noise."""
    accuracy: Share | None
    accuracy_without: Share | None
    """Of the same training without canaries; ``None`` where it was not run."""
    delta: Share
    unit: str
    neighbouring: str
    sampling: str
    observers: tuple[CanaryObserver, ...]
    checks: tuple[SelfCheck, ...] = ()
