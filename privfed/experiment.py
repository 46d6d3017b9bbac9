"""An experiment: settings, and the objects that they stand for; ``privfed.composition`` builds one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from privfed.audited import AuditedTraining, audited_training
from privfed.config import Audit as AuditSettings
from privfed.config import Privacy as PrivacySettings
from privfed.config import SecureAggregation as SecureAggregationSettings
from privfed.config import Settings
from privfed.data import Population
from privfed.executors.local import LocalClientWork
from privfed.federated.aggregation import Aggregation, PlainAggregation, RingAggregation
from privfed.federated.client_work import ClientWork, LocalTraining
from privfed.federated.cohorts import Cohort, sample_cohort
from privfed.federated.evaluation import Evaluator
from privfed.federated.rates import RateSchedule
from privfed.federated.round import Round
from privfed.federated.scaffold import Scaffold
from privfed.federated.secure_sums import secure_sum_of
from privfed.federated.server_update import OPTIMIZERS, ServerOptimizer
from privfed.federated.spending import LedgerSpending, rounds_within
from privfed.federated.streams import Streams
from privfed.federated.training import Keeping, RoundReport, Spending, TrainingResult, train
from privfed.models.functional import Model, Vector
from privfed.privacy.accounting import Guarantee
from privfed.privacy.ledger import Ledger
from privfed.privacy.ledger_entries import Header
from privfed.privacy.ledger_report import spent_releases
from privfed.privacy.mechanisms import ExampleGaussian, Mechanism, NoMechanism
from privfed.privacy.plan import PrivacyPlan
from privfed.privacy.sampling import SamplingScheme
from privfed.schemes import privacy_plan_of, sampling_scheme
from privfed.transcript import Plan


@dataclass(frozen=True, eq=False)
class Experiment:
    """Settings, and the objects they stand for; built by ``compose``.

    Attributes:
        settings: As resolved.
        population: Clients' and held-out examples.
        model: What is trained.
        noise_multiplier: Given or calibrated; ``None`` without a mechanism.
        held_out: Clients that do not train.
        start: Weights to start from; the model's own, by the seed, when not given.
    """

    settings: Settings
    population: Population
    model: Model
    noise_multiplier: float | None
    held_out: Population | None = None
    start: Vector | None = None

    @cached_property
    def sampling(self) -> SamplingScheme:
        """How cohorts are drawn: what the sampler does and the accountant is told."""
        settings = self.settings
        return sampling_scheme(settings.cohort, self.population.clients, settings.training.rounds)

    @cached_property
    def streams(self) -> Streams:
        """Randomness."""
        return Streams(self.settings.training.seed, self.settings.privacy.randomness == "secure")

    @cached_property
    def privacy_plan(self) -> PrivacyPlan | None:
        """All that ε depends on but the noise; ``None`` without a mechanism."""
        return privacy_plan_of(self.settings, self.population.clients, self.model.dimension)

    @cached_property
    def mechanism(self) -> Mechanism:
        """Clipping and noise."""
        if self.privacy_plan is None or self.noise_multiplier is None:
            return NoMechanism(self.settings.privacy.clip_norm)
        return self.privacy_plan.mechanism(self.noise_multiplier)

    def guarantees(self, rounds: int | None = None) -> dict[str, Guarantee]:
        """By observer, what the whole run (or its first ``rounds``) plans to spend; empty without a mechanism."""
        if self.privacy_plan is None or self.noise_multiplier is None:
            return {}
        return replace(self.privacy_plan, rounds=self.rounds if rounds is None else rounds).guarantees(
            self.noise_multiplier
        )

    def stated(self, guarantees: Mapping[str, Guarantee]) -> Guarantee | None:
        """The one to watch: against ``privacy.against``; ``None`` where nothing is promised."""
        against = self.settings.privacy.against
        if self.privacy_plan is None or not guarantees or against not in ("protected", *guarantees):
            return None
        return self.privacy_plan.stated(guarantees, against)

    @cached_property
    def rounds(self) -> int:
        """Rounds to train: those of the settings, or as many as ``privacy.max_epsilon`` allows."""
        privacy = self.settings.privacy
        if privacy.max_epsilon is None or self.privacy_plan is None or self.noise_multiplier is None:
            return self.settings.training.rounds
        return self.privacy_plan.rounds_within(self.noise_multiplier, privacy.max_epsilon, privacy.against)

    @property
    def budget(self) -> float | None:
        """The ε that a run must stay within: the target, or the limit; ``None`` without either."""
        privacy = self.settings.privacy
        return min((e for e in (privacy.epsilon, privacy.max_epsilon) if e is not None), default=None)

    def rounds_after_replays(self, ledger: Path, done: int, rounds: int) -> int:
        """Of ``rounds`` planned, how many the budget still holds after ``done`` of them.

        In secure mode a round that a crash lost is drawn anew, and is one more release: then the run ends earlier.
        """
        plan, budget = self.privacy_plan, self.budget
        if plan is None or budget is None or not plan.secure:
            return rounds
        return rounds_within(
            budget, plan, self.mechanism, spent_releases(ledger)[1], self.settings.privacy.against, done, rounds
        )

    @cached_property
    def divisor(self) -> float | None:
        """The wanted cohort where it is private who takes part; else the survivors' weight."""
        if self.privacy_plan is None or self.settings.privacy.unit == "example":
            return None
        return self.privacy_plan.wanted_cohort

    @cached_property
    def server(self) -> ServerOptimizer:
        """The server's optimizer."""
        training = self.settings.training
        options = {"momentum": training.server_momentum} if training.server_optimizer == "sgd" else {}
        return OPTIMIZERS[training.server_optimizer](training.server_learning_rate, **options)

    @cached_property
    def local_training(self) -> LocalTraining:
        """What clients do."""
        training, everything = self.settings.training, int(max(1, self.population.sizes.max(initial=1)))
        return LocalTraining(
            training.learning_rate,
            training.local_epochs,
            everything if training.algorithm == "fedsgd" else training.batch_size,
            training.shuffle,
            training.local_steps,
            training.momentum,
            training.proximal or 0.0,
            corrected=training.algorithm == "scaffold",
            example=self.mechanism.example if isinstance(self.mechanism, ExampleGaussian) else None,
        )

    def rates(self, side: str) -> RateSchedule:
        """The factor on the learning rate of the ``client`` or the ``server``, by round."""
        training = self.settings.training
        prefix = "server_learning_rate" if side == "server" else "learning_rate"
        options = {name: getattr(training, f"{prefix}_{name}") for name in ("decay", "factor", "every", "warmup")}
        return RateSchedule(training.rounds, **options)

    @cached_property
    def plan(self) -> Plan:
        """What every observer knows."""
        training, privacy = self.settings.training, self.settings.privacy
        sizes = self.population.sizes
        survivors = 0 if self.privacy_plan is None else self.privacy_plan.expected_survivors
        return Plan(
            learning_rate=training.learning_rate,
            local_epochs=training.local_epochs,
            batch_size=self.local_training.batch_size,
            server_scale=self.server.linear_scale,
            clip_norm=privacy.clip_norm,
            noise_stddev=self.mechanism.stddev(self.mechanism.initialize(self.model.dimension), survivors),
            client_noise_stddev=self.mechanism.client_noise,
            divisor=self.divisor,
            mode=self.settings.secure_aggregation.mode,
            weighted=training.weighted,
            local_steps=training.local_steps,
            momentum=training.momentum,
            proximal=training.proximal or 0.0,
            corrected=self.local_training.corrected,
            examples=float(sizes.max() if training.weighted else sizes.mean()) if len(sizes) else None,
        )

    @cached_property
    def initial_weights(self) -> Vector:
        """The public starting point ``[d]``."""
        return self.model.initial_vector(self.settings.training.seed) if self.start is None else self.start

    @cached_property
    def recorded_rounds(self) -> tuple[int, ...]:
        """Rounds that the transcript keeps."""
        attacks, rounds = self.settings.attacks, self.settings.training.rounds
        if not attacks.enabled:
            return ()
        return tuple(attacks.rounds) if attacks.rounds is not None else tuple(sorted({1, rounds} - {0}))

    @cached_property
    def audited(self) -> AuditedTraining | None:
        """The audit's canaries and how they take part; ``None`` without them."""
        return audited_training(self) if self.settings.audit.canaries else None

    @contextmanager
    def client_work(self) -> Iterator[ClientWork]:
        """Local training on the chosen executor; processes of its own end with the context."""
        data = self.population
        work = _executor(self.settings)(self.model, data.features, data.labels, data.offsets, self.local_training)
        with work if isinstance(work, AbstractContextManager) else nullcontext(work):
            yield work if self.audited is None else self.audited.join(work)

    def aggregation(self) -> Aggregation:
        """From updates to their sum, by the chosen mode.

        Raises:
            SettingError: The mode needs a library that is not installed.
        """
        masking, privacy = self.settings.secure_aggregation, self.settings.privacy
        if masking.mode == "off" or privacy.clip_norm is None:
            return PlainAggregation()
        return RingAggregation(
            secure_sum=secure_sum_of(masking.mode),
            ring_bits=None if masking.ring_bits == "auto" else masking.ring_bits,
            threshold=masking.threshold,
            masked=masking.mode != "ring",
            colluders=masking.colluders,
        )

    def round(self, work: ClientWork) -> Round:
        """One round, ready to run."""
        sizes, local = self.population.sizes, self.local_training
        return Round(
            work=work,
            mechanism=self.mechanism if self.audited is None else self.audited.mechanism,
            aggregation=self.aggregation(),
            server=self.server,
            streams=self.streams,
            divisor=self.divisor,
            shares=sizes / sizes.max() if self.settings.training.weighted else None,
            client_rate=self.rates("client"),
            server_rate=self.rates("server"),
            scaffold=Scaffold(local.learning_rate, local.steps_of(sizes)) if local.corrected else None,
        )

    def sample(self, number: int) -> Cohort:
        """The cohort of round ``number``; canaries are drawn as if they were further clients."""
        dropout = self.settings.cohort.dropout
        if self.audited is None:
            return sample_cohort(number, self.population.clients, self.sampling, dropout, self.streams)
        scheme, everybody = self.audited.sampling, self.audited.clients
        return self.audited.admit(sample_cohort(number, everybody, scheme, dropout, self.streams))

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
                sample=self.sample,
                evaluator=Evaluator(self.model, data.as_float(data.test_features), data.test_labels),
                evaluate_every=settings.training.evaluate_every,
                record_rounds=self.recorded_rounds,
                spending=spending,
                observe=observe,
                keeping=keeping,
                average=settings.training.server_average,
            )

    def unprotected(self) -> Experiment:
        """The same training without clip, noise, masks and dropouts, to measure what protection costs."""
        settings = self.settings.model_copy(
            update={
                "privacy": PrivacySettings(),
                "audit": AuditSettings(),
                "secure_aggregation": SecureAggregationSettings(),
                "cohort": self.settings.cohort.model_copy(update={"dropout": 0.0, "over_selection": 0.0}),
            }
        )
        return replace(self, settings=settings, noise_multiplier=None)

    def without_canaries(self) -> Experiment:
        """The same training without the audit's canaries, to measure what they cost; masks change no sum."""
        masking = self.settings.secure_aggregation
        if masking.mode in ("protocol", "bfv"):
            masking = masking.model_copy(update={"mode": "ring"})
        updates = {"audit": AuditSettings(), "secure_aggregation": masking}
        return replace(self, settings=self.settings.model_copy(update=updates))

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


def _executor(settings: Settings) -> Callable[..., ClientWork]:
    if settings.executor == "tff":
        # TFF takes seconds to import: only who asks for it waits for it.
        from privfed.executors.tff import TffClientWork

        return TffClientWork
    if settings.executor == "ray":
        from privfed.executors.ray import RayClientWork

        assert settings.sum_parts is not None  # the settings fill it in
        where = settings.ray
        return partial(
            RayClientWork,
            parts=settings.sum_parts,
            address=where.address,
            workers=where.workers,
            object_store_mib=where.object_store_mib,
        )
    return partial(LocalClientWork, parts=settings.sum_parts)
