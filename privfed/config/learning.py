"""The tables that say what is trained, and on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from privfed.config.section import Count, Positive, Rate, Section

Decay = Literal["none", "exponential", "step", "cosine"]


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
