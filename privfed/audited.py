"""An experiment's training under audit: from settings to canaries, and where they join it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from privfed.audit.canaries import LENGTH, CanaryClients, gathered, normalised, random_clients, random_directions
from privfed.audit.canary_work import JoinedWork, RandomUpdates, Silenced
from privfed.audit.watched import ServerStep, Watched
from privfed.executors.local import LocalClientWork
from privfed.federated.client_work import ClientWork
from privfed.federated.cohorts import Cohort
from privfed.federated.streams import Purpose
from privfed.privacy.mechanisms import Mechanism
from privfed.privacy.sampling import (
    ZERO_OUT,
    FixedSizeSampling,
    PoissonSampling,
    RoundRobinSampling,
    SamplingScheme,
)

if TYPE_CHECKING:
    from privfed.experiment import Experiment


@dataclass(frozen=True, eq=False)
class AuditedTraining:
    """The canaries of one training, and what takes the place of its parts.

    Attributes:
        canaries: Who they are.
        work: What they do.
        mechanism: The training's, under the auditor's eyes.
        sampling: How cohorts are drawn from clients and canaries together.
        noise_multiplier: Of a round's noise over the clip norm.
    """

    canaries: CanaryClients
    work: ClientWork
    mechanism: Watched
    sampling: SamplingScheme
    noise_multiplier: float

    @property
    def clients(self) -> int:
        """Clients and canaries."""
        return self.canaries.first + self.canaries.count

    def check(self) -> None:
        """Refuse canaries that would change the training.

        Raises:
            SettingError: They would act as noise.
        """
        self.canaries.check(self.noise_multiplier)

    def join(self, work: ClientWork) -> ClientWork:
        """The clients' training, and that of canaries beside it."""
        return JoinedWork(work, self.work, self.canaries.first, self.mechanism)

    def admit(self, drawn: Cohort) -> Cohort:
        """A cohort of clients and canaries, without those that do not exist."""
        cohort = self.canaries.admit(drawn)
        self.mechanism.sampled(cohort)
        return cohort


def audited_training(experiment: Experiment) -> AuditedTraining:
    """The canaries of ``experiment``, whose settings ask for some and name a mechanism.

    Raises:
        SettingError: There is no memory for them, or no random inputs can be made.
    """
    audit, streams, dimension = experiment.settings.audit, experiment.streams, experiment.model.dimension
    clients, count, mechanism = experiment.population.clients, audit.canaries, experiment.mechanism
    clip_norm = experiment.settings.privacy.clip_norm
    plan, divisor = experiment.privacy_plan, experiment.divisor
    assert plan is not None and clip_norm is not None and divisor is not None  # noqa: PT018 - settings were checked
    work: ClientWork
    if audit.canary_kind == "update":
        directions = random_directions(count, dimension, streams.key(Purpose.CANARIES, 1))
        work = RandomUpdates(directions, LENGTH * clip_norm)
    else:
        data = random_clients(experiment.population, count, streams.key(Purpose.CANARIES, 1))
        training = experiment.local_training
        work = LocalClientWork(experiment.model, data.features, data.labels, data.offsets, training)
        updates = work(experiment.initial_weights, range(count), streams.key(Purpose.SHUFFLE, 0))
        directions = normalised(gathered(updates, count, dimension))
    sampling, rate = _with_canaries(experiment.sampling, clients, count)
    included = np.random.default_rng(streams.key(Purpose.CANARIES, 2)).random(count) < 0.5
    canaries = CanaryClients(audit.canary_kind, clients, included, directions, rate, _zeroed(mechanism, sampling))
    return AuditedTraining(
        canaries,
        Silenced(work, ~included) if canaries.zero_out else work,
        Watched(
            mechanism,
            canaries,
            [variable.size for variable in experiment.model.variables],
            experiment.settings.training.rounds,
            ServerStep(experiment.server, experiment.rates("server"), divisor),
        ),
        sampling,
        mechanism.stddev(mechanism.initialize(dimension), plan.expected_survivors) / clip_norm,
    )


def _with_canaries(sampling: SamplingScheme, clients: int, canaries: int) -> tuple[SamplingScheme, float]:
    """How cohorts are drawn with canaries among the clients, and how likely each is to be in a round."""
    if isinstance(sampling, PoissonSampling):
        return sampling, sampling.rate
    if isinstance(sampling, FixedSizeSampling):
        return replace(sampling, population=clients + canaries), sampling.size / (clients + canaries)
    if isinstance(sampling, RoundRobinSampling):
        return replace(sampling, population=clients + canaries), sampling.size / (clients + canaries)
    return sampling, 1.0


def _zeroed(mechanism: Mechanism, sampling: SamplingScheme) -> bool:
    """Whether what the mechanism claims is about updates that become zero."""
    relations = {seen.release.sampling.neighbouring for seen in mechanism.releases(sampling)}
    return relations == {ZERO_OUT}
