"""The folder of a run: who may write into it, and how its files come to be complete or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.config import Settings
from privfed.errors import OutputError, SettingError
from privfed.files import remove_unfinished, replacing, write_text
from privfed.settings_file import dump_toml, load_settings

SETTINGS, LEDGER, METRICS = "config.toml", "ledger.jsonl", "metrics.jsonl"
BASELINE_METRICS, WEIGHTS, TRANSCRIPT = "metrics-baseline.jsonl", "weights.npy", "transcript.npz"
CHECKPOINTS = "checkpoints"
SERVED = "network.json"
"""Says that the clients of a run are real; and which run it is."""


class RunFolder:
    """One run's files. A run with the same settings may continue in it; any other run is refused.

    Checked when it is named, before data are loaded, and claimed when training begins.

    Raises:
        OutputError: The folder cannot be written, or belongs to a run with other settings.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self._settings = path, settings
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise OutputError(
                f"cannot be written: {error.strerror}", where=f"--out {path}", remedy="Name another folder"
            ) from None
        self._check()

    def claim(self) -> None:
        """Write the settings: from here on the folder is this run's. Before, a refusal leaves nothing in it.

        Raises:
            OutputError: Another run has begun in the folder meanwhile.
        """
        self._check()
        if not self.settings_file.exists():
            write_text(self.settings_file, dump_toml(self._settings))

    def _check(self) -> None:
        if self.settings_file.exists():
            self._refuse_other_run(self._settings)
        elif foreign := sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".")):
            raise OutputError(
                "is not empty and holds no run of ours",
                where=f"--out {self.path}",
                value=foreign[0],
                remedy="Name an empty or a new folder",
            )

    def remove_unfinished(self) -> None:
        """Remove the temporary files of killed runs; only for who holds the ledger's lock."""
        for folder in (self.path, self.checkpoints):
            remove_unfinished(folder)

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.path / SETTINGS

    @property
    def ledger(self) -> Path:
        """What was spent."""
        return self.path / LEDGER

    def metrics(self, *, baseline: bool = False, earlier: Sequence[Mapping[str, Any]] = ()) -> MetricsFile:
        """The file of metrics, one JSON object a round, beginning with the ``earlier`` rounds of a resumed run."""
        return MetricsFile(self.path / (BASELINE_METRICS if baseline else METRICS), earlier)

    @property
    def served(self) -> bool:
        """Whether its clients are real."""
        return (self.path / SERVED).exists()

    @property
    def checkpoints(self) -> Path:
        """Where the run stands."""
        return self.path / CHECKPOINTS

    def save_weights(self, weights: NDArray[np.float32]) -> Path:
        """The released model, as a flat NumPy vector."""
        target = self.path / WEIGHTS
        with replacing(target) as file:
            np.save(file, weights)
        return target

    def _refuse_other_run(self, settings: Settings) -> None:
        try:
            earlier = load_settings(self.settings_file)
        except SettingError as error:
            raise OutputError(
                f"holds a run whose settings cannot be read ({error})",
                where=f"--out {self.path}",
                remedy="Name another folder",
            ) from None
        if earlier.fingerprint() != settings.fingerprint():
            there, here = (of.model_dump(exclude={"ray"}) for of in (earlier, settings))
            difference = next(_differences(there, here))
            raise OutputError(
                f"already holds another run: {difference}",
                where=f"--out {self.path}",
                remedy="Name another folder; what that run spent stays on record",
            )


class MetricsFile:
    """One JSON object a line, flushed a line at a time, so that a killed run keeps its rounds."""

    def __init__(self, path: Path, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        write_text(path, "".join(_line(values) for values in earlier))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(_line(values))
        self._file.flush()


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {**left, **right}:  # a setting that is not used may be left out of one of them
        there, here = left.get(key), right.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            yield f"there {prefix}{key} is {there!r}, here {here!r}"
