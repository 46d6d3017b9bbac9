"""One defence at work: recorded rounds of the experiment, and what the server holds of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from attacks import Attack, LabelInference, create
from attacks.auto import Auto, skipped
from privfed.composition import compose
from privfed.config import Settings
from privfed.data import Population
from privfed.defences.catalogue import Defence
from privfed.errors import SettingError
from privfed.experiment import Experiment
from privfed.exposure import auxiliary_examples
from privfed.transcript import Observation, Observer, Transcript, View


@dataclass(frozen=True, eq=False)
class Workload:
    """A defence, the experiment that it makes, and the attacks that are tried on it.

    Attributes:
        defence: The defence.
        experiment: One round with it.
        attacks: Each once.
        targets: Rounds, and so vectors that are attacked.
    """

    defence: Defence
    experiment: Experiment
    attacks: tuple[Attack, ...]
    targets: int

    def record(self) -> tuple[View, float | None]:
        """What the server holds of each round, one vector each, and the share of the updates that were clipped.

        Every round starts from a draw of its own of the initial weights, as those decide much (docs/attacks.md);
        cohorts of one size are the same under every defence.
        """
        experiment, seen, clipped = self.experiment, [], []
        with experiment.client_work() as work:
            one_round = experiment.round(work)
            for number in range(1, self.targets + 1):
                weights = experiment.model.initial_vector(experiment.settings.training.seed + number)
                state = one_round.initialize(len(weights))
                outcome = one_round(number, weights, state, experiment.sample(number), lambda *_: None)
                assert outcome.record is not None  # it was asked for
                transcript = Transcript(experiment.plan, weights, outcome.weights, 1, [outcome.record])
                held = transcript.view(Observer.SERVER, experiment.model).observations
                seen.append(next(one for one in held if one.kind is self.defence.kind))
                if outcome.metrics.clipped_fraction is not None:
                    clipped.append(outcome.metrics.clipped_fraction)
        if self.defence.pruned:
            seen = [pruned(one, self.defence.pruned) for one in seen]
        share = float(np.mean(clipped)) if clipped and experiment.plan.clip_norm is not None else None
        auxiliary = auxiliary_examples(experiment)
        return View(Observer.SERVER, experiment.plan, experiment.model, tuple(seen), auxiliary), share


def prepare(base: Settings, defence: Defence, examples: Population) -> Workload:
    """Deal the experiment's training examples out anew, and choose the attacks.

    Raises:
        SettingError: There are too few examples, or they are no images.
    """
    held, wanted = defence.examples_of(base), base.attacks.targets * defence.clients
    clients = min(len(examples.labels) // held, wanted)
    if clients < defence.clients:
        raise SettingError(
            f"{defence.name} needs {defence.clients} clients with {held} examples each, and there are "
            f"{len(examples.labels)} in all",
            where="data",
            remedy="Use more data",
        )
    order = np.random.default_rng([base.data.seed, 0x6712D]).permutation(len(examples.labels))
    rows = order[: clients * held]
    population = replace(
        examples,
        features=examples.features[rows],
        labels=examples.labels[rows],
        offsets=np.arange(clients + 1, dtype=np.int64) * held,
    )
    experiment = compose(defence.settings(base, clients), population)
    return Workload(defence, experiment, _attacks(experiment, defence), base.attacks.targets)


def _attacks(experiment: Experiment, defence: Defence) -> tuple[Attack, ...]:
    """Those of the settings; for ``auto`` all that it would try, each for itself, and the counting of labels.

    Raises:
        SettingError: None of them gives images.
    """
    chosen: dict[str, Attack] = {}
    settings = experiment.settings.attacks
    for name in settings.methods:
        tried: Sequence[Attack] = [create(name, iterations=settings.iterations)]
        if name == "auto":
            images = Auto(settings.iterations).candidates(experiment.model, experiment.plan, defence.kind)
            tried = [*images, LabelInference()]
        for attack in tried:
            if skipped(attack, Observer.SERVER, defence.kind) is None:
                chosen[attack.name] = attack  # of two of one name the last, which knows the batch
    if not chosen.keys() - {LabelInference.name}:
        raise SettingError(
            "the grid compares images, and no attack gives any",
            where="attacks.methods",
            value=", ".join(settings.methods),
            remedy='Use methods = ["auto"]',
        )
    return tuple(chosen.values())


def pruned(seen: Observation, share: float) -> Observation:
    """The update without its smallest entries, as a client sends it that saves bytes (Lin et al. 2018)."""
    kept = max(1, round(len(seen.vector) * (1 - share)))
    vector: NDArray[np.float64] = np.zeros_like(seen.vector)
    largest = np.argpartition(np.abs(seen.vector), -kept)[-kept:]
    vector[largest] = seen.vector[largest]
    return replace(seen, vector=vector)
