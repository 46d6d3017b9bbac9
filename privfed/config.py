"""The settings of one experiment: strict and frozen; the one place where a setting is described and checked."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Decay = Literal["none", "exponential", "step", "cosine"]


class Section(BaseModel):
    """A table of the settings file: frozen, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _integers_are_floats(cls, values: Any) -> Any:
        # TOML writes 1 where the field is a float; strict mode would refuse the int.
        if isinstance(values, dict):
            return {key: _as_float_if(cls, key, value) for key, value in values.items()}
        return values


def _as_float_if(section: type[BaseModel], key: str, value: Any) -> Any:
    field = section.model_fields.get(key)
    if field is not None and type(value) is int and field.annotation in (float, float | None):
        return float(value)
    return value


class Data(Section):
    """``[data]``: which examples, and how they are spread over clients."""

    source: str = "digits"
    """``digits``, ``idx`` (with ``folder``), ``idx:FOLDER``, ``tfds:NAME``, ``tff:NAME``, ``npz:FILE``,
    ``parquet:FILE`` or ``npy:FOLDER``; the last four come by client."""
    folder: str | None = None
    """Folder of the gzip IDX files, for ``idx``."""
    data_dir: str | None = None
    """TensorFlow Datasets' folder; its usual one when not given."""
    manual_dir: str | None = None
    """Where TensorFlow Datasets looks for files downloaded by hand."""
    partition: Literal["sequential", "iid", "dirichlet", "shards", "natural"] = "iid"
    """``natural``: clients are those that the data come with."""
    clients: Count | None = None
    """10 when not given; under ``natural`` all there are, or a random draw of so many."""
    alpha: Positive = 0.5
    """Concentration of ``dirichlet``: small is more skewed."""
    shards_per_client: Count = 2
    examples_per_client: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    held_out_clients: Annotated[float, Field(gt=0, lt=1)] | Count | None = None
    """Clients, or the share of them, that do not train and on which the model is evaluated in the end."""
    label_column: str | None = None
    """Of ``parquet``."""
    client_column: str | None = None
    """Of ``parquet``."""
    sequence_length: Count | None = None
    """Of the texts of ``tff``: tokens before the one to predict."""

    @property
    def known_clients(self) -> int | None:
        """How many clients train, where the settings say it."""
        return self.clients if self.partition == "natural" else self.clients or 10

    @field_validator("partition", mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("dirichlet("):
            raise ValueError('write partition = "dirichlet" and alpha = … as a key of its own')
        return value


class Model(Section):
    """``[model]``: a name of the zoo, or the user's Keras builder."""

    name: str = "softmax"
    """``softmax``, ``mlp``, ``lenet``, ``cnn``, ``transformer``, or ``module:function``."""
    hidden: list[Count] | None = None
    activation: Literal["relu", "sigmoid", "tanh"] | None = None
    initializer: Literal["zeros", "glorot", "uniform"] | None = None
    features: Literal["hog", "one_hot"] | None = None
    """A fixed function of each example that the model gets instead: ``hog`` of images, ``one_hot`` of text."""


class Training(Section):
    """``[training]``: federated averaging."""

    rounds: Annotated[int, Field(ge=0)] = 20
    algorithm: Literal["fedavg", "fedsgd", "fedprox", "scaffold"] = "fedavg"
    """``fedsgd``: one step over all of a client's examples, whatever ``batch_size`` says. ``fedprox``: with
    ``proximal``. ``scaffold``: with control variates, for clients whose data differ."""
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of ``fedprox``: the μ of the pull back towards the model that was sent."""
    local_epochs: Count = 1
    local_steps: Count | None = None
    """A fixed number of steps of each client, in as many passes as they take, instead of ``local_epochs``."""
    batch_size: Count = 20
    learning_rate: Positive = 0.1
    learning_rate_decay: Decay = "none"
    """From round to round: ``exponential``, ``step``, or ``cosine`` over the whole training."""
    learning_rate_factor: Rate = 0.1
    """Of the decay: what multiplies the rate every ``learning_rate_every`` rounds, or in the end (``cosine``)."""
    learning_rate_every: Count | None = None
    """Of ``exponential`` and ``step``: rounds; for ``exponential`` all that follow the warm-up when not given."""
    learning_rate_warmup: Annotated[int, Field(ge=0)] = 0
    """Rounds in which the rate rises linearly to its value."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the clients' steps, from zero in each round."""
    shuffle: bool = True
    weighted: bool = False
    """Weight clients by their example counts, as McMahan et al. (2017) do; refused under differential privacy."""
    server_optimizer: Literal["sgd", "adam", "adagrad", "yogi"] = "sgd"
    server_learning_rate: Positive = 1.0
    server_learning_rate_decay: Decay = "none"
    """This and the three below: as the clients'."""
    server_learning_rate_factor: Rate = 0.1
    server_learning_rate_every: Count | None = None
    server_learning_rate_warmup: Annotated[int, Field(ge=0)] = 0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    server_average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Release a moving average of the rounds' models, in which each counts this much of the one after it; 0 for
    the last model. It costs no privacy, and takes out some of the noise."""
    seed: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Count = 1
    checkpoint_every: Count = 10
    """Rounds from one checkpoint to the next; a killed run goes on from the last one."""
    patience: Count | None = None
    """Stop after so many evaluations without a lower held-out loss."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard's event files."""


class Cohort(Section):
    """``[cohort]``: who takes part in a round."""

    sampling: Literal["poisson", "fixed", "round_robin", "all"] = "all"
    rate: Rate | None = None
    """Of ``poisson``: each client takes part with this probability, independently."""
    size: Count | None = None
    """Of ``fixed``: so many clients, without replacement. Of ``round_robin``: so many, in a fixed order."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a sampled client vanishes in the round, at a stage drawn uniformly."""

    @model_validator(mode="after")
    def _fits(self) -> Cohort:
        needed = {"poisson": "rate", "fixed": "size", "round_robin": "size"}.get(self.sampling)
        for key in ("rate", "size"):
            given = getattr(self, key) is not None
            if key == needed and not given:
                raise ValueError(f"{key} is missing: sampling = {self.sampling!r} needs it")
            if key != needed and given:
                raise ValueError(f"{key} does not go with sampling = {self.sampling!r}: remove it")
        return self


class Privacy(Section):
    """``[privacy]``: differential privacy, of clients or of their examples."""

    mechanism: Literal[
        "none", "gaussian", "adaptive", "local", "discrete_gaussian", "skellam", "tree", "banded", "dp_sgd"
    ] = "none"
    """``gaussian``: central noise. ``adaptive``: the same, with a clip norm that follows a quantile of the norms.
    ``local``: every client noises its own update. ``discrete_gaussian``, ``skellam``: every client adds its share
    of integer noise, and secure aggregation lets the server see the noised sum only. ``tree``, ``banded``: central
    noise correlated over rounds (DP-FTRL), for round-robin cohorts. ``dp_sgd``: every client clips and noises the
    gradients of its local steps, which protects single examples."""
    bands: Count | None = None
    """Of ``banded``: rounds over which noise is correlated; as many as the cohorts allow when not given."""
    against: Literal["protected", "release", "client", "server", "server+colluders", "active server"] = "protected"
    """Whom ``epsilon`` and ``max_epsilon`` are meant against: an observer, or the worst of those protected."""
    unit: Literal["client", "example"] = "client"
    """Whose data is protected as one: ``example`` with ``dp_sgd`` and with nothing else."""
    example_rate: Rate | None = None
    """Of ``dp_sgd``: each example is in a local step with this probability, independently. ``training.batch_size``
    is what sums of gradients are divided by, so it should be about this share of a client's examples."""
    clip_norm: Positive | None = None
    """L2 bound of each client's update; of each example's gradient, with ``dp_sgd``."""
    epsilon: Positive | None = None
    """Target for the whole run; the noise multiplier is calibrated from it."""
    noise_multiplier: Positive | None = None
    """Standard deviation of the noise on the sum, over ``clip_norm``."""
    max_epsilon: Positive | None = None
    """Stop before the round whose ε would exceed it."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of ``adaptive``: share of updates that the clip norm leaves as they are."""
    quantile_rate: Positive = 0.2
    """Of ``adaptive``: how fast the clip norm moves."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    randomness: Literal["research", "secure"] = "research"
    """``research``: seeded, reproducible, not secret. ``secure``: the operating system's CSPRNG."""

    @model_validator(mode="after")
    def _fits(self) -> Privacy:
        if self.mechanism == "none":
            for key in ("epsilon", "noise_multiplier", "max_epsilon"):
                if getattr(self, key) is not None:
                    raise ValueError(f'{key} needs a mechanism: set mechanism = "gaussian" or remove {key}')
            return self
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError("epsilon and noise_multiplier are both given: keep one, the other follows from it")
        if self.epsilon is None and self.noise_multiplier is None:
            raise ValueError("neither epsilon nor noise_multiplier is given: set one of them")
        if self.clip_norm is None:
            raise ValueError("clip_norm is missing: without a bound on each update no noise protects it")
        return self

    @model_validator(mode="after")
    def _unit_fits(self) -> Privacy:
        if self.mechanism == "dp_sgd" and self.unit != "example":
            raise ValueError('dp_sgd promises nothing for a client as a whole (ε = ∞): set unit = "example"')
        if self.mechanism != "dp_sgd" and self.unit == "example":
            raise ValueError(
                f'unit = "example" goes with dp_sgd alone: remove it; {self.mechanism} is stated for whole clients'
            )
        if (self.mechanism == "dp_sgd") != (self.example_rate is not None):
            raise ValueError(
                "example_rate is missing: dp_sgd needs it"
                if self.mechanism == "dp_sgd"
                else f"example_rate does not go with mechanism = {self.mechanism!r}: remove it"
            )
        return self


class SecureAggregation(Section):
    """``[secure_aggregation]``: how the server comes to the sum."""

    mode: Literal["off", "ring", "protocol"] = "off"
    threshold: Annotated[int, Field(ge=2)] | None = None
    """Survivors a round needs; never less than more than half of cohort and colluders together."""
    ring_bits: Annotated[int, Field(ge=8, le=64)] | Literal["auto"] = 32
    """Sums are modulo 2 to this; ``auto`` takes each cohort's values of 16 bits in as few bits as it can."""
    colluders: Annotated[int, Field(ge=0)] = 1
    """Clients of each cohort that the observers ``server+colluders`` and ``active server`` are given."""


class Attacks(Section):
    """``[attacks]``: what is tried on every observer's view."""

    enabled: bool = True
    methods: list[str] = ["dense_layer", "gradient_matching"]
    rounds: list[Count] | None = None
    """Rounds to record for the transcript; the first and the last when not given."""
    targets: Count = 5
    """Observations attacked for each observer."""
    iterations: Count = 300
    """Budget of the gradient matching, in iterations of its optimizer."""
    seed: Annotated[int, Field(ge=0)] = 0


class Audit(Section):
    """``[audit]``: what stands beside the run in the report."""

    baseline: bool = True
    """Train once more without clipping, noise, masking and dropouts, for accuracy's price."""
    membership: list[Literal["loss", "lira", "lira_offline", "rmia", "rmia_offline"]] = ["loss"]
    """Membership inference on the released model; an empty list for none."""
    shadow_models: Annotated[int, Field(ge=2, le=1024, multiple_of=2)] = 4
    """Of LiRA and RMIA: trainings with the same settings on halves of the pool, each with its complement."""
    canaries: Annotated[int, Field(ge=0)] = 0
    """Canary clients put into the training, each there or not by a fair coin: for an empirical ε; 0 for none."""
    canary_kind: Literal["update", "input"] = "update"
    """``update``: sends a random direction. ``input``: trains on random inputs with random labels."""
    canary_control: bool = False
    """Train once more without canaries, for what they cost in accuracy."""

    @model_validator(mode="after")
    def _each_method_once_and_with_models_enough(self) -> Audit:
        if len(self.membership) != len(set(self.membership)):
            raise ValueError(f"membership names a method twice: {', '.join(self.membership)}")
        if self.shadow_models < 4 and any(name.startswith("lira") for name in self.membership):
            raise ValueError(f"shadow_models = {self.shadow_models} is too few for lira, which needs 4")
        return self

    @model_validator(mode="after")
    def _canaries_fit(self) -> Audit:
        if 0 < self.canaries < 20:
            raise ValueError(f"canaries = {self.canaries} can show nothing: use 0, or at least 20")
        if self.canary_control and not self.canaries:
            raise ValueError(
                "canary_control compares with a training without canaries: set canaries, or remove it"
            )
        return self


class Settings(Section):
    """One experiment."""

    name: str = "experiment"
    executor: Literal["local", "tff"] = "local"
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    cohort: Cohort = Cohort()
    privacy: Privacy = Privacy()
    secure_aggregation: SecureAggregation = SecureAggregation()
    attacks: Attacks = Attacks()
    audit: Audit = Audit()

    @field_validator("name")
    @classmethod
    def _short_name(cls, value: str) -> str:
        if not re.fullmatch(r"[\w .,+-]{1,80}", value):
            raise ValueError("1 to 80 letters, digits, spaces, or any of . , + - _ are allowed")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        self._check_cohort()
        self._check_masking()
        self._check_mechanism()
        self._check_training()
        self._check_canaries()
        return self

    def _check_canaries(self) -> None:
        if not self.audit.canaries:
            return
        reason = {
            "none": "they measure what is claimed, and without a mechanism nothing is",
            "dp_sgd": "they are whole clients, and dp_sgd promises nothing for these",
        }.get(self.privacy.mechanism)
        if reason is not None:
            raise Contradiction(
                "audit.canaries", self.audit.canaries, reason, "Remove them, or use a mechanism for clients"
            )

    def _check_cohort(self) -> None:
        clients, cohort = self.data.known_clients, self.cohort
        if cohort.size is not None and clients is not None and cohort.size > clients:
            raise Contradiction("cohort.size", cohort.size, f"there are {clients} clients", "Make it smaller")

    def _check_masking(self) -> None:
        masking = self.secure_aggregation
        if masking.mode == "off":
            return
        if self.privacy.clip_norm is None:
            raise Contradiction(
                "privacy.clip_norm",
                None,
                f'secure_aggregation.mode = "{masking.mode}" encodes updates in a ring of fixed width, which '
                "needs a bound on each of them",
                "Set privacy.clip_norm",
            )
        expected = self.expected_cohort
        needed = masking.threshold or 2
        if expected is not None and needed > expected:
            raise Contradiction(
                "secure_aggregation.threshold",
                needed,
                f"the cohort has {expected:g} clients{' on average' if self.cohort.rate else ''}",
                "Lower the threshold or enlarge the cohort",
            )
        if expected is not None and masking.colluders >= expected:
            raise Contradiction(
                "secure_aggregation.colluders",
                masking.colluders,
                f"the cohort has {expected:g} clients",
                "Leave at least one honest client",
            )

    def _check_mechanism(self) -> None:
        cohort, masking, mechanism = self.cohort, self.secure_aggregation, self.privacy.mechanism
        if mechanism == "dp_sgd":
            self._check_examples()
        if masking.mode != "off" and mechanism in ("local", "dp_sgd"):
            raise Contradiction(
                "secure_aggregation.mode",
                masking.mode,
                f"{mechanism} noise has no bound, so it can leave a ring of fixed width, and it needs no masks",
                'Set mode = "off", or mechanism = "discrete_gaussian"',
            )
        correlated = mechanism in ("tree", "banded")
        if correlated != (cohort.sampling == "round_robin") and mechanism != "none":
            raise Contradiction(
                "cohort.sampling",
                cohort.sampling,
                f"{mechanism} noise "
                + ("needs cohorts in a fixed order" if correlated else "is not accounted for round-robin cohorts"),
                'Set sampling = "round_robin" and size' if correlated else 'Set mechanism = "banded" or "tree"',
            )
        if masking.mode == "off" and mechanism in ("discrete_gaussian", "skellam"):
            raise Contradiction(
                "secure_aggregation.mode",
                masking.mode,
                f"{mechanism} noise is summed as integers of a ring",
                'Set mode = "protocol" (or "ring", which protects from no server)',
            )
        if masking.ring_bits == "auto" and mechanism in ("discrete_gaussian", "skellam"):
            raise Contradiction(
                "secure_aggregation.ring_bits",
                masking.ring_bits,
                f"{mechanism} noise takes the finest grid that a ring of given width allows",
                "Give a number from 8 to 64",
            )
        if self.training.weighted and mechanism != "none":
            raise Contradiction(
                "training.weighted",
                True,
                "example counts would scale each client's influence past the clip norm and are private themselves",
                "Set training.weighted = false with a privacy mechanism",
            )
        if mechanism != "none" and self.training.rounds == 0:
            raise Contradiction("training.rounds", 0, "there is nothing to protect", "Train at least one round")

    def _check_examples(self) -> None:
        training = self.training
        if training.local_steps is None:
            raise Contradiction(
                "training.local_steps",
                None,
                "dp_sgd draws the examples of each step, so that there are no epochs",
                "Give the steps of a client in a round",
            )
        if training.algorithm == "fedsgd":
            raise Contradiction(
                "training.algorithm", "fedsgd", "dp_sgd draws the examples of each step", 'Use "fedavg"'
            )
        if self.executor != "local":
            raise Contradiction("executor", self.executor, "it has no DP-SGD", 'Set executor = "local"')

    def _check_training(self) -> None:
        if self.executor == "tff" and self.privacy.randomness == "secure":
            raise Contradiction(
                "executor",
                "tff",
                "TFF's worker listens on all network interfaces and asks nobody who they are, and secure "
                "randomness is for data that are private",
                'Set executor = "local", or randomness = "research" for public data',
            )
        self._check_algorithm()
        self._check_rates()
        if self.training.server_momentum and self.training.server_optimizer != "sgd":
            raise Contradiction(
                "training.server_momentum",
                self.training.server_momentum,
                f"{self.training.server_optimizer} has a momentum of its own",
                'Set it to 0, or server_optimizer = "sgd"',
            )
        late = [r for r in self.attacks.rounds or [] if r > self.training.rounds]
        if late:
            raise Contradiction(
                "attacks.rounds",
                late,
                f"the training has {self.training.rounds} rounds",
                "Name earlier rounds",
            )

    def _check_algorithm(self) -> None:
        training, algorithm = self.training, self.training.algorithm
        if (training.proximal is None) == (algorithm == "fedprox"):
            raise Contradiction(
                "training.proximal",
                training.proximal,
                f"{algorithm} {'needs' if algorithm == 'fedprox' else 'has no'} proximal term",
                "Give it a value, such as 0.01" if algorithm == "fedprox" else 'Set algorithm = "fedprox"',
            )
        if training.local_steps is not None and training.local_epochs != 1:
            raise Contradiction(
                "training.local_steps",
                training.local_steps,
                f"local_epochs = {training.local_epochs} is given as well",
                "Keep one of them",
            )
        if algorithm == "fedsgd":
            for key, plain in (("local_epochs", 1), ("local_steps", None), ("momentum", 0.0)):
                if (value := getattr(training, key)) != plain:
                    raise Contradiction(
                        f"training.{key}", value, "fedsgd takes one step a round", "Remove it, or use fedavg"
                    )
        if algorithm == "scaffold":
            self._check_scaffold()

    def _check_scaffold(self) -> None:
        training, privacy = self.training, self.privacy
        reasons = {
            "training.weighted": (training.weighted, "control variates are means with equal weights"),
            "training.momentum": (training.momentum, "a control variate is the mean gradient of plain steps"),
            "privacy.mechanism": (
                None if privacy.mechanism == "none" else privacy.mechanism,
                "the control variates would be a second release, which no mechanism here bounds or accounts for",
            ),
            "executor": (None if self.executor == "local" else self.executor, "it has no control variates"),
        }
        for where, (value, reason) in reasons.items():
            if value:
                raise Contradiction(where, value, f"scaffold: {reason}", 'Remove it, or use algorithm = "fedavg"')

    def _check_rates(self) -> None:
        for side in ("", "server_"):
            decay, every, warmup = (
                getattr(self.training, f"{side}learning_rate_{name}") for name in ("decay", "every", "warmup")
            )
            where = f"training.{side}learning_rate_"
            if every is not None and decay not in ("exponential", "step"):
                raise Contradiction(
                    f"{where}every",
                    every,
                    f"the decay {decay!r} does not use it",
                    "Remove it, or change the decay",
                )
            if every is None and decay == "step":
                raise Contradiction(
                    f"{where}every", None, "the decay 'step' needs it", "Give the rounds of a step"
                )
            if warmup > self.training.rounds:
                raise Contradiction(
                    f"{where}warmup", warmup, f"the training has {self.training.rounds} rounds", "Make it shorter"
                )

    @property
    def expected_cohort(self) -> float | None:
        """Clients in a round: exactly, or on average under Poisson sampling; ``None`` where only the data tell."""
        if self.cohort.size is not None:
            return float(self.cohort.size)
        clients = self.data.known_clients
        return None if clients is None else clients * (self.cohort.rate or 1.0)

    def fingerprint(self) -> str:
        """SHA-256 over every resolved setting."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Contradiction(ValueError):  # noqa: N818 - it says what it is
    """Two settings that cannot both hold; pydantic wraps it, ``settings_file`` takes it out again."""

    def __init__(self, where: str, value: object, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.where, self.value, self.reason, self.remedy = where, value, reason, remedy
