"""What rounds spend: put on a ledger before anything is shown, and how many the budget still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privfed.privacy.accounting import ObservedRelease, by_observer, times
from privfed.privacy.ledger import Ledger
from privfed.privacy.mechanisms import Mechanism
from privfed.privacy.plan import PrivacyPlan
from privfed.privacy.sampling import SamplingScheme


@dataclass(frozen=True)
class LedgerSpending:
    """``Spending`` of one mechanism under one sampling scheme, on a ledger."""

    ledger: Ledger
    mechanism: Mechanism
    sampling: SamplingScheme

    def reserve(self, round_number: int) -> None:
        """Before the noise is drawn: the worst that can come of it."""
        releases = self.mechanism.releases(self.sampling)
        self.ledger.reserve(round_number, releases, whole_run=self.mechanism.whole_run)

    def commit(self, round_number: int, digest: str, survivors: int) -> None:
        """Before the new weights are shown: with the noise of those who survived."""
        reserved, realised = (
            self.mechanism.releases(self.sampling),
            self.mechanism.releases(self.sampling, survivors),
        )
        self.ledger.commit(round_number, digest, None if realised == reserved else realised)

    def abort(self, round_number: int, reason: str) -> None:
        """The round stays spent."""
        self.ledger.abort(round_number, reason)


def rounds_within(
    budget: float,
    plan: PrivacyPlan,
    mechanism: Mechanism,
    spent: Sequence[Sequence[ObservedRelease]],
    against: str,
    done: int,
    rounds: int,
) -> int:
    """Of ``rounds`` planned, how many a budget still holds.

    Args:
        budget: ε that the whole run must stay within, for the plan's unit, relation, sampling and δ.
        plan: What the run's ε depends on.
        mechanism: That draws the noise.
        spent: Releases on the ledger, those of rounds that a crash lost among them.
        against: Whom the budget holds against.
        done: Rounds whose models are kept.
        rounds: That were planned.
    """
    whole_run = mechanism.whole_run
    if done >= rounds or not spent or (len(spent) <= done and not whole_run):
        return rounds
    releases = mechanism.releases(plan.sampling, plan.expected_survivors)

    def holds(more: int) -> bool:
        ahead = [times(releases, 1 if whole_run else more)] if more else []
        return plan.stated(by_observer([*spent, *ahead], plan.delta), against).epsilon <= budget

    low, high = 0, rounds - done  # ε rises with the rounds
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return done + low
