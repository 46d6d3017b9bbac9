"""The settings of one experiment: strict and frozen; the one place where a setting is described and checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from privfed.config.judging import Attacks, Audit
from privfed.config.learning import Data, Model, Training
from privfed.config.protection import Cohort, Privacy, SecureAggregation
from privfed.config.section import Count, Section
from privfed.contradictions import check_together

__all__ = [
    "Attacks",
    "Audit",
    "Cohort",
    "Data",
    "Model",
    "Privacy",
    "Ray",
    "Section",
    "SecureAggregation",
    "Settings",
    "Training",
]


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
        """SHA-256 over every resolved setting that could change the result.

        A setting that came later is left out where it has its default: older folders still belong to theirs.
        """
        tree = self.model_dump(mode="json", exclude={"ray"})
        if self.attacks.auxiliary == Attacks().auxiliary:
            del tree["attacks"]["auxiliary"]
        text = json.dumps(tree, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
