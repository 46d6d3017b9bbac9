"""The tables that say what is tried on a training, and what stands beside it in the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from privfed.config.section import Count, Section


class Attacks(Section):
    """``[attacks]``: what is tried on every observer's view."""

    enabled: bool = True
    """Whether views are recorded and attacked at all."""
    methods: list[str] = Field(["dense_layer", "gradient_matching", "label_inference"])
    """Names of attacks, or ``auto``: cheapest first until one verifies itself."""
    rounds: list[Count] | None = None
    """Rounds to record for the transcript; the first and the last when not given."""
    targets: Count = 5
    """Observations attacked for each observer."""
    auxiliary: Annotated[int, Field(ge=0)] = 1024
    """Labelled test examples that an attacker has, for those attacks that can use them; 0 for none."""
    iterations: Count = 300
    """Budget of the gradient matching, in iterations of its optimizer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the attacks' own draws."""


class Audit(Section):
    """``[audit]``: what stands beside the run in the report."""

    baseline: bool = True
    """Train once more without clipping, noise, masking and dropouts, for accuracy's price."""
    membership: list[Literal["loss", "lira", "lira_offline", "rmia", "rmia_offline"]] = Field(["loss"])
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
