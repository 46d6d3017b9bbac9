"""Membership inference on an experiment's released model, with shadow models trained by the same engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.audit.membership import MembershipInference, Unit, judge
from privfed.audit.pool import Pool, by_client, draw_halves, make_pool, signals_of
from privfed.audit.shadow_scores import METHODS, Shadows, Signals
from privfed.console import Console
from privfed.data import Population, take_clients
from privfed.errors import PrivFedError
from privfed.experiment import Experiment
from privfed.federated.training import Keeping
from privfed.models.functional import Vector


@dataclass(frozen=True, eq=False)
class ShadowModels:
    """Trained shadow models and what they say about the pool; they serve any model of the same settings.

    Attributes:
        pool: Whose halves they were trained on.
        shadows: By example.
    """

    pool: Pool
    shadows: Shadows


@dataclass(frozen=True, eq=False)
class MembershipFindings:
    """What membership inference found.

    Attributes:
        attacks: By method and unit.
        shadow_models: How many were trained.
        non_members_from: Where the non-members are from.
    """

    attacks: list[MembershipInference]
    shadow_models: int
    non_members_from: str


def infer_membership(experiment: Experiment, weights: Vector, console: Console) -> MembershipFindings:
    """Run the methods of the settings on the released model ``weights`` ``[d]``.

    Raises:
        PrivFedError: The model, or a shadow model, gives confidences that are not finite.
    """
    chosen = experiment.settings.audit
    dealt = experiment.settings.data.partition == "iid"
    pool = make_pool(experiment.population, experiment.held_out, dealt=dealt)
    needed = chosen.shadow_models if any(METHODS[name].shadow_models for name in chosen.membership) else 0
    models = train_shadows(experiment, pool, needed, console)
    attacks = judge_all(models, experiment, weights, chosen.membership)
    return MembershipFindings(attacks, needed, pool.origin)


def train_shadows(experiment: Experiment, pool: Pool, count: int, console: Console) -> ShadowModels:
    """Train ``count`` models with the experiment's settings, each on a random half of the pool's clients.

    They start from the same public weights. Masks change no sum, so none are made; cohorts of a fixed size shrink
    with the clients; the noise multiplier stays, although fewer clients are a smaller sum for the noise to hide.
    """
    data, seed = pool.population, experiment.settings.training.seed
    rng = np.random.default_rng([seed, *b"shadow models"])
    halves = draw_halves(data.clients, count, rng)
    signals = signals_of(experiment.model, data)
    found: list[Signals] = []
    if count:
        with console.progress("shadow models", count, 0) as advance:
            for model in range(count):
                half = take_clients(data, np.flatnonzero(halves[:, model]))
                shadow = _shadow(experiment, half, int(rng.integers(2**31)))
                kept = Keeping(patience=shadow.settings.training.patience)
                found.append(signals(shadow.run(None, lambda report: None, kept).weights))
                advance("")
    stacked = Signals(
        *(
            np.stack([getattr(s, side) for s in found], axis=1) if found else np.zeros((len(data.labels), 0))
            for side in ("log_confidence", "log_odds")
        )
    )
    return ShadowModels(pool, Shadows(stacked, np.repeat(halves, data.sizes, axis=0)))


def judge_all(
    models: ShadowModels, experiment: Experiment, weights: Vector, methods: Sequence[str]
) -> list[MembershipInference]:
    """Every method on every unit that the pool allows.

    Raises:
        PrivFedError: As ``infer_membership``.
    """
    pool, shadows = models.pool, models.shadows
    target = signals_of(experiment.model, pool.population)(weights)
    everything = (target.log_odds, target.log_confidence, shadows.signals.log_odds, shadows.signals.log_confidence)
    if not all(np.isfinite(values).all() for values in everything):
        raise PrivFedError("membership inference needs finite losses, which the models it compares do not give")
    units: list[tuple[Unit, Signals, Shadows, NDArray[np.bool_], NDArray[np.int64]]] = [
        ("example", target, shadows, pool.is_member[pool.owners], pool.clients[pool.owners])
    ]
    if pool.by_client:
        clients = Shadows(
            by_client(shadows.signals, pool.population), shadows.trained_on[pool.population.offsets[:-1]]
        )
        units.append(("client", by_client(target, pool.population), clients, pool.is_member, pool.clients))
    return [
        judge(
            METHODS[name].score(signals, references),
            is_member,
            method=name,
            unit=unit,
            assumption=METHODS[name].assumption,
            owners=owners,
            alike=pool.by_client,
        )
        for unit, signals, references, is_member, owners in units
        for name in methods
    ]


def _shadow(experiment: Experiment, half: Population, seed: int) -> Experiment:
    """The experiment on a part of the pool, with randomness of its own."""
    settings = experiment.settings
    cohort, masking = settings.cohort, settings.secure_aggregation
    training = settings.training.model_copy(update={"seed": seed})
    if training.patience is None:
        training = training.model_copy(update={"evaluate_every": 2**31})  # nobody reads them
    updates: dict[str, Any] = {
        "executor": "local",
        "training": training,
        "privacy": settings.privacy.model_copy(update={"randomness": "research"}),
        "attacks": settings.attacks.model_copy(update={"enabled": False}),
    }
    if cohort.size is not None:
        share = half.clients / experiment.population.clients
        size = min(half.clients, max(1, round(cohort.size * share)))
        updates["cohort"] = cohort.model_copy(update={"size": size})
    if masking.mode in ("protocol", "bfv"):
        updates["secure_aggregation"] = masking.model_copy(
            update={"mode": "ring", "threshold": None, "colluders": 0}
        )
    return replace(
        experiment,
        settings=settings.model_copy(update=updates),
        population=half,
        held_out=None,
        start=experiment.initial_weights,
    ).without_canaries()
