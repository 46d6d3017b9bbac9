"""The composition root: from settings to an experiment; everything that can be refused is refused here."""

from __future__ import annotations

from dataclasses import replace

from privfed.config import Attacks as AttackSettings
from privfed.config import Settings
from privfed.data import (
    Population,
    build_population,
    hold_out_clients,
    load_dataset,
    require_text_model,
    transform,
)
from privfed.errors import SettingError
from privfed.executors.local import configure_threads
from privfed.experiment import Experiment
from privfed.models.build import build_model


def compose(settings: Settings, population: Population | None = None) -> Experiment:
    """Load the data, build the model, calibrate the noise; everything that can be refused is refused here.

    ``population`` takes the place of the data that the settings name.

    Raises:
        PrivFedError: Data, model or privacy settings do not fit.
    """
    configure_threads()
    check_attacks(settings.attacks)
    population = load_population_of(settings) if population is None else population
    chosen = settings.model
    if chosen.features is not None:
        population = transform(population, chosen.features)
    require_text_model(population, chosen.name)
    held_out = None
    if settings.data.held_out_clients is not None:
        population, held_out = hold_out_clients(population, settings.data.held_out_clients, settings.data.seed)
    model = build_model(
        chosen.name,
        population.input_shape,
        population.classes,
        hidden=chosen.hidden,
        activation=chosen.activation,
        initializer=chosen.initializer,
    )
    experiment = Experiment(settings, population, model, None, held_out)
    privacy = settings.privacy
    if privacy.mechanism == "none":
        return experiment
    noise = privacy.noise_multiplier
    if noise is None and privacy.epsilon is not None:
        assert experiment.privacy_plan is not None  # there is a mechanism
        noise = experiment.privacy_plan.calibrate(privacy.epsilon, privacy.against)
    experiment = replace(experiment, noise_multiplier=noise)
    if experiment.audited is not None:
        experiment.audited.check()
    if experiment.rounds == 0:
        raise SettingError(
            "a single round spends more",
            where="privacy.max_epsilon",
            value=privacy.max_epsilon,
            remedy="Raise it, or use more noise",
        )
    return experiment


def load_population_of(settings: Settings) -> Population:
    """Read the dataset and spread it over clients."""
    data = settings.data
    dataset = load_dataset(
        data.source,
        folder=data.folder,
        data_dir=data.data_dir,
        manual_dir=data.manual_dir,
        sequence_length=data.sequence_length,
        label_column=data.label_column,
        client_column=data.client_column,
        natural_clients=data.clients if data.partition == "natural" else None,
        seed=data.seed,
    )
    return build_population(
        dataset,
        data.partition,
        clients=data.known_clients,
        seed=data.seed,
        alpha=data.alpha,
        shards_per_client=data.shards_per_client,
        examples_per_client=data.examples_per_client,
    )


def check_attacks(settings: AttackSettings) -> None:
    """Refuse attacks that nobody wrote or that no recorded round fits, before anything is trained."""
    from attacks import ATTACKS, create

    crafting = [name for name in ATTACKS if hasattr(create(name), "craft")]
    known = ", ".join(name for name in ATTACKS if name not in crafting)
    for name in settings.methods:
        if name in crafting:
            raise SettingError(
                "needs a model that the server crafted, and recorded rounds are of the agreed one",
                where="attacks.methods",
                value=name,
                remedy=f"Run benchmarks/attacks.py, or choose from {known}",
            )
        if name not in ATTACKS:
            raise SettingError("no such attack", where="attacks.methods", value=name, remedy=f"Known: {known}")
