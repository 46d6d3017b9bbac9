"""What a run left, and what several parts of the evidence need of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfed.federated.training import TrainingResult
from privfed.privacy.accounting import Guarantee
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import RunFolder

if TYPE_CHECKING:
    from privfed.experiment import Experiment
    from privfed.exposure import Exposure
    from privfed.membership import MembershipFindings


@dataclass(frozen=True, eq=False)
class Material:
    """What a run left."""

    experiment: Experiment
    folder: RunFolder
    result: TrainingResult
    baseline: TrainingResult | None
    exposures: list[Exposure]
    membership: MembershipFindings | None
    seconds: float
    control: TrainingResult | None = None
    sweep: Path | None = None
    """Folder of a sweep or a tuning on the same clients."""
    missing: tuple[str, ...] = ()
    """Why the audit is not whole."""


def guarantees_of(m: Material) -> Mapping[str, Guarantee]:
    """What the ledger proves, by observer."""
    return verify_ledger(m.folder.ledger).guarantees


def terms_of(m: Material) -> dict[str, Any]:
    """What the ledger proves against whoever sees the released model, or the terms without a claim."""
    guarantee = guarantees_of(m).get("release")
    if guarantee is not None:
        return guarantee.as_json()
    e = m.experiment
    return {
        "epsilon": math.inf,
        "delta": e.settings.privacy.delta,
        "unit": "client",
        "neighbouring": e.sampling.neighbouring,
        "sampling": e.sampling.describe(),
        "accountant": "none: no noise",
        "cross_check_epsilon": None,
        "cross_check_accountant": None,
        "noise_multiplier": 0.0,
        "rounds": e.rounds,
    }


def final_of(result: TrainingResult | None) -> float | None:
    """Accuracy on the held-out examples after the last round."""
    final = result.final_evaluation if result else None
    return final.accuracy if final else None
