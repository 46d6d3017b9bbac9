"""The metrics of a training as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

FOLDER = "tensorboard"


class EventFile:
    """Scalars by round. A resumed run begins a new file, whose earlier rounds hide those of the file before."""

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder / FOLDER))

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, values: Mapping[str, Any]) -> None:
        """One round, as a line of ``metrics.jsonl``: its numbers, and nothing else of it."""
        with self._writer.as_default(step=values["round"]):
            for name, value in values.items():
                if name != "round" and isinstance(value, int | float):
                    tf.summary.scalar(name, value)
        self._writer.flush()
