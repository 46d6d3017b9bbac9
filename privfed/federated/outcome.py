"""What a round leaves: the new model and state, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfed.federated.aggregation import Aggregate
from privfed.federated.scaffold import Variates
from privfed.federated.server_update import State
from privfed.privacy.mechanisms import State as MechanismState
from privfed.transcript import RoundRecord

Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RoundMetrics:
    """What one round tells of itself. None of it is noised; none of it is protected by the mechanism.

    Attributes:
        round: From 1.
        train_loss: Mean over the examples that the cohort saw, before each step; ``None`` without any.
        train_accuracy: Share classified right, likewise.
        cohort: Clients sampled.
        survivors: Clients in the sum.
        non_finite: Clients whose update was not finite, and so dropped.
        clipped_fraction: Share of the trained clients whose update was longer than the bound.
        mean_norm: Mean L2 norm of the updates before clipping.
        signal_to_noise: Norm of the sum over the expected norm of the noise; ``None`` without noise.
        upload_bytes: From all clients to the server.
        ring_bits: Width of the ring that the vectors were summed in; ``None`` without a ring, or without a sum.
        aborted: Why the round ended without a new model; ``None`` when it did not.
        seconds: Wall time.
    """

    round: int
    train_loss: float | None
    train_accuracy: float | None
    cohort: int
    survivors: int
    non_finite: int
    clipped_fraction: float | None
    mean_norm: float | None
    signal_to_noise: float | None
    upload_bytes: int
    ring_bits: int | None
    aborted: str | None
    seconds: float


@dataclass(frozen=True, eq=False)
class RoundState:
    """What goes from round to round beside the model: arrays only, so that it can be checkpointed."""

    server: State
    mechanism: MechanismState
    variates: Variates | None = None


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """The new model and state, the metrics, and what the transcript may keep: ``None`` when it keeps nothing.

    ``stage_costs`` are bytes from clients to server and seconds, by stage of the aggregation.
    """

    weights: Vector
    state: RoundState
    metrics: RoundMetrics
    record: RoundRecord | None
    stage_costs: Mapping[str, tuple[int, float]]


def stage_costs(aggregate: Aggregate | None) -> dict[str, tuple[int, float]]:
    """Bytes from clients to server and seconds, by stage; none without a sum."""
    if aggregate is None:
        return {}
    seconds = aggregate.seconds_per_stage
    return {stage: (size, seconds.get(stage, 0.0)) for stage, size in aggregate.bytes_per_stage.items()}
