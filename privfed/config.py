"""The settings of one experiment: strict and frozen; the one place where a setting is described and checked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from privfed.contradictions import check_together

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
    """Of ``shards``: pieces of the examples sorted by label that each client gets."""
    examples_per_client: Count | None = None
    """At most so many for each client; all when not given."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the partition, and of the clients that are held out."""
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
    """Widths of the hidden layers, of the models that have them; the model's own when not given."""
    activation: Literal["relu", "sigmoid", "tanh"] | None = None
    """Of the hidden layers; the model's own when not given."""
    initializer: Literal["zeros", "glorot", "uniform"] | None = None
    """Of the first weights, which are public; the model's own when not given."""
    features: Literal["hog", "one_hot"] | None = None
    """A fixed function of each example that the model gets instead: ``hog`` of images, ``one_hot`` of text."""


class Training(Section):
    """``[training]``: federated averaging."""

    rounds: Annotated[int, Field(ge=0)] = 20
    """Rounds of training."""
    algorithm: Literal["fedavg", "fedsgd", "fedprox", "scaffold"] = "fedavg"
    """``fedsgd``: one step over all of a client's examples, whatever ``batch_size`` says. ``fedprox``: with
    ``proximal``. ``scaffold``: with control variates, for clients whose data differ."""
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of ``fedprox``: the μ of the pull back towards the model that was sent."""
    local_epochs: Count = 1
    """Passes of a client over its examples in one round."""
    local_steps: Count | None = None
    """A fixed number of steps of each client, in as many passes as they take, instead of ``local_epochs``."""
    batch_size: Count = 20
    """Examples of one local step."""
    learning_rate: Positive = 0.1
    """Of the clients' steps."""
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
    """Whether a client goes through its examples in a new order in each pass."""
    weighted: bool = False
    """Weight clients by their example counts, as McMahan et al. (2017) do; refused under differential privacy."""
    server_optimizer: Literal["sgd", "adam", "adagrad", "yogi"] = "sgd"
    """What takes the step from the mean update."""
    server_learning_rate: Positive = 1.0
    """Of the server's step."""
    server_learning_rate_decay: Decay = "none"
    """As the clients'."""
    server_learning_rate_factor: Rate = 0.1
    """As the clients'."""
    server_learning_rate_every: Count | None = None
    """As the clients'."""
    server_learning_rate_warmup: Annotated[int, Field(ge=0)] = 0
    """As the clients'."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the server's steps, over rounds; of ``sgd``."""
    server_average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Release a moving average of the rounds' models, in which each counts this much of the one after it; 0 for
    the last model. It costs no privacy, and takes out some of the noise."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of cohorts, batches, first weights and, in research mode, noise."""
    evaluate_every: Count = 1
    """Rounds from one evaluation on the test examples to the next."""
    checkpoint_every: Count = 10
    """Rounds from one checkpoint to the next; a killed run goes on from the last one."""
    patience: Count | None = None
    """Stop after so many evaluations without a lower held-out loss."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard's event files."""


class Cohort(Section):
    """``[cohort]``: who takes part in a round."""

    sampling: Literal["poisson", "fixed", "round_robin", "all"] = "all"
    """How a round's cohort is drawn; it decides what the accountant may claim."""
    rate: Rate | None = None
    """Of ``poisson``: each client takes part with this probability, independently."""
    size: Count | None = None
    """Of ``fixed``: so many clients, without replacement. Of ``round_robin``: so many, in a fixed order."""
    over_selection: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Draw this much more than ``rate`` or ``size`` says, for those that will not answer in time: 0.3 draws 1.3
    times as many. Everybody who answers counts, ε is of the larger draw, sums are divided by the wanted cohort."""
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
        if self.over_selection and self.sampling == "all":
            raise ValueError("over_selection does not go with sampling = 'all', which draws everybody: remove it")
        if self.rate is not None and self.rate * (1 + self.over_selection) > 1 + 1e-12:
            raise ValueError(
                f"over_selection = {self.over_selection:g} draws with probability "
                f"{self.rate * (1 + self.over_selection):g} at rate = {self.rate:g}: lower one of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs from before the setting existed keep their fingerprint, and can be gone on with and verified.
        values: dict[str, Any] = handler(self)
        if not values["over_selection"]:
            del values["over_selection"]
        return values

    @property
    def drawn_rate(self) -> float | None:
        """Of ``poisson``: the probability that a client is drawn with, over-selection included."""
        return None if self.rate is None else min(1.0, self.rate * (1 + self.over_selection))

    @property
    def drawn_size(self) -> int | None:
        """Clients that are drawn, over-selection included, where their number is fixed."""
        return None if self.size is None else math.ceil(self.size * (1 + self.over_selection) - 1e-9)


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
    """Standard deviation of the noise that a round draws, over ``clip_norm``. Of ``tree``: that a node does; of
    ``local``: that a client does; of ``dp_sgd``: that a step does."""
    max_epsilon: Positive | None = None
    """Stop before the round whose ε would exceed it."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of ``adaptive``: share of updates that the clip norm leaves as they are."""
    quantile_rate: Positive = 0.2
    """Of ``adaptive``: how fast the clip norm moves."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ of every ε: far below one over the number of clients."""
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

    mode: Literal["off", "ring", "protocol", "bfv"] = "off"
    """``off``: floating-point sums. ``ring``: sums of integers in the clear, to the same bits as ``protocol``, a
    simulation's shortcut that protects nobody. ``protocol``: masking, every message really made. ``bfv``: the same
    integers under homomorphic encryption, decrypted by a key holder that must not work with the server; needs
    ``privfed[homomorphic]``."""
    threshold: Annotated[int, Field(ge=2)] | None = None
    """Survivors a round needs; never less than more than half of cohort and colluders together."""
    ring_bits: Annotated[int, Field(ge=8, le=64)] | Literal["auto"] = 32
    """Sums are modulo 2 to this; ``auto`` takes each cohort's values of 16 bits in as few bits as it can."""
    colluders: Annotated[int, Field(ge=0)] = 1
    """Clients of each cohort that the observers ``server+colluders`` and ``active server`` are given."""


class Attacks(Section):
    """``[attacks]``: what is tried on every observer's view."""

    enabled: bool = True
    """Whether views are recorded and attacked at all."""
    methods: list[str] = ["dense_layer", "gradient_matching"]
    """Names of attacks, or ``auto``: cheapest first until one verifies itself."""
    rounds: list[Count] | None = None
    """Rounds to record for the transcript; the first and the last when not given."""
    targets: Count = 5
    """Observations attacked for each observer."""
    iterations: Count = 300
    """Budget of the gradient matching, in iterations of its optimizer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the attacks' own draws."""


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


class Ray(Section):
    """``[ray]``: where ``executor = "ray"`` runs. None of it changes a result, so a run may go on elsewhere."""

    address: str | None = None
    """Of a cluster's head, ``HOST:PORT``, or ``auto`` for the one that this machine is part of. Without it Ray is
    started on this machine alone, and ends with the run."""
    workers: Count | None = None
    """Processes that train; as many as the cluster has cores when not given."""
    object_store_mib: Annotated[int, Field(ge=80)] | None = None
    """Shared memory for the population and what is under way, where Ray is started here; as much as they need
    when not given."""


class Settings(Section):
    """One experiment."""

    name: str = "experiment"
    """Of the run, in its report."""
    executor: Literal["local", "tff", "ray"] = "local"
    """``local``: this machine's cores. ``ray``: many machines. ``tff``: TensorFlow Federated's runtime, a slow
    reference for tests."""
    sum_parts: Count | None = None
    """Parts that a cohort's float sum is made of, which its last bits depend on: one for each core of this machine
    when not given. ``ray`` has it recorded with the run."""
    ray: Ray = Ray()
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    cohort: Cohort = Cohort()
    privacy: Privacy = Privacy()
    secure_aggregation: SecureAggregation = SecureAggregation()
    attacks: Attacks = Attacks()
    audit: Audit = Audit()

    @model_validator(mode="before")
    @classmethod
    def _parts_are_recorded(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("executor") == "ray" and values.get("sum_parts") is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            return {**values, "sum_parts": cores}
        return values

    @model_serializer(mode="wrap")
    def _without_what_nobody_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs that are older than these settings, which change nothing by default, have the dump that they had.
        values: dict[str, Any] = dump(self)
        unset = {"sum_parts": self.sum_parts is None, "ray": self.ray == Ray()}
        return {key: value for key, value in values.items() if not unset.get(key)}

    @field_validator("name")
    @classmethod
    def _short_name(cls, value: str) -> str:
        if not re.fullmatch(r"[\w .,+-]{1,80}", value):
            raise ValueError("1 to 80 letters, digits, spaces, or any of . , + - _ are allowed")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        check_together(self)
        return self

    @property
    def expected_cohort(self) -> float | None:
        """Clients drawn in a round: exactly, or on average under Poisson; ``None`` where only the data tell."""
        if self.cohort.drawn_size is not None:
            return float(self.cohort.drawn_size)
        clients = self.data.known_clients
        return None if clients is None else clients * (self.cohort.drawn_rate or 1.0)

    def fingerprint(self) -> str:
        """SHA-256 over every resolved setting that could change the result."""
        text = json.dumps(self.model_dump(mode="json", exclude={"ray"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
