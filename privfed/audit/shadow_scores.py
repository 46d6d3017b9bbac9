"""Scores of membership from the released model's confidence, alone or beside shadow models trained on the pool.

Rows are units (examples or clients), columns are shadow models. ``trained_on`` says which model saw which unit:
the attacker made the models and knows it. It never knows who was a member of the released model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

OWN_VARIANCE_FROM = 32
"""Models on a side from which a unit has a variance of its own (Carlini et al. 2022, section VI.A: 64 in all)."""
OFFLINE_SLOPE = 0.3
"""The ``a`` of Zarifzadeh et al. (2024), section 3.2: how confidence on non-members estimates that on members."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What a model says about each unit's true labels; a client's is the mean over its examples.

    Attributes:
        log_confidence: Log-probability of the true label, ``[n]`` or ``[n, models]``.
        log_odds: Log of that probability over its complement, the logit scaling of Carlini et al. (2022), eq. 4.
    """

    log_confidence: Floats
    log_odds: Floats


@dataclass(frozen=True, eq=False)
class Shadows:
    """Shadow models beside the units.

    Attributes:
        signals: ``[n, models]``.
        trained_on: Whether model ``k`` was trained on unit ``i``, ``[n, models]``.
    """

    signals: Signals
    trained_on: NDArray[np.bool_]


def loss(target: Signals, shadows: Shadows) -> Floats:
    """A small loss means member (Yeom et al. 2018, Adversary 1, at every threshold); needs no shadow model."""
    return target.log_confidence


def lira(target: Signals, shadows: Shadows) -> Floats:
    """Likelihood ratio of the log-odds: Gaussians of models with and without the unit (Carlini et al. 2022)."""
    with_it = _log_density(target.log_odds, *_gaussian(shadows.signals.log_odds, shadows.trained_on))
    without = _log_density(target.log_odds, *_gaussian(shadows.signals.log_odds, ~shadows.trained_on))
    return with_it - without


def lira_offline(target: Signals, shadows: Shadows) -> Floats:
    """How far the log-odds lie above those of models without the unit, in their standard deviations.

    The test of Carlini et al. (2022), section V.C, whose probability is a rising function of this.
    """
    mean, deviation = _gaussian(shadows.signals.log_odds, ~shadows.trained_on)
    return (target.log_odds - mean) / deviation


def rmia(target: Signals, shadows: Shadows) -> Floats:
    """Confidence over its mean under models with and without the unit (Zarifzadeh et al. 2024).

    RMIA's score is the share of population points whose own ratio the unit's beats by γ. With one population for
    all units that share rises with the unit's ratio, whatever γ: the curve is the ratio's, without the ties that a
    finite population makes.
    """
    confidence, seen = shadows.signals.log_confidence, shadows.trained_on
    reference: Floats = np.logaddexp(_log_mean(confidence, seen), _log_mean(confidence, ~seen)) - np.log(2)
    return target.log_confidence - reference


def rmia_offline(target: Signals, shadows: Shadows) -> Floats:
    """The same from models without the unit alone: those with it are guessed by a line (section 3.2, eq. 9)."""
    without = np.exp(_log_mean(shadows.signals.log_confidence, ~shadows.trained_on))
    reference: Floats = np.log(((1 + OFFLINE_SLOPE) * without + 1 - OFFLINE_SLOPE) / 2)
    return target.log_confidence - reference


@dataclass(frozen=True)
class Method:
    """An attack of the registry.

    Attributes:
        score: From signals to one score a unit, higher for members.
        shadow_models: How many it needs at least, every unit in half of them.
        assumption: What the attacker is given.
    """

    score: Callable[[Signals, Shadows], Floats]
    shadow_models: int
    assumption: str


_POOL = "data of the same kind and the training's settings, to train shadow models"
METHODS: dict[str, Method] = {
    "loss": Method(loss, 0, "the candidate's examples with labels"),
    "lira": Method(lira, 4, f"the candidate's examples, to train on as well; {_POOL}"),
    "lira_offline": Method(lira_offline, 4, f"the candidate's examples with labels; {_POOL}"),
    "rmia": Method(rmia, 2, f"the candidate's examples, to train on as well; {_POOL}"),
    "rmia_offline": Method(rmia_offline, 2, f"the candidate's examples with labels; {_POOL}"),
}
"""By name in the settings. Online attacks train on the candidates themselves, offline ones only on others."""


def _gaussian(values: Floats, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each row's chosen values, ``[n]`` each.

    Few models give no variance worth having: then all rows share that about their own means, unbiased.
    """
    counts = chosen.sum(axis=1)
    if counts.min() < 2:
        raise ValueError("two shadow models at least are needed with and without each unit")
    mean = np.where(chosen, values, 0.0).sum(axis=1) / counts
    squares = np.where(chosen, values - mean[:, None], 0.0) ** 2
    if counts.min() >= OWN_VARIANCE_FROM:
        variance = squares.sum(axis=1) / (counts - 1)
    else:
        variance = np.full(len(values), squares.sum() / (counts - 1).sum())
    return mean, np.sqrt(np.maximum(variance, 1e-12))  # models that agree to the last bit


def _log_density(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    density: Floats = -(((values - mean) / deviation) ** 2) / 2 - np.log(deviation)
    return density


def _log_mean(logs: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Log of the mean of each row's chosen values, given their logs."""
    if not chosen.any(axis=1).all():
        raise ValueError("a shadow model at least is needed with and without each unit")
    return np.asarray(np.logaddexp.reduce(np.where(chosen, logs, -np.inf), axis=1) - np.log(chosen.sum(axis=1)))
