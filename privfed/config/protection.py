"""The tables that say who takes part in a round, and what protects them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from privfed.config.section import Count, Positive, Rate, Section


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
