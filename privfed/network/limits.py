"""What a client accepts. It decides, not the server: whoever offers less is refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from privfed.config import Settings
from privfed.network.errors import DeclinedError
from privfed.network.frames import Invitation
from privfed.privacy.accounting import Guarantee

LEAST = 2
"""Clients in a cohort, and in a sum, below which masking hides nothing."""


@dataclass(frozen=True)
class Limits:
    """A client's own.

    Attributes:
        min_noise: Least noise multiplier of the plan; ``None`` for any, and for no noise at all.
        max_epsilon: Most ε against ``against`` that this run and the earlier ones may come to together, should the
            server sum as few clients as ``min_threshold``; ``None`` for any.
        against: An observer, or ``protected`` for the worst of those that the mechanism protects from.
        min_cohort: Fewest clients in a masked round.
        min_threshold: Fewest clients in a sum.
        max_clip_norm: Longest vector, in L2 norm, that this client's update may count for, where the plan lets the
            server move it too; ``None`` for any that the plan can come to.
        model_hash: SHA-256 of the initial weights; ``None`` for any model.
        allow_unmasked: Whether the server may see this client's own vector.
        allow_research: Whether noise may come from a seed that everybody knows.
    """

    min_noise: float | None = None
    max_epsilon: float | None = None
    against: str = "protected"
    min_cohort: int = LEAST
    min_threshold: int = LEAST
    model_hash: str | None = None
    allow_unmasked: bool = False
    allow_research: bool = False
    max_clip_norm: float | None = None

    def check_settings(self, settings: Settings, initial_sha256: str) -> None:
        """Judge what the plan says by itself.

        Raises:
            DeclinedError: It is less than this client accepts.
        """
        privacy, masking = settings.privacy, settings.secure_aggregation
        if masking.mode != "protocol" and not self.allow_unmasked:
            raise DeclinedError("allow-unmasked", "updates are not masked (--allow-unmasked would accept it)")
        if privacy.randomness != "secure" and not self.allow_research:
            raise DeclinedError(
                "allow-research", "randomness comes from a known seed (--allow-research would accept it)"
            )
        noise = privacy.noise_multiplier if privacy.mechanism != "none" else None
        if self.min_noise is not None and (noise is None or noise < self.min_noise):
            raise DeclinedError("min-noise", f"noise multiplier {noise} is below --min-noise {self.min_noise:g}")
        self._check_clip(privacy.clip_norm, "the plan's clip norm")
        if self.model_hash is not None and initial_sha256 != self.model_hash:
            raise DeclinedError("model-hash", f"the model is {initial_sha256}, not that of --model-hash")

    def check_epsilon(self, guarantees: Mapping[str, Guarantee], earlier: float) -> float:
        """Judge what the run spends, on top of what earlier runs did; returns the run's ε.

        Runs are composed by adding up: their δ add up as well.

        Raises:
            DeclinedError: It is more than this client accepts.
        """
        if self.against == "protected":
            epsilon = max((g.epsilon for g in guarantees.values()), default=math.inf)
        else:
            found = guarantees.get(self.against)
            epsilon = math.inf if found is None else found.epsilon
        if self.max_epsilon is not None and not earlier + epsilon <= self.max_epsilon:
            before = f", on top of {earlier:.4g} of earlier runs," if earlier else ""
            raise DeclinedError(
                "max-epsilon",
                f"ε = {epsilon:.4g} against {self.against!r} with {self.min_threshold} survivors{before} is above "
                f"--max-epsilon {self.max_epsilon:g}",
            )
        return epsilon

    def check_round(self, invitation: Invitation) -> None:
        """Judge a round.

        Raises:
            DeclinedError: It is less than this client accepts.
        """
        if invitation.clip_norm is not None:
            self._check_clip(invitation.clip_norm, "the round's clip norm")
        if self.allow_unmasked and not invitation.session:
            return
        if len(invitation.members) < self.min_cohort:
            raise DeclinedError(
                "min-cohort", f"{len(invitation.members)} clients are below --min-cohort {self.min_cohort}"
            )
        if invitation.threshold < self.min_threshold:
            raise DeclinedError(
                "min-threshold", f"threshold {invitation.threshold} is below --min-threshold {self.min_threshold}"
            )

    def _check_clip(self, norm: float | None, what: str) -> None:
        if self.max_clip_norm is not None and (norm is None or norm > self.max_clip_norm):
            named = "infinite" if norm is None else f"{norm:g}"
            raise DeclinedError(
                "max-clip-norm", f"{what}, {named}, is above --max-clip-norm {self.max_clip_norm:g}"
            )
