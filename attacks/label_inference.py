"""How often each label occurs behind an update: what it gives away where no example comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np
from scipy.stats import chi2

from attacks.base import Guess, NotInvertible, ThreatModel
from attacks.counting import ANY
from attacks.gradient import may_be_clipped, noise_stddev
from attacks.label_counts import DISTORTED, STRETCHED, ends_dense, infer_label_counts
from privfed.transcript import Kind, Observation, Observer, Plan, View

FALSE_ALARM = 1e-3
"""Chance that noise alone passes for a gradient of the last bias."""
MOST_EXAMPLES = 100_000
"""Behind one vector, for labels that are listed one by one."""


@dataclass(frozen=True)
class LabelInference:
    """Counts the labels (``attacks.label_counts``) of single steps and, less exactly, of several and of sums.

    Its guess has labels in place of examples; the residual says how much of the last bias's gradient is noise.
    """

    name: ClassVar[str] = "label_inference"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=(
            "the learning rate",
            "how many examples a client has",
            "the noise in the vector",
            "labelled examples of the same kind, where the view has any",
        ),
        assumptions=(
            "a softmax model that ends with a dense layer and its bias",
            "clients have equally many examples, or weights that tell",
            "one local step, for exact counts",
        ),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; it draws nothing from ``rng``, and its guess has labels and no examples."""
        seen, model, plan = view.observations[index], view.model, view.plan
        if not ends_dense(model):
            raise NotInvertible(
                f"model {model.name} does not end with a dense layer and its bias: labels are hidden"
            )
        if seen.kind is Kind.MASKED_UPLOAD:
            raise NotInvertible("the mask made the vector uniform: no entry of it says anything")
        moved = np.asarray(model.unflatten(np.asarray(seen.vector, np.float64))[-1])
        if not moved.any():
            raise NotInvertible("the last bias did not move: it says nothing about labels")
        noise, power = noise_stddev(seen, plan), float(np.sum((moved / np.abs(moved).max()) ** 2))
        expected = (noise / float(np.abs(moved).max())) ** 2
        if noise and power < expected * float(chi2.isf(FALSE_ALARM, len(moved))):
            raise NotInvertible("the last bias moved no more than the noise in the vector explains")
        count = examples_behind(seen, plan)
        if count > MOST_EXAMPLES:
            raise NotInvertible(f"{count} examples behind one vector: labels are counted up to {MOST_EXAMPLES}")
        unit = _unit(seen, plan)
        counts = infer_label_counts(
            model,
            np.asarray(seen.weights),
            -np.asarray(seen.vector, np.float64) / unit,
            count,
            view.auxiliary,
            scale=_scale(seen, plan),
            noise=noise / unit,
            clients=max(1, round(seen.contributors)),
            distorted=DISTORTED if _steps(plan) > 1 else 0.0,
        )
        labels = np.repeat(np.arange(model.classes, dtype=np.int64), counts.astype(np.int64))
        residual = min(1.0, float(np.sqrt(expected * len(moved) / power)))
        none = np.zeros((0, *model.input_shape))
        return Guess(none, labels, residual, evaluations=0, assumed=(*self.threat.assumptions, *_granted(view)))


def _granted(view: View) -> tuple[str, ...]:
    if view.auxiliary is None:
        return ()
    return (f"{len(view.auxiliary.labels):,} labelled examples of the same kind, which are no client's",)


def examples_behind(seen: Observation, plan: Plan) -> int:
    """How many examples an observer takes to be behind the vector: each client has as many as the plan says."""
    each = plan.examples or plan.batch_size * (plan.local_steps or 1)
    if plan.local_steps is not None:
        each = min(each, plan.local_steps * plan.batch_size)
    return max(1, round(seen.contributors * each))


def _steps(plan: Plan) -> int:
    """Of a client in one round."""
    if plan.local_steps is not None:
        return plan.local_steps
    return ceil((plan.examples or plan.batch_size) / plan.batch_size) * plan.local_epochs


def _unit(seen: Observation, plan: Plan) -> float:
    """What the vector has to be divided by to be, negated, a mean gradient, had each client taken one step."""
    return max(seen.contributors * plan.learning_rate * (seen.rate_factor or 1.0), 1e-300)


def _scale(seen: Observation, plan: Plan) -> tuple[float, float]:
    """How many times the mean gradient of one step that is, at least and at most."""
    steps = _steps(plan)
    if seen.rate_factor is None or (seen.kind is Kind.MODEL_DIFFERENCE and plan.server_scale is None):
        return ANY
    # Of a sum nobody knows which of the updates in it were clipped.
    single = seen.contributors == 1 and not plan.weighted
    whole = plan.clip_norm is None or (single and not may_be_clipped(seen.vector, plan))
    if steps == 1:
        return (1.0 if whole else 0.0), 1.0
    return 0.0, STRETCHED * steps / (1 - plan.momentum)
