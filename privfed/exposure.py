"""What each observer gets out of a run: attacks on the views of three kinds of transcripts.

* the *probes*: one example, one local step, first with nothing in the way, the worst that an update can give
  away, then behind each of the run's defences;
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
from privfed.audit.evidence import NO_DEFENCE
from privfed.auxiliary import Auxiliary
from privfed.console import Console
from privfed.data import Population
from privfed.executors.local import LocalClientWork
from privfed.experiment import Experiment
from privfed.federated.client_work import LocalTraining
from privfed.transcript import Observation, Observer, Plan, RoundRecord, Transcript, View

PROBE = "one step on one example"
OWN_UPDATES = "the run's own updates"


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


def probes(experiment: Experiment) -> list[Setting]:
    """One local step on one example of each of a few clients, from the run's initial model: the worst case.

    First sent as it is, then behind the run's own defences, one after the other in the order that an update meets
    them: the clip, the masks of an expected cohort (server), the noise on their sum (whoever gets the model).
    """
    e, count = experiment, experiment.settings.attacks.targets
    privacy, rate = e.settings.privacy, e.settings.training.learning_rate
    plan = Plan(rate, 1, 1, 1.0, None, 0.0, None, "off", examples=1)
    weights = e.initial_weights
    cohort = 1 if e.privacy_plan is None else round(e.privacy_plan.expected_cohort)
    single, updates = _single_steps(e, max(count, cohort))
    first = dict(list(updates.items())[:count])
    found = [_probe(NO_DEFENCE, plan, single, weights, first, Observer.SERVER)]
    if privacy.clip_norm is None or e.noise_multiplier is None or privacy.unit != "client":
        return found
    clip, noise = privacy.clip_norm, e.noise_multiplier * privacy.clip_norm
    clipped = {c: v * min(1.0, clip / max(float(np.linalg.norm(v)), 1e-300)) for c, v in updates.items()}
    plan, summed = replace(plan, clip_norm=clip), dict(list(clipped.items())[:cohort])
    behind = f"clip to {clip:g}"
    found.append(_probe(behind, plan, single, weights, {c: clipped[c] for c in first}, Observer.SERVER))
    mode = e.settings.secure_aggregation.mode
    behind = f"{behind}, {'encrypted' if mode == 'bfv' else 'masked'} sum of {len(summed)}"
    if mode in ("protocol", "bfv") and len(summed) > 1:
        masked = replace(plan, mode=mode)
        found.append(_probe(behind, masked, single, weights, summed, Observer.SERVER))
    drawn = np.random.default_rng([e.settings.attacks.seed, *b"probe"]).normal(0.0, noise, len(weights))
    behind = f"clip to {clip:g}, sum of {len(summed)}, noise"
    noised = replace(plan, noise_stddev=noise)
    found.append(_probe(behind, noised, single, weights, summed, Observer.CLIENT, drawn))
    return found


def _single_steps(experiment: Experiment, count: int) -> tuple[Population, dict[int, NDArray[np.float64]]]:
    """The first example of each of ``count`` clients, and its update after one step."""
    population = experiment.population
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
    updates: dict[int, NDArray[np.float64]] = {}
    for chunk in work(experiment.initial_weights, range(len(rows)), (0,)):
        updates |= {c: d.astype(np.float64) for c, d in zip(chunk.clients, chunk.deltas, strict=True)}
    return single, updates


def _probe(
    defence: str,
    plan: Plan,
    single: Population,
    weights: NDArray[np.float32],
    updates: dict[int, NDArray[np.float64]],
    observer: Observer,
    noise: NDArray[np.float64] | float = 0.0,
) -> Setting:
    """One round of these updates, as ``observer`` sees it."""
    total = sum(updates.values(), np.zeros(len(weights)))
    new = (weights + (total + noise) / len(updates)).astype(np.float32)
    record = RoundRecord(1, weights, new, tuple(updates), updates, dict.fromkeys(updates, 1.0), {}, total)
    return Setting(PROBE, defence, Transcript(plan, weights, new, 1, [record]), single, [observer])


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
    keep: Callable[[Exposure], None] | None = None,
) -> list[Exposure]:
    """Run the configured attacks on every observer's view of every setting; ``keep`` is given each outcome."""
    chosen = experiment.settings.attacks
    methods = [create(name, iterations=chosen.iterations) for name in chosen.methods]
    views = list(_views(experiment, settings))
    exposures: list[Exposure] = []
    steps = sum(min(chosen.targets, len(view.observations)) * len(methods) for _, view in views)
    with console.progress("attacks", steps) as advance:

        def note(setting: Setting, who: str, _done: int, _steps: int, newest: AttackOutcome) -> None:
            if keep is not None:
                keep(Exposure(setting.workload, setting.defence, newest))
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
                progress=partial(note, setting, label),
                held_out=held_out(setting.population),
                public_labels=setting.population.test_labels,
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


def auxiliary_examples(experiment: Experiment) -> Auxiliary | None:
    """Test examples that an attacker has, drawn by the attacks' seed; ``None`` of text, or for none."""
    chosen, population = experiment.settings.attacks, experiment.population
    if not chosen.auxiliary or population.tokens is not None or not len(population.test_labels):
        return None
    drawn = np.random.default_rng([chosen.seed, *b"auxiliary"]).permutation(len(population.test_labels))
    rows = np.sort(drawn[: chosen.auxiliary])
    return Auxiliary(
        population.as_float(population.test_features[rows]), population.test_labels[rows].astype(np.int64)
    )


def _views(experiment: Experiment, settings: Sequence[Setting]) -> Iterator[tuple[Setting, View]]:
    colluders, auxiliary = experiment.settings.secure_aggregation.colluders, auxiliary_examples(experiment)
    for setting in settings:
        for observer in setting.observers:
            view = setting.transcript.view(observer, experiment.model, colluders=colluders)
            if view.observations:
                yield setting, replace(view, auxiliary=auxiliary)
