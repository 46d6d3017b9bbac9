"""The composition root: the only file that turns settings into objects, and the commands' work into calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from privfed.config import Attacks as AttackSettings
from privfed.config import Cohort as CohortSettings
from privfed.config import Privacy as PrivacySettings
from privfed.config import SecureAggregation as SecureAggregationSettings
from privfed.config import Settings
from privfed.data import Population, build_population, load_dataset
from privfed.errors import SettingError
from privfed.executors.local import LocalClientWork, configure_threads
from privfed.federated.aggregation import Aggregation, PlainAggregation, RingAggregation
from privfed.federated.client_work import ClientWork, LocalTraining
from privfed.federated.cohorts import sample_cohort
from privfed.federated.evaluation import Evaluator
from privfed.federated.round import Round
from privfed.federated.server_update import OPTIMIZERS, ServerOptimizer
from privfed.federated.streams import Streams
from privfed.federated.training import Keeping, RoundReport, Spending, TrainingResult, train
from privfed.models.build import build_model
from privfed.models.functional import Model, Vector
from privfed.privacy.accounting import Guarantee, by_observer, times
from privfed.privacy.calibration import smallest_noise, smallest_where
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.ledger import Header, Ledger
from privfed.privacy.mechanisms import (
    AdaptiveClipping,
    CentralGaussian,
    DistributedNoise,
    LocalGaussian,
    Mechanism,
    NoMechanism,
)
from privfed.privacy.sampling import FixedSizeSampling, FullParticipation, PoissonSampling, SamplingScheme
from privfed.secagg import ProtocolSum, RingSum
from privfed.transcript import Plan


@dataclass(frozen=True, eq=False)
class Experiment:
    """Settings, and the objects they stand for; built by ``compose``.

    Attributes:
        settings: As resolved.
        population: Clients' and held-out examples.
        model: What is trained.
        noise_multiplier: Given or calibrated; ``None`` without a mechanism.
    """

    settings: Settings
    population: Population
    model: Model
    noise_multiplier: float | None

    @cached_property
    def sampling(self) -> SamplingScheme:
        """How cohorts are drawn: what the sampler does and the accountant is told."""
        cohort = self.settings.cohort
        if cohort.rate is not None:
            return PoissonSampling(cohort.rate)
        if cohort.size is not None:
            return FixedSizeSampling(cohort.size, self.population.clients)
        return FullParticipation()

    @cached_property
    def streams(self) -> Streams:
        """Randomness."""
        return Streams(self.settings.training.seed, self.settings.privacy.randomness == "secure")

    @cached_property
    def mechanism(self) -> Mechanism:
        """Clipping and noise."""
        return self.mechanism_with(self.noise_multiplier)

    def mechanism_with(self, noise_multiplier: float | None) -> Mechanism:
        """The mechanism of the settings with so much noise."""
        privacy = self.settings.privacy
        if noise_multiplier is None:
            return NoMechanism(privacy.clip_norm)
        assert privacy.clip_norm is not None  # the settings were checked
        secure = privacy.randomness == "secure"
        if privacy.mechanism == "adaptive":
            return AdaptiveClipping(
                privacy.clip_norm,
                noise_multiplier,
                expected_cohort=self.expected_cohort,
                quantile=privacy.quantile,
                rate=privacy.quantile_rate,
                secure=secure,
            )
        if privacy.mechanism == "local":
            return LocalGaussian(privacy.clip_norm, noise_multiplier, secure)
        if privacy.mechanism in ("discrete_gaussian", "skellam"):
            return self._distributed(privacy.mechanism, privacy.clip_norm, noise_multiplier, secure)
        return CentralGaussian(privacy.clip_norm, noise_multiplier, secure)

    def _distributed(
        self,
        noise: Literal["discrete_gaussian", "skellam"],
        clip_norm: float,
        noise_multiplier: float,
        secure: bool,
    ) -> DistributedNoise:
        masking = self.settings.secure_aggregation
        params = DistributedParams.for_cohort(
            noise,
            clip_norm,
            self.model.dimension,
            noise_multiplier,
            expected_survivors=self.expected_survivors,
            cohort_size=self.largest_cohort,
            ring_bits=masking.ring_bits,
        )
        return DistributedNoise(
            noise,
            params,
            self.population.clients,
            threshold=masking.threshold or 2,
            masked=masking.mode == "protocol",
            colluders=masking.colluders,
            seed=self.settings.training.seed,
            secure=secure,
        )

    @property
    def expected_survivors(self) -> int:
        """Clients whose inputs arrive in a round, on average, rounded down."""
        return max(1, math.floor(self.expected_cohort * (1 - self.settings.cohort.dropout)))

    @cached_property
    def largest_cohort(self) -> int:
        """Clients in a round, which a Poisson cohort exceeds with a probability below 2⁻⁴⁰."""
        rate, clients = self.settings.cohort.rate, self.population.clients
        if rate is None:
            return math.ceil(self.expected_cohort)
        from scipy.stats import binom

        return min(clients, int(binom.isf(2.0**-40, clients, rate)) + 1)

    def guarantees_of(self, mechanism: Mechanism, rounds: int) -> dict[str, Guarantee]:
        """By observer, what ``rounds`` rounds of ``mechanism`` spend when as many clients survive as expected."""
        releases = mechanism.releases(self.sampling, self.expected_survivors)
        spent = times(releases, 1 if mechanism.whole_run else rounds)
        return by_observer([spent], self.settings.privacy.delta) if releases else {}

    @cached_property
    def guarantees(self) -> dict[str, Guarantee]:
        """By observer, what the whole run is planned to spend; nothing without a mechanism."""
        return self.guarantees_of(self.mechanism, self.rounds)

    def calibrated(self, epsilon: float) -> float:
        """The least noise multiplier with ε within the target against ``privacy.against``."""

        def spent(noise_multiplier: float) -> float:
            return self._stated(self.guarantees_of(self.mechanism_with(noise_multiplier), rounds))

        rounds, privacy = self.settings.training.rounds, self.settings.privacy
        if privacy.mechanism in ("discrete_gaussian", "skellam"):
            return smallest_where(spent, epsilon)
        return smallest_noise(spent, epsilon, privacy.delta)

    def _stated(self, guarantees: Mapping[str, Guarantee]) -> float:
        """ε against ``privacy.against``: an observer, or the worst of those that are protected."""
        against = self.settings.privacy.against
        if against == "protected":
            return max(g.epsilon for g in guarantees.values())
        if against not in guarantees:
            raise SettingError(
                f"the mechanism {self.settings.privacy.mechanism} does not protect from it",
                where="privacy.against",
                value=against,
                remedy=f"Protected here: {', '.join(guarantees) or 'nobody'}",
            )
        return guarantees[against].epsilon

    @cached_property
    def rounds(self) -> int:
        """Rounds to train: those of the settings, or as many as ``privacy.max_epsilon`` allows."""
        most, limit = self.settings.training.rounds, self.settings.privacy.max_epsilon
        if limit is None or self.noise_multiplier is None:
            return most
        low, high = 0, most  # ε rises with the rounds: the largest count within the limit
        while low < high:
            middle = (low + high + 1) // 2
            spent = self._stated(self.guarantees_of(self.mechanism, middle))
            low, high = (middle, high) if spent <= limit else (low, middle - 1)
        return low

    @cached_property
    def divisor(self) -> float | None:
        """The expected cohort under differential privacy; else the survivors' weight."""
        return None if self.noise_multiplier is None else self.expected_cohort

    @property
    def expected_cohort(self) -> float:
        """Clients in a round: exactly, or on average under Poisson sampling."""
        cohort, clients = self.settings.cohort, self.population.clients
        return clients * cohort.rate if cohort.rate else float(cohort.size or clients)

    @cached_property
    def server(self) -> ServerOptimizer:
        """The server's optimizer."""
        training = self.settings.training
        options = {"momentum": training.server_momentum} if training.server_optimizer == "sgd" else {}
        return OPTIMIZERS[training.server_optimizer](training.server_learning_rate, **options)

    @cached_property
    def local_training(self) -> LocalTraining:
        """What clients do."""
        training = self.settings.training
        return LocalTraining(training.learning_rate, training.local_epochs, training.batch_size, training.shuffle)

    @cached_property
    def plan(self) -> Plan:
        """What every observer knows."""
        training, privacy = self.settings.training, self.settings.privacy
        return Plan(
            learning_rate=training.learning_rate,
            local_epochs=training.local_epochs,
            batch_size=training.batch_size,
            server_scale=self.server.linear_scale,
            clip_norm=privacy.clip_norm,
            noise_stddev=self.mechanism.stddev(self.mechanism.initialize(self.model.dimension)),
            divisor=self.divisor,
            mode=self.settings.secure_aggregation.mode,
            weighted=training.weighted,
        )

    @cached_property
    def initial_weights(self) -> Vector:
        """The public starting point ``[d]``."""
        return self.model.initial_vector(self.settings.training.seed)

    @cached_property
    def recorded_rounds(self) -> tuple[int, ...]:
        """Rounds that the transcript keeps."""
        attacks, rounds = self.settings.attacks, self.settings.training.rounds
        if not attacks.enabled:
            return ()
        return tuple(attacks.rounds) if attacks.rounds is not None else tuple(sorted({1, rounds} - {0}))

    @contextmanager
    def client_work(self) -> Iterator[ClientWork]:
        """Local training on the chosen executor; processes of its own end with the context."""
        data = self.population
        work = _executor(self.settings.executor)(
            self.model, data.features, data.labels, data.offsets, self.local_training
        )
        with work if isinstance(work, AbstractContextManager) else nullcontext(work):
            yield work

    def aggregation(self) -> Aggregation:
        """From updates to their sum, by the chosen mode."""
        masking, privacy = self.settings.secure_aggregation, self.settings.privacy
        if masking.mode == "off" or privacy.clip_norm is None:
            return PlainAggregation()
        protocol = masking.mode == "protocol"
        return RingAggregation(
            secure_sum=ProtocolSum if protocol else lambda _, threshold: RingSum(threshold),
            ring_bits=masking.ring_bits,
            threshold=masking.threshold,
            masked=protocol,
        )

    def round(self, work: ClientWork) -> Round:
        """One round, ready to run."""
        sizes = self.population.sizes
        return Round(
            work=work,
            mechanism=self.mechanism,
            aggregation=self.aggregation(),
            server=self.server,
            streams=self.streams,
            divisor=self.divisor,
            shares=sizes / sizes.max() if self.settings.training.weighted else None,
        )

    def run(
        self,
        spending: Spending | None,
        observe: Callable[[RoundReport], None],
        keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    ) -> TrainingResult:
        """Train."""
        data, settings = self.population, self.settings
        with self.client_work() as work:
            return train(
                self.round(work),
                initial_weights=self.initial_weights,
                rounds=self.rounds,
                plan=self.plan,
                sample=lambda number: sample_cohort(
                    number, data.clients, self.sampling, settings.cohort.dropout, self.streams
                ),
                evaluator=Evaluator(self.model, data.as_float(data.test_features), data.test_labels),
                evaluate_every=settings.training.evaluate_every,
                record_rounds=self.recorded_rounds,
                spending=spending,
                observe=observe,
                keeping=keeping,
            )

    def unprotected(self) -> Experiment:
        """The same training without clip, noise, masks and dropouts, to measure what protection costs."""
        settings = self.settings.model_copy(
            update={
                "privacy": PrivacySettings(),
                "secure_aggregation": SecureAggregationSettings(),
                "cohort": self.settings.cohort.model_copy(update={"dropout": CohortSettings().dropout}),
            }
        )
        return replace(self, settings=settings, noise_multiplier=None)

    def open_ledger(self, path: Path) -> Ledger:
        """The run's ledger, new or gone on with."""
        privacy = self.settings.privacy
        header = Header(
            self.settings.fingerprint(),
            privacy.mechanism,
            privacy.unit,
            privacy.delta,
            privacy.randomness == "secure",
        )
        return Ledger(path, header)

    def spending(self, ledger: Ledger) -> Spending | None:
        """Puts rounds on the ledger; nothing to put without a mechanism."""
        if self.noise_multiplier is None:
            return None
        return LedgerSpending(ledger, self.mechanism, self.sampling)


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


def compose(settings: Settings) -> Experiment:
    """Load the data, build the model, calibrate the noise; everything that can be refused is refused here.

    Raises:
        PrivFedError: Data, model or privacy settings do not fit.
    """
    configure_threads()
    check_attacks(settings.attacks)
    population = load_population(settings)
    chosen = settings.model
    model = build_model(
        chosen.name,
        population.input_shape,
        population.classes,
        hidden=chosen.hidden,
        activation=chosen.activation,
        initializer=chosen.initializer,
    )
    experiment = Experiment(settings, population, model, None)
    privacy = settings.privacy
    if privacy.mechanism == "none":
        return experiment
    noise = privacy.noise_multiplier
    if noise is None and privacy.epsilon is not None:
        noise = experiment.calibrated(privacy.epsilon)
    return replace(experiment, noise_multiplier=noise)


def load_population(settings: Settings) -> Population:
    """Read the dataset and spread it over clients."""
    data = settings.data
    dataset = load_dataset(data.source, folder=data.folder, data_dir=data.data_dir, manual_dir=data.manual_dir)
    return build_population(
        dataset,
        data.partition,
        clients=data.clients,
        seed=data.seed,
        alpha=data.alpha,
        shards_per_client=data.shards_per_client,
        examples_per_client=data.examples_per_client,
    )


def check_attacks(settings: AttackSettings) -> None:
    """Refuse attacks that nobody wrote, before anything is trained."""
    from attacks import ATTACKS

    for name in settings.methods:
        if name not in ATTACKS:
            raise SettingError(
                "no such attack", where="attacks.methods", value=name, remedy=f"Known: {', '.join(ATTACKS)}"
            )


def _executor(name: str) -> Callable[..., ClientWork]:
    if name == "tff":
        # TFF takes seconds to import: only who asks for it waits for it.
        from privfed.executors.tff import TffClientWork

        return TffClientWork
    return LocalClientWork
