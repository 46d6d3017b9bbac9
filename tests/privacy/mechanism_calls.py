"""One round's calls on a mechanism, without the parts of a round that a test does not need."""

from __future__ import annotations

from typing import Any

import numpy as np

from privfed.privacy.accounting import MODELS_ONLY, ObservedRelease, Release
from privfed.privacy.clipping import Contribution
from privfed.privacy.mechanisms import Mechanism, Terms
from privfed.privacy.randomness import RandomSource, SeededSource
from privfed.privacy.sampling import PoissonSampling

TERMS = Terms(round=1, cohort=1)


def central(noise_multiplier: float) -> tuple[ObservedRelease, ...]:
    """What a round of central Gaussian noise releases under Poisson sampling at rate 0.1."""
    return (ObservedRelease(MODELS_ONLY, Release(PoissonSampling(0.1), noise_multiplier)),)


def on_client(mechanism: Mechanism, update: Any, slack: float = 0.0) -> Contribution:
    """The client half in round 1."""
    update = np.asarray(update)
    return mechanism.on_client(mechanism.initialize(len(update)), update, slack, TERMS, SeededSource(0))


def on_server(mechanism: Mechanism, total: np.ndarray, source: RandomSource) -> np.ndarray:
    """The server half in round 1."""
    return mechanism.on_server(mechanism.initialize(len(total)), total, TERMS, source)[0]
