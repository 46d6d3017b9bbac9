"""A served training once more, in simulation: same seeds, cohorts and dropouts, same weights, bit by bit.

Only where randomness is research: what real clients draw from their operating system nobody can draw again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from privfed.composition import compose
from privfed.errors import OutputError
from privfed.experiment import Experiment
from privfed.federated.cohorts import Cohort
from privfed.federated.training import TrainingResult
from privfed.network.serve import EVENTS
from privfed.rundir import SETTINGS
from privfed.secagg import Stage
from privfed.settings_file import load_settings


@dataclass(frozen=True, eq=False)
class ReplayedExperiment(Experiment):
    """With the cohorts that there were, and those who vanished vanishing at the same stage."""

    cohorts: Mapping[int, Cohort] | None = None

    def sample(self, number: int) -> Cohort:
        """The cohort of round ``number``, as it was."""
        assert self.cohorts is not None
        return self.cohorts[number]


def read_cohorts(folder: Path) -> dict[int, Cohort]:
    """By round, who was drawn, and the last message of those who did not stay to the end."""
    cohorts: dict[int, Cohort] = {}
    for line in (folder / EVENTS).read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "round":  # of a round that was run again after a restart, the last counts
            last = {int(c): None if s is None else Stage[s.upper()] for c, s in event["last_stage"].items()}
            cohorts[event["round"]] = Cohort(tuple(event["cohort"]), last)
    return cohorts


def replay(folder: Path) -> TrainingResult:
    """Simulate the run of ``folder``, from the data that its settings name.

    Raises:
        OutputError: Its randomness was secure.
    """
    settings = load_settings(folder / SETTINGS)
    if settings.privacy.randomness == "secure":
        raise OutputError("cannot be run again: its randomness was secure", where=str(folder))
    experiment = compose(settings)
    replayed = ReplayedExperiment(
        **{f.name: getattr(experiment, f.name) for f in fields(Experiment)}, cohorts=read_cohorts(folder)
    )
    return replayed.run(None, lambda report: None)
