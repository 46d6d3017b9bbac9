"""What comes of one trial, and how its folder says that it is done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from privfed.audit.evidence import Count, NonNegative, Part, PrivacyLoss, Sha256, Share
from privfed.config import Settings
from privfed.errors import OutputError
from privfed.files import write_text
from privfed.rundir import SETTINGS, RunFolder
from privfed.schemes import sampling_scheme
from privfed.sweep.grid import Trial

MARKER = "trial.json"
OBSERVERS = ("server", "server+colluders", "active server", "client", "release")
"""From the most to the least that is seen."""


class TrialResult(Part):
    """One trial, in ``sweep.json`` and in its own folder.

    ``seconds`` is the training's time since it was last begun or gone on with, without the start of the worker.
    """

    id: str
    values: dict[str, JsonValue]
    """By key path; ``"inf"`` for infinity."""
    seed: Count
    """From 0: which of the trials with the same values."""
    training_seed: Count
    """``training.seed`` as set: another one for each trial."""
    settings_fingerprint: Sha256
    folder: str
    """Relative to the sweep's."""
    status: Literal["done", "failed", "unfinished"]
    error: str | None = None
    privacy: dict[str, PrivacyLoss] = Field(default_factory=dict)
    """By observer, of this trial alone, recomputed from its ledger."""
    test_accuracy: Share | None = None
    train_accuracy: Share | None = None
    rounds: Count | None = None
    seconds: NonNegative | None = None
    weights_sha256: Sha256 | None = None


class TrialFolders:
    """Where the trials of one sweep lie."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def of(self, trial: Trial) -> Path:
        """The run's folder."""
        return self.out / "trials" / trial.id

    def check(self, trials: Sequence[Trial]) -> None:
        """Refuse folders of runs with other settings before anything is run.

        Raises:
            OutputError: One is there.
        """
        for trial in trials:
            if (self.of(trial) / SETTINGS).exists():
                RunFolder(self.of(trial), trial.settings)

    def finished(self, trial: Trial) -> TrialResult | None:
        """The result that an earlier run left, if it was of the same settings and its model is there."""
        marker = self.of(trial) / MARKER
        try:
            result = TrialResult.model_validate_json(marker.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            raise OutputError(f"cannot be read: {error.strerror}", where=str(marker)) from None
        same = result.settings_fingerprint == trial.settings.fingerprint()
        return result if same and result.status == "done" else None

    def done(self, trial: Trial, figures: Mapping[str, Any]) -> TrialResult:
        """Mark a trial as done; ``figures`` are those that ``run_training`` returned."""
        result = self._bare(trial, "done").model_copy(
            update={
                "privacy": losses_of(trial.settings, figures["guarantees"]),
                **{
                    name: figures[name]
                    for name in ("test_accuracy", "train_accuracy", "rounds", "seconds", "weights_sha256")
                },
            }
        )
        result = TrialResult.model_validate(result.model_dump())
        write_text(self.of(trial) / MARKER, dump(result))
        return result

    def failed(self, trial: Trial, error: str) -> TrialResult:
        """A trial that came to nothing. Nothing is written: the next run tries it again."""
        return self._bare(trial, "failed").model_copy(update={"error": error})

    def unfinished(self, trial: Trial) -> TrialResult:
        """A trial that was not run, or not to its end."""
        return self._bare(trial, "unfinished")

    def _bare(self, trial: Trial, status: Literal["done", "failed", "unfinished"]) -> TrialResult:
        return TrialResult(
            id=trial.id,
            values=dict(trial.values),
            seed=trial.repeat,
            training_seed=trial.settings.training.seed,
            settings_fingerprint=trial.settings.fingerprint(),
            folder=str(self.of(trial).relative_to(self.out)),
            status=status,
        )


def losses_of(settings: Settings, guarantees: Mapping[str, Mapping[str, Any]]) -> dict[str, PrivacyLoss]:
    """By observer, all five of them: as guaranteed, ε = ∞ for who is not protected."""
    privacy, cohort = settings.privacy, settings.cohort
    # How many clients there are only the data may tell; here it describes what promises nothing.
    clients = settings.data.known_clients or cohort.size or 1
    sampling = sampling_scheme(cohort, clients, settings.training.rounds)
    nothing = PrivacyLoss(
        epsilon=math.inf,
        delta=privacy.delta,
        unit=privacy.unit,
        neighbouring=sampling.neighbouring,
        sampling=sampling.describe(),
    )
    names = PrivacyLoss.model_fields
    return {
        observer: PrivacyLoss(**{name: guarantees[observer][name] for name in names})
        if observer in guarantees
        else nothing
        for observer in OBSERVERS
    }


def dump(part: Part) -> str:
    """Strict JSON; infinity as the string ``inf``."""
    return json.dumps(part.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
