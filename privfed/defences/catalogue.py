"""The defences of the grid: each a change of the same undefended round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from privfed.config import Settings
from privfed.errors import SettingError
from privfed.secagg import FixedPointCodec
from privfed.secagg.errors import ParameterError
from privfed.secagg.ring import MAX_BITS, MIN_BITS
from privfed.settings_file import resolve_settings
from privfed.transcript import Kind

COHORT = 4
"""Clients of a round whose updates are seen one by one."""
FEW_STEPS, MANY_STEPS = 5, 20
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Defence:
    """What stands between the server and the examples, and of what one target is made.

    Attributes:
        name: As in the figures, unique.
        family: What it is one strength of.
        clients: In the round.
        examples: That each client holds; ``None`` for ``training.batch_size`` of the experiment.
        kind: What the server attacks.
        training: Settings of this table, over those of the undefended round.
        privacy: Likewise.
        secure_aggregation: Likewise.
        pruned: Share of an update's entries, the smallest, that the client sets to zero.
    """

    name: str
    family: str
    clients: int = COHORT
    examples: int | None = None
    kind: Kind = Kind.CLIENT_UPDATE
    training: Table = field(default_factory=dict)
    privacy: Table = field(default_factory=dict)
    secure_aggregation: Table = field(default_factory=dict)
    pruned: float = 0.0

    def settings(self, base: Settings, clients: int) -> Settings:
        """One round of ``base`` with this defence alone, its examples dealt out to ``clients`` clients.

        Raises:
            SettingError: They do not fit together.
        """
        tree = base.model_dump(exclude_none=True)
        examples = self.examples_of(base)
        tree["data"] |= {"partition": "iid", "clients": clients, "examples_per_client": examples}
        tree["data"].pop("held_out_clients", None)
        tree["training"] = {
            "rounds": 1,
            "batch_size": examples,
            "learning_rate": base.training.learning_rate,
            "seed": base.training.seed,
            **self.training,
        }
        tree["cohort"] = {"sampling": "fixed", "size": self.clients}
        tree["privacy"] = dict(self.privacy)
        tree["secure_aggregation"] = dict(self.secure_aggregation)
        tree["audit"] = {"canaries": 0}
        tree["attacks"] |= {"enabled": True, "rounds": [1]}
        return resolve_settings(tree)

    def examples_of(self, base: Settings) -> int:
        """That each client holds."""
        return base.training.batch_size if self.examples is None else self.examples


def defences(base: Settings, dimension: int) -> tuple[Defence, ...]:
    """The rows of the grid, for a model of so many weights; noise is a share of the experiment's clip norm.

    Raises:
        SettingError: The experiment has no clip norm.
    """
    clip = base.privacy.clip_norm
    if clip is None:
        raise SettingError(
            "is missing: the grid clips to it, encodes within it, and gives noise as a share of it",
            where="privacy.clip_norm",
            remedy="Set it to about the length of an update; examples/defences.toml shows how",
        )
    return (
        Defence("none", "none"),
        Defence(f"clip {clip:g}", "clipping", privacy={"clip_norm": clip}),
        Defence(f"clip {clip / 100:g}", "clipping", privacy={"clip_norm": clip / 100}),
        *(_quantised(bits, clip) for bits in (32, 24, _coarsest(clip, dimension))),
        *(_noised(share, clip) for share in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
        *(Defence(f"prune {share:.1%}", "pruning", pruned=share) for share in (0.9, 0.99, 0.999)),
        Defence(
            "masked upload",
            "masking",
            kind=Kind.MASKED_UPLOAD,
            privacy={"clip_norm": clip},
            secure_aggregation={"mode": "protocol"},
        ),
        *(_masked(clients, clip) for clients in (2, 4, 8, 16, 100)),
        Defence(f"{FEW_STEPS} local steps", "local steps", training={"local_steps": FEW_STEPS}),
        Defence(f"{MANY_STEPS} local steps", "local steps", training={"local_steps": MANY_STEPS}),
        Defence("10 epochs, steps of 1", "local steps", training={"local_epochs": 10, "batch_size": 1}),
        *(Defence(f"batch {size}", "batch size", examples=size) for size in (1, 4, 8, 16, 32)),
    )


def _coarsest(clip: float, dimension: int) -> int:
    """The narrowest ring that the codec allows: in a narrower one rounding would lengthen updates too much."""
    for bits in range(MIN_BITS, MAX_BITS):
        try:
            FixedPointCodec.for_cohort(COHORT, clip, dimension, bits)
        except ParameterError:
            continue
        return bits
    return MAX_BITS


def _quantised(bits: int, clip: float) -> Defence:
    """Fixed point with stochastic rounding, as before masking, in a ring that nobody masks."""
    return Defence(
        f"ring of {bits} bits",
        "quantisation",
        privacy={"clip_norm": clip},
        secure_aggregation={"mode": "ring", "ring_bits": bits},
    )


def _noised(share: float, clip: float) -> Defence:
    noise = {"mechanism": "local", "noise_multiplier": share, "clip_norm": clip}
    return Defence(f"noise {share:g} × clip", "noise", privacy=noise)


def _masked(clients: int, clip: float) -> Defence:
    return Defence(
        f"sum of {clients} clients",
        "masking",
        clients=clients,
        kind=Kind.SUM,
        privacy={"clip_norm": clip},
        secure_aggregation={"mode": "protocol"},
    )
