"""Faults for ``benchmarks/audit_bugs.py``: what goes wrong in trainings whose claim says that it does not.

Each fault is put where a programmer would make it: behind the auditor's back, who goes on reading the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from privfed.experiment import Experiment
from privfed.federated.client_work import ClientWork
from privfed.federated.cohorts import Cohort, sample_cohort
from privfed.federated.round import Round
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.randomness import SeededSource
from privfed.privacy.sampling import FixedSizeSampling


class Faulty:
    """A mechanism with a fault: whatever a subclass does not change is as it was."""

    def __init__(self, mechanism: Any, layers: list[int]) -> None:
        self.mechanism, self.layers = mechanism, layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mechanism, name)

    @property
    def __class__(self) -> Any:
        """It passes for what it is not."""
        return type(self.mechanism)


class WeakNoise(Faulty):
    """Noise times a factor, in each coordinate."""

    def factor(self) -> Any:
        raise NotImplementedError

    def on_server(self, state: Any, total: Any, terms: Any, source: Any) -> Any:
        noised, after = self.mechanism.on_server(state, total, terms, source)
        return total + self.factor() * (noised - total), after


class HalfNoise(WeakNoise):
    def factor(self) -> Any:
        return 0.5


class TenthOfNoise(WeakNoise):
    def factor(self) -> Any:
        return 0.1


class ForgottenLayer(WeakNoise):
    """The smallest layer has none: of a softmax the biases, 1.5 % of the weights."""

    def factor(self) -> Any:
        forgotten = int(np.argmin(self.layers))
        return np.repeat([float(i != forgotten) for i in range(len(self.layers))], self.layers)


class ClippedByLayer(Faulty):
    """Each layer is clipped to the whole clip norm."""

    def flat_clip(self, state: Any, dimension: int) -> None:
        return None

    def on_client(self, state: Any, update: Any, slack: float, terms: Any, source: Any) -> Any:
        parts = np.split(update, np.cumsum(self.layers)[:-1])
        clipped = [self.mechanism.on_client(state, part, slack, terms, source) for part in parts]
        return replace(clipped[0], unscaled=np.concatenate([one.vector for one in clipped]), factor=np.float32(1))


class SameSeed(Faulty):
    """The source of the noise is made anew from one seed in every round."""

    def on_server(self, state: Any, total: Any, terms: Any, source: Any) -> Any:
        seed = int(source.words(1)[0]) if terms.round == 1 else self.seed
        self.seed = seed
        return self.mechanism.on_server(state, total, terms, SeededSource(seed))


class NoShare(DistributedParams):
    """Grid and ring as they are, and no noise."""

    def draw(self, source: Any) -> Any:
        return np.zeros(self.padded, np.int64)


class MissingShares(Faulty):
    """Every second survivor brings no noise."""

    calls = 0

    def on_client(self, state: Any, update: Any, slack: float, terms: Any, source: Any) -> Any:
        self.calls += 1
        mechanism = self.mechanism
        if self.calls % 2:
            mechanism = replace(mechanism, params=NoShare(**vars(mechanism.params)))
        return mechanism.on_client(state, update, slack, terms, source)


class Reusing(Experiment):
    """An experiment whose clients' training is there already: nothing is traced again."""

    def use(self, work: ClientWork) -> None:
        self.__dict__["work"] = work

    @contextmanager
    def client_work(self) -> Iterator[ClientWork]:
        assert self.audited is not None
        yield self.audited.join(self.__dict__["work"])


class FixedCohorts(Reusing):
    """Cohorts of the expected size, drawn without replacement."""

    def sample(self, number: int) -> Cohort:
        assert self.audited is not None
        everybody, rate = self.audited.clients, self.audited.canaries.rate
        scheme = FixedSizeSampling(round(rate * everybody), everybody)
        return self.audited.admit(
            sample_cohort(number, everybody, scheme, self.settings.cohort.dropout, self.streams)
        )


class OneCohort(Reusing):
    """The first round's cohort, in every round."""

    def sample(self, number: int) -> Cohort:
        return super().sample(1)


class ActualDivisor(Reusing):
    """The sum is divided by the clients that are in it."""

    def round(self, work: ClientWork) -> Round:
        return replace(super().round(work), divisor=None)


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: In words.
        experiment: The class that takes the experiment's place.
        mechanism: The class around the mechanism, if any.
        claimed: From a round's cohort and survivors to those whose noise the ledger counts.
        kind: Mechanism.
    """

    name: str
    experiment: type[Reusing] = Reusing
    mechanism: type[Faulty] | None = None
    claimed: Callable[[int, int], int] = lambda cohort, survivors: survivors
    kind: str = "gaussian"

    def plant(self, experiment: Experiment, work: ClientWork) -> Experiment:
        """The experiment with the fault in it, and an auditor who does not know; ``work`` trains its clients."""
        faulty = self.experiment(**{f.name: getattr(experiment, f.name) for f in fields(Experiment)})
        faulty.use(work)
        assert faulty.audited is not None
        if self.mechanism is not None:
            watched = faulty.audited.mechanism
            watched.inner = self.mechanism(watched.inner, list(watched.layers))  # type: ignore[assignment]  # on purpose
        return faulty


FAULTS = {
    "none": Fault("none"),
    "none-skellam": Fault("none (Skellam)", kind="skellam"),
    "none-banded": Fault("none (banded)", kind="banded"),
    "half-noise": Fault("noise × 0.5", mechanism=HalfNoise),
    "tenth-of-noise": Fault("noise × 0.1", mechanism=TenthOfNoise),
    "half-noise-banded": Fault("noise × 0.5 (banded)", mechanism=HalfNoise, kind="banded"),
    "forgotten-layer": Fault("noise forgotten on one layer", mechanism=ForgottenLayer),
    "clip-by-layer": Fault("clip by layer, not globally", mechanism=ClippedByLayer),
    "fixed-cohorts": Fault("Poisson claimed, fixed cohorts drawn", FixedCohorts),
    "same-cohort": Fault("Poisson claimed, one cohort for all rounds", OneCohort),
    "same-seed": Fault("seed of the noise reused each round", mechanism=SameSeed),
    "actual-divisor": Fault("division by the actual cohort", ActualDivisor),
    "missing-shares": Fault(
        "noise of every second survivor missing (Skellam)", mechanism=MissingShares, kind="skellam"
    ),
    "dropped-counted": Fault(
        "noise of dropped clients counted (Skellam)", claimed=lambda cohort, survivors: cohort, kind="skellam"
    ),
}
