"""What each observer gets out of a run: attacks on the views of three kinds of transcripts.

* the *probe*: one example, one local step, nothing in the way; the worst that an update can give away;
* the run's own updates as they would be without protection;
* the run's own updates as the settings have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from attacks import AttackOutcome, create, run_attacks
from privfed.console import Console
from privfed.data import Population
from privfed.executors.local import LocalClientWork
from privfed.experiment import Experiment
from privfed.federated.client_work import LocalTraining
from privfed.transcript import Observation, Observer, Plan, RoundRecord, Transcript, View

PROBE = "one step on one example"
OWN_UPDATES = "the run's own updates"
NO_DEFENCE = "none"
AS_CONFIGURED = "as configured"


@dataclass(frozen=True, eq=False)
class Exposure:
    """One attack's outcome, and what stood between the observer and the data."""

    workload: str
    defence: str
    outcome: AttackOutcome


@dataclass(frozen=True, eq=False)
class Setting:
    """A transcript to attack: what it is of, who looks at it, and whose data are behind it."""

    workload: str
    defence: str
    transcript: Transcript
    population: Population
    observers: Sequence[Observer]


def probe(experiment: Experiment) -> Setting:
    """One local step on one example of each of a few clients, from the run's initial model, sent as it is."""
    population, count = experiment.population, experiment.settings.attacks.targets
    clients = np.flatnonzero(population.sizes)[:count]
    rows = population.offsets[clients]
    single = replace(
        population,
        features=population.features[rows],
        labels=population.labels[rows],
        offsets=np.arange(len(rows) + 1, dtype=np.int64),
    )
    rate = experiment.settings.training.learning_rate
    work = LocalClientWork(
        experiment.model, single.features, single.labels, single.offsets, LocalTraining(rate, 1, 1, False)
    )
    weights = experiment.initial_weights
    updates: dict[int, NDArray[np.float64]] = {}
    for chunk in work(weights, range(len(rows)), (0,)):
        updates |= {c: d.astype(np.float64) for c, d in zip(chunk.clients, chunk.deltas, strict=True)}
    total = sum(updates.values(), np.zeros(len(weights)))
    plan = Plan(rate, 1, 1, 1.0, None, 0.0, None, "off")
    new = (weights + total / len(updates)).astype(np.float32)
    record = RoundRecord(1, weights, new, tuple(updates), updates, dict.fromkeys(updates, 1.0), {}, total)
    transcript = Transcript(plan, weights, new, 1, [record])
    return Setting(PROBE, NO_DEFENCE, transcript, single, [Observer.SERVER])


def own_updates(
    experiment: Experiment, transcript: Transcript, defence: str, observers: Sequence[Observer]
) -> Setting:
    """The updates of a training's recorded rounds; those of an audit's canaries are nobody's, and not attacked."""
    last = experiment.population.clients
    if experiment.audited is not None:
        records = [
            replace(
                record,
                updates={c: v for c, v in record.updates.items() if c < last},
                shares={c: v for c, v in record.shares.items() if c < last},
                uploads={c: v for c, v in record.uploads.items() if c < last},
            )
            for record in transcript.records
        ]
        transcript = replace(transcript, records=records)
    return Setting(OWN_UPDATES, defence, transcript, experiment.population, observers)


def attack_all(
    experiment: Experiment,
    settings: Sequence[Setting],
    console: Console,
    keep: Callable[[AttackOutcome], None] | None = None,
) -> list[Exposure]:
    """Run the configured attacks on every observer's view of every setting; ``keep`` is given each outcome."""
    chosen = experiment.settings.attacks
    methods = [create(name, iterations=chosen.iterations) for name in chosen.methods]
    views = list(_views(experiment, settings))
    exposures: list[Exposure] = []
    steps = sum(min(chosen.targets, len(view.observations)) * len(methods) for _, view in views)
    with console.progress("attacks", steps) as advance:

        def note(who: str, _done: int, _steps: int, newest: AttackOutcome) -> None:
            if keep is not None:
                keep(newest)
            advance(who)

        for index, (setting, view) in enumerate(views):
            label = view.observer.value
            outcomes = run_attacks(
                view,
                methods,
                lambda seen, data=setting.population: examples_behind(data, seen),  # type: ignore[misc]  # default
                setting.population.mean_image(),
                np.random.default_rng([chosen.seed, index]),
                max_observations=chosen.targets,
                progress=partial(note, label),
                held_out=held_out(setting.population),
            )
            exposures += [Exposure(setting.workload, setting.defence, outcome) for outcome in outcomes]
    return exposures


def examples_behind(population: Population, seen: Observation) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The truth about an observation, for the scoring alone: every example of every client in it."""
    parts = [population.client(client) for client in seen.clients if client < population.clients]
    return (
        np.concatenate([part[0] for part in parts]).astype(np.float64),
        np.concatenate([part[1] for part in parts]).astype(np.int64),
    )


def held_out(population: Population) -> NDArray[np.float32] | None:
    """Test examples to tell the true one from; ``None`` of text, where no distance means anything."""
    if population.tokens is not None or not len(population.test_features):
        return None
    return population.as_float(population.test_features)


def _views(experiment: Experiment, settings: Sequence[Setting]) -> Iterator[tuple[Setting, View]]:
    colluders = experiment.settings.secure_aggregation.colluders
    for setting in settings:
        for observer in setting.observers:
            view = setting.transcript.view(observer, experiment.model, colluders=colluders)
            if view.observations:
                yield setting, view
