"""What crossed the wire in a run, and what each observer saw of it.

Everything that judges privacy reads a ``View``; nothing else gives an attack its data. A view holds no truth:
the examples behind an update are known to the scoring alone.

=================== =========================================== ==========================================
observer            mode "off" or "ring"                        mode "protocol"
=================== =========================================== ==========================================
server              every client's update, by client            masked uploads, and the survivors' sum
server+colluders    the same                                    that sum minus the colluders' updates
active server       the same                                    the sum of as few clients as the threshold
                                                                allows, minus the colluders' updates
client              the models broadcast (worst case: all)      the same
release             the public initial model and the final one  the same
=================== =========================================== ==========================================

An active server may call clients dropped that are not; keys are signed by identities that it does not hand out
(``docs/secure-aggregation.md`` has the rest). That it may craft the model is not played here.

Mode "bfv" is mode "protocol" with ciphertexts, which are not kept, in the place of masked uploads, and with one
difference: whatever a server has decrypted is decrypted, so that an active one sees every client's update. The key
holder, who is none of these observers, sees the sums that it decrypts; together with the server, every update.

Mode "ring" is a simulator's shortcut that sums unmasked integers: it claims no protection, and its view is
the plain one.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privfed.files import replacing

if TYPE_CHECKING:
    from privfed.auxiliary import Auxiliary
    from privfed.models.functional import Model

Vector = NDArray[np.float32]


VERSION = 4
"""Of the file."""


class Observer(str, Enum):
    """Who looks. The order is from the most to the least that is seen."""

    SERVER = "server"
    SERVER_WITH_COLLUDERS = "server+colluders"
    ACTIVE_SERVER = "active server"
    CLIENT = "client"
    RELEASE = "release"


class Kind(str, Enum):
    """What an observed vector is."""

    CLIENT_UPDATE = "client update"
    MASKED_UPLOAD = "masked upload"
    SUM = "sum of updates"
    MODEL_DIFFERENCE = "difference of models"


def sees_sums_only(mode: str, observer: Observer) -> bool:
    """Whether ``observer``, a server, is kept from single updates by an aggregation in ``mode``."""
    return mode == "protocol" or (mode == "bfv" and observer is not Observer.ACTIVE_SERVER)


@dataclass(frozen=True)
class Plan:
    """The public plan of a run: what every participant, and so every observer, knows.

    Attributes:
        learning_rate: Of the clients' local SGD.
        local_epochs: Passes of a client over its examples in one round.
        batch_size: Examples in one local step.
        server_scale: Factor from the mean client update to the change of the model, when the server's
            step is linear (SGD without momentum); ``None`` when it is not.
        clip_norm: L2 bound of a client's update, ``None`` when there is none.
        noise_stddev: Standard deviation per coordinate of all noise in the sum that makes a model; 0 when none.
        client_noise_stddev: Of the noise that each client adds to its own update, and that is in sums of them.
        divisor: What the server divides the sum by (the expected cohort, or the survivors' weight: ``None``).
        mode: ``off``, ``ring``, ``protocol`` or ``bfv``.
        weighted: Whether updates are weighted by their clients' example counts.
        local_steps: Steps of a client in one round, in place of passes; ``None`` where ``local_epochs`` counts.
        momentum: Of the clients' steps. The first step of a round has none.
        proximal: FedProx's μ: steps also go back towards the weights sent. The first step of a round has none.
        corrected: Whether steps also follow SCAFFOLD's control variates, all zero in round 1.
        examples: How many a client of weight 1 has, in the mean; ``None`` where nobody knows.
    """

    learning_rate: float
    local_epochs: int
    batch_size: int
    server_scale: float | None
    clip_norm: float | None
    noise_stddev: float
    divisor: float | None
    mode: str
    weighted: bool = False
    client_noise_stddev: float = 0.0
    local_steps: int | None = None
    momentum: float = 0.0
    proximal: float = 0.0
    corrected: bool = False
    examples: float | None = None


@dataclass(frozen=True, eq=False)
class Observation:
    """One vector that an observer holds and can try to invert.

    Attributes:
        round: The round, from 1; the first one of the span for a difference of models.
        kind: What the vector is.
        weights: The model that the updates in it started from, ``[d]``.
        vector: The vector in units of a client update (new weights − old weights), ``[d]``; a sum is the sum.
        contributors: Sum of the weights of the clients' updates in it: their number, in unweighted averaging.
        clients: Which clients those are (identifiers of the simulation; used for scoring only).
        noise_stddev: Standard deviation per coordinate of the noise the observer knows to be in ``vector``.
        rate_factor: On the plan's learning rate, in this round; ``None`` where several rounds differ in it.
        corrected: Whether control variates that are not zero moved the steps behind the vector.
    """

    round: int
    kind: Kind
    weights: Vector
    vector: NDArray[np.float64]
    contributors: float
    clients: tuple[int, ...]
    noise_stddev: float = 0.0
    rate_factor: float | None = 1.0
    corrected: bool = False


@dataclass(frozen=True, eq=False)
class View:
    """All that one observer has: who it is, the public plan and model, its observations, and data of its own."""

    observer: Observer
    plan: Plan
    model: Model
    observations: tuple[Observation, ...]
    auxiliary: Auxiliary | None = None


@dataclass(frozen=True, eq=False)
class RoundRecord:
    """One recorded round.

    Attributes:
        round: From 1.
        weights: Broadcast model ``[d]``.
        new_weights: Model after the server's step ``[d]``.
        cohort: Sampled clients.
        updates: Survivors' clipped (and, where encoded, rounded) updates times their weights, by client: ``[d]``.
            Of real clients that mask them nobody has any: then it is empty.
        shares: Weight of each survivor's update; 1 in unweighted averaging.
        uploads: Masked vectors as the server received them, decoded to update units; empty unless masked, and
            under encryption.
        total: Sum of the survivors' updates before noise, ``[d]``.
        threshold: Survivors that the sum needed; ``None`` where it needed none.
        rate_factor: On the clients' learning rate in this round.
        server_factor: On the server's.
    """

    round: int
    weights: Vector
    new_weights: Vector
    cohort: tuple[int, ...]
    updates: Mapping[int, NDArray[np.float64]]
    shares: Mapping[int, float]
    uploads: Mapping[int, NDArray[np.float64]]
    total: NDArray[np.float64]
    threshold: int | None = None
    rate_factor: float = 1.0
    server_factor: float = 1.0


@dataclass
class Transcript:
    """Recorded rounds of one run, and the models it started and ended with."""

    plan: Plan
    initial_weights: Vector
    final_weights: Vector
    rounds: int = 0
    records: list[RoundRecord] = field(default_factory=list)

    def view(self, observer: Observer, model: Model, *, colluders: int = 1) -> View:
        """What ``observer`` saw; ``colluders`` clients of each cohort work with all servers but ``server``."""
        if observer is Observer.RELEASE:
            observations = self._release()
        elif observer is Observer.CLIENT:
            observations = [self._difference(record) for record in self.records]
        elif not sees_sums_only(self.plan.mode, observer):
            observations = [o for record in self.records for o in _client_updates(record, self.plan)]
        else:
            taken = 0 if observer is Observer.SERVER else colluders
            fewest = observer is Observer.ACTIVE_SERVER
            observations = [o for record in self.records for o in _masked(record, self.plan, taken, fewest)]
        return View(observer, self.plan, model, tuple(observations))

    def _difference(self, record: RoundRecord) -> Observation:
        """Two successive models: the noised mean update, when the server's step is linear."""
        change = record.new_weights.astype(np.float64) - record.weights.astype(np.float64)
        return self._model_difference(
            record.round, 1, record.weights, change, tuple(record.shares), sum(record.shares.values()), [record]
        )

    def _release(self) -> list[Observation]:
        change = self.final_weights.astype(np.float64) - self.initial_weights.astype(np.float64)
        clients = tuple(sorted({c for record in self.records for c in record.shares}))
        contributors = max([1, *(len(record.shares) for record in self.records)])
        return [
            self._model_difference(
                1, max(1, self.rounds), self.initial_weights, change, clients, contributors, self.records
            )
        ]

    def _model_difference(
        self,
        first_round: int,
        rounds: int,
        weights: Vector,
        change: NDArray[np.float64],
        clients: tuple[int, ...],
        survivors: float,
        records: list[RoundRecord],
    ) -> Observation:
        # In units of a sum of updates: undo the server's step and division where they are linear. Over rounds of
        # different rates there is no one unit; what is recorded of them stands for all.
        factors = {(record.rate_factor, record.server_factor) for record in records} or {(1.0, 1.0)}
        server_factor = sum(factor for _, factor in factors) / len(factors)
        scale = (self.plan.divisor or survivors) / ((self.plan.server_scale or 1.0) * server_factor)
        return Observation(
            first_round,
            Kind.MODEL_DIFFERENCE,
            weights,
            change * scale,
            survivors * rounds,
            clients,
            self.plan.noise_stddev * float(np.sqrt(rounds)),
            next(iter(factors))[0] if len(factors) == 1 else None,
            self.plan.corrected and first_round + rounds > 2,
        )

    def save(self, path: Path) -> str:
        """Write the transcript as one compressed ``npz`` file; returns its SHA-256."""
        arrays: dict[str, Any] = {
            "initial_weights": self.initial_weights,
            "final_weights": self.final_weights,
        }
        index = []
        for i, record in enumerate(self.records):
            survivors, clients, masked = sorted(record.shares), sorted(record.updates), sorted(record.uploads)
            index.append(
                {
                    "round": record.round,
                    "cohort": record.cohort,
                    "survivors": survivors,
                    "shares": [record.shares[c] for c in survivors],
                    "updates": clients,
                    "uploads": masked,
                    "threshold": record.threshold,
                    "factors": [record.rate_factor, record.server_factor],
                }
            )
            arrays[f"{i}/weights"], arrays[f"{i}/new_weights"] = record.weights, record.new_weights
            arrays[f"{i}/total"] = record.total
            for name, ids, vectors in (
                ("updates", clients, record.updates),
                ("uploads", masked, record.uploads),
            ):
                rows = [vectors[c] for c in ids]
                arrays[f"{i}/{name}"] = np.stack(rows) if rows else np.zeros((0, len(record.total)))
        meta = {"version": VERSION, "plan": asdict(self.plan), "rounds": self.rounds, "records": index}
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        with replacing(path) as file:
            _save_compressed(file, arrays)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> Transcript:
        """Read what ``save`` wrote.

        Raises:
            ValueError: The file is not a transcript, or of a version this program does not know.
        """
        with np.load(path, allow_pickle=False) as data:
            if "meta" not in data:
                raise ValueError(f"{path}: not a transcript")
            meta = json.loads(data["meta"].tobytes())
            if meta.get("version") != VERSION:
                raise ValueError(
                    f"{path}: transcript version {meta.get('version')!r} is unknown, {VERSION} is needed"
                )
            records = [
                RoundRecord(
                    entry["round"],
                    data[f"{i}/weights"],
                    data[f"{i}/new_weights"],
                    tuple(entry["cohort"]),
                    dict(zip(entry["updates"], data[f"{i}/updates"], strict=True)),
                    dict(zip(entry["survivors"], entry["shares"], strict=True)),
                    dict(zip(entry["uploads"], data[f"{i}/uploads"], strict=True)),
                    data[f"{i}/total"],
                    entry["threshold"],
                    *entry["factors"],
                )
                for i, entry in enumerate(meta["records"])
            ]
            return cls(
                Plan(**meta["plan"]), data["initial_weights"], data["final_weights"], meta["rounds"], records
            )


def _client_updates(record: RoundRecord, plan: Plan) -> list[Observation]:
    terms = (plan.client_noise_stddev, record.rate_factor, plan.corrected and record.round > 1)
    return [
        Observation(record.round, Kind.CLIENT_UPDATE, record.weights, update, record.shares[c], (c,), *terms)
        for c, update in record.updates.items()
    ]


def _masked(record: RoundRecord, plan: Plan, colluders: int, fewest: bool) -> list[Observation]:
    """A sum of survivors less what colluders put in, and the masked uploads themselves.

    With ``fewest`` it is the sum of no more survivors than the round needed, the colluders among them.
    """
    survivors = tuple(sorted(record.shares))
    summed = survivors[: record.threshold] if fewest else survivors
    honest = summed[min(colluders, max(0, len(summed) - 1)) :]
    if not honest:
        return []
    if not record.updates.keys() >= set(survivors) - set(honest):
        return []  # what these colluders sent is theirs to know: a server has no record of it
    others = [record.updates[c] for c in survivors if c not in honest]
    rest = record.total - sum(others, np.zeros_like(record.total))
    share = sum(record.shares[c] for c in honest)
    noise = plan.client_noise_stddev * float(np.sqrt(len(honest)))
    terms = (record.rate_factor, plan.corrected and record.round > 1)
    seen = [Observation(record.round, Kind.SUM, record.weights, rest, share, honest, noise, *terms)]
    seen += [
        Observation(record.round, Kind.MASKED_UPLOAD, record.weights, upload, 1.0, (client,), 0.0, *terms)
        for client, upload in record.uploads.items()
        if client not in survivors[:colluders]
    ]
    return seen


def _save_compressed(file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """As ``np.savez_compressed``, which leaves an archive open when the disk is full."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(  # type: ignore[no-untyped-call]  # NumPy has no type for it
                    member, np.asanyarray(array), allow_pickle=False
                )
