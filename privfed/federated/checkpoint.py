"""Where a training stands, on disk: a killed run goes on from its last round, and loses nothing that was spent.

A checkpoint is one file that is there whole or not at all, and holds its own hash. The newest ones are kept, so
that a damaged one costs rounds, not the run. Recorded rounds are large and never change: each has its own
file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privfed.federated.outcome import RoundState
from privfed.federated.round import Vector
from privfed.federated.scaffold import Variates
from privfed.files import replacing
from privfed.transcript import Plan, RoundRecord, Transcript

VERSION = 4
KEPT = 2
"""Checkpoints that stay: the newest, and the one before it."""
_HASH_BYTES = 32
Warn = Callable[[str], None]


@dataclass(eq=False)
class Progress:
    """Where a training stands after ``round`` rounds.

    Attributes:
        round: Rounds done.
        weights: The model ``[d]``.
        state: Of the server's optimizer, the mechanism and SCAFFOLD.
        reports: Lines of ``metrics.jsonl`` so far.
        stage_costs: Bytes and seconds by stage so far.
        recorded: Rounds whose records the transcript holds, each with the SHA-256 of its record's file.
        average: Of the models so far ``[d]``, where that is what will be released.
    """

    round: int
    weights: Vector
    state: RoundState
    reports: list[dict[str, Any]] = field(default_factory=list)
    stage_costs: dict[str, tuple[int, float]] = field(default_factory=dict)
    recorded: dict[int, str] = field(default_factory=dict)
    average: Vector | None = None

    @property
    def released(self) -> Vector:
        """The model ``[d]`` that is released if the training ends here."""
        return self.weights if self.average is None else self.average


class Checkpoints:
    """The checkpoints of one run with the settings of ``fingerprint``, in one folder."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        self._unusable: set[Path] = set()

    def save(self, progress: Progress) -> Path:
        """Write one; on disk when this returns. Older ones beyond ``KEPT``, and unusable ones, are removed."""
        meta = {
            "version": VERSION,
            "settings": self._fingerprint,
            "round": progress.round,
            "reports": progress.reports,
            "stage_costs": progress.stage_costs,
            "recorded": progress.recorded,
            "server": len(progress.state.server),
            "mechanism": len(progress.state.mechanism),
            "variates": progress.state.variates is not None,
        }
        arrays: dict[str, Any] = {
            "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
            "weights": progress.weights,
        }
        if progress.average is not None:
            arrays["average"] = progress.average
        for name, parts in (("server", progress.state.server), ("mechanism", progress.state.mechanism)):
            arrays |= {f"{name}/{i}": part for i, part in enumerate(parts)}
        if progress.state.variates is not None:
            arrays |= {f"variates/{name}": part for name, part in progress.state.variates.as_arrays().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"round-{progress.round:08d}.ckpt"
        # A mechanism's state can hold noise and sums that nobody is to see.
        with replacing(path, private=True) as file:
            file.write(content + hashlib.sha256(content).digest())
        self._unusable.discard(path)
        # A later one is of rounds that were lost and are being repeated.
        usable = [other for other in self._files() if other <= path and other not in self._unusable]
        for other in self._files():
            if other not in usable[:KEPT]:
                other.unlink(missing_ok=True)
        return path

    def save_record(self, plan: Plan, record: RoundRecord) -> str:
        """Write one recorded round; on disk when this returns. Returns the file's SHA-256."""
        self._folder.mkdir(exist_ok=True)
        piece = Transcript(plan, record.weights, record.new_weights, 1, [record])
        return piece.save(self._record_file(record.round))

    def load_records(self, recorded: Mapping[int, str], warn: Warn) -> list[RoundRecord]:
        """The records of the rounds in ``recorded``; ``warn`` hears of each that is gone or changed."""
        records = []
        for number, digest in recorded.items():
            path = self._record_file(number)
            try:
                if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                    raise ValueError("its hash does not fit")
                records += Transcript.load(path).records
            except (OSError, ValueError, KeyError) as error:
                warn(f"the record of round {number} cannot be used ({error}); no attack will see it")
        return records

    def _record_file(self, number: int) -> Path:
        return self._folder / f"record-{number:08d}.npz"

    def newest(self, warn: Warn) -> Progress | None:
        """The newest checkpoint that is whole; ``warn`` hears of each that is not. ``None`` without any."""
        paths = self._files()
        for path in paths:
            try:
                return self._load(path)
            except (OSError, ValueError, KeyError) as error:
                self._unusable.add(path)
                instead = "starting over" if path == paths[-1] else "going back to the one before it"
                warn(f"{path.name} cannot be used ({error}); {instead}")
        return None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.ckpt"), reverse=True) if self._folder.is_dir() else []

    def _load(self, path: Path) -> Progress:
        content = path.read_bytes()
        body, digest = content[:-_HASH_BYTES], content[-_HASH_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise ValueError("its hash does not fit")
        with np.load(io.BytesIO(body), allow_pickle=False) as data:
            meta = json.loads(data["meta"].tobytes())
            if meta["version"] != VERSION or meta["settings"] != self._fingerprint:
                raise ValueError("it is of another version or of other settings")
            variates = {
                name: data[f"variates/{name}"] for name in ("server", "ids", "clients") if meta["variates"]
            }
            state = RoundState(
                tuple(data[f"server/{i}"] for i in range(meta["server"])),
                tuple(data[f"mechanism/{i}"] for i in range(meta["mechanism"])),
                Variates.from_arrays(variates) if variates else None,
            )
            return Progress(
                meta["round"],
                data["weights"],
                state,
                meta["reports"],
                {stage: (cost[0], cost[1]) for stage, cost in meta["stage_costs"].items()},
                {int(number): digest for number, digest in meta["recorded"].items()},
                data.get("average"),
            )
