"""Which run this is, how accurate it became, and what its rounds and its aggregation cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from privfed.audit.evidence.types import Count, Extended, NonNegative, Number, Part, Share, Tree


class Data(Part):
    """What was trained on, and what was trained."""

    dataset: str
    fingerprint: str
    clients: Count
    examples: Count
    test_examples: Count
    model: str
    parameters: Count


class Run(Part):
    """Which run this is, and what it takes to repeat it."""

    name: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]
    """UTC, ISO 8601."""
    privfed_version: str
    packages: dict[str, str]
    python: str
    platform: str
    git_commit: str | None
    seed: int | None
    randomness: str
    """In words: seeded for research, or the operating system's CSPRNG."""
    executor: str
    seconds: NonNegative
    status: Literal["complete", "partial"]
    settings: Tree
    settings_fingerprint: str
    data: Data


class AccuracyPoint(Part):
    """One round of one training."""

    round: Count
    test_accuracy: Share | None
    train_accuracy: Share | None = None
    loss: NonNegative | None = None


class Accuracy(Part):
    """The training as configured beside the same without protection; empty and ``None`` where not measured."""

    protected: tuple[AccuracyPoint, ...]
    unprotected: tuple[AccuracyPoint, ...]
    final_protected: Share | None
    final_unprotected: Share | None
    gap: Number | None
    """Final test accuracy without protection less that with it."""


class WorstClient(Part):
    """One of the clients that the model serves worst; the page does not name it."""

    client: Count
    examples: Count
    accuracy: Share


class ClientAccuracy(Part):
    """The released model on each client's own examples: the mean over examples hides whom it fails."""

    whose: str
    clients: Count
    mean: Share
    """Every client counts the same."""
    percentiles: dict[str, Share]
    """Over clients: 5, 25, 50, 75, 95."""
    histogram: tuple[Count, ...]
    """Clients by accuracy, in bins of equal width from 0 to 1."""
    histogram_unprotected: tuple[Count, ...]
    """Of the training without protection; empty where it was not run."""
    mean_unprotected: Share | None
    worst: tuple[WorstClient, ...]


class RoundEvidence(Part):
    """One round of the training as configured."""

    round: Count
    cohort: Count
    survivors: Count
    dropped: Count
    non_finite: Count
    clipped_fraction: Share | None
    signal_to_noise: Extended | None
    """Norm of the sum over the expected norm of the noise: infinite without noise."""
    aborted: str | None
    """Why the round ended without a new model."""
    epsilon_spent: Extended | None
    """After this round, for the observers that the ledger names."""
    seconds: NonNegative
    upload_bytes: Count


class StageCost(Part):
    """Traffic and time of one stage of the protocol, all rounds and clients together."""

    stage: str
    upload_bytes: Count | None
    seconds: NonNegative | None


class SecureAggregation(Part):
    """How the server came to the sums."""

    mode: Literal["off", "ring", "protocol", "bfv"]
    threshold: str | None
    """The rule, in words."""
    ring_bits: Count | None
    """The widest of all rounds."""
    stages: tuple[StageCost, ...] | None
    aborted_rounds: Count
    abort_probability: Share | None
    """Chance of a round to abort at the configured rate of dropouts."""
    bound: str | None = None
    """What the protocol's parameters guarantee at the expected cohort, in one sentence."""
    smallest_sum: Count | None = None
    """Honest clients there are at least in any sum that the server can learn."""
    assumptions: tuple[str, ...]
