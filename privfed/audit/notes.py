"""What the auditor keeps of a training: arrays alone, so that they go into checkpoints with the mechanism's state.

They are as secret as the sums are: with the releases, they give some of the noise away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from privfed.audit.one_shot import RoundScores
from privfed.federated.server_update import State as ServerState

Real = NDArray[np.float64]

SKETCHED = 512
"""Coordinates of each round's noise that are kept, over all layers."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Scores of all rounds, by canary.

    Inner products are in units of the clip norm where a canary was in the sum, and of the noise's standard
    deviation where it was not. ``own`` rows are of a canary's single contribution, for those who receive it.

    Attributes:
        rows: ``[len(ROWS), k]``.
    """

    ROWS = (
        "rounds",
        "likelihood",
        "known_likelihood",
        "largest_cosine",
        "largest_in_sum",
        "participations",
        "with_sum",
        "with_squares",
        "without_sum",
        "without_squares",
        "own_rounds",
        "own_likelihood",
        "own_with_sum",
        "own_with_squares",
        "own_without_sum",
        "own_without_squares",
    )
    rows: Real

    @classmethod
    def empty(cls, count: int) -> Tally:
        """Before round 1."""
        rows = np.zeros((len(cls.ROWS), count))
        rows[[cls.ROWS.index("largest_cosine"), cls.ROWS.index("largest_in_sum")]] = -np.inf
        return cls(rows)

    def __getattr__(self, name: str) -> Real:
        if name not in Tally.ROWS:
            raise AttributeError(name)
        row: Real = self.rows[Tally.ROWS.index(name)]
        return row

    def round_scores(self, prefix: str = "") -> RoundScores:
        """All canaries' together, of sums or (``own_``) of single contributions."""
        participations = int(self.participations.sum())
        return RoundScores(
            participations,
            float(getattr(self, f"{prefix}with_sum").sum()),
            float(getattr(self, f"{prefix}with_squares").sum()),
            int(getattr(self, f"{prefix}rounds").sum()) - participations,
            float(getattr(self, f"{prefix}without_sum").sum()),
            float(getattr(self, f"{prefix}without_squares").sum()),
        )


@dataclass(frozen=True, eq=False)
class Notes:
    """All that is kept; a new one after each round.

    Attributes:
        tally: Rows of ``Tally``.
        squares: Sum over rounds of the squared noise, in units of its claimed variance, by layer, ``[layers]``.
        sketch: Some coordinates of each round's noise, in the same units, ``[rounds, m]``; NaN where none was
            drawn.
        scores: Inner products of canaries with noised sums over the clip norm, ``[rounds, k]``; no rows where
            rounds can be scored one by one.
        drawn: Whether each canary was in the round's cohort, likewise.
        sizes: Clients sampled, by round, ``[rounds]``; NaN where it is not known.
        survivors: Updates in the sum, by round; NaN likewise.
        counts: Rounds that each client, and each canary after them, was sampled in.
        clip: Updates measured after the clip; the longest over the clip norm; noisy ones measured; the sum over
            those of the standardised remainder along the update.
        expected: Weights that the last round began at, and behind them those that its noised sum leads to,
            ``[2·d]``; empty before round 1.
        steps: Steps redone; largest deviation, over the step's length; length of that step over the expected one.
        server: State of the server's optimizer, as redone.
    """

    tally: Real
    squares: Real
    sketch: Real
    scores: Real
    drawn: NDArray[np.bool_]
    sizes: Real
    survivors: Real
    counts: NDArray[np.int64]
    clip: Real
    expected: NDArray[np.float32]
    steps: Real
    server: ServerState = ()

    @classmethod
    def empty(
        cls,
        canaries: int,
        layers: int,
        sketched: int,
        rounds: int,
        clients: int,
        server: ServerState,
        *,
        history: bool,
    ) -> Notes:
        """Before round 1."""
        kept = rounds if history else 0
        return cls(
            tally=Tally.empty(canaries).rows,
            squares=np.zeros(layers),
            sketch=np.full((rounds, sketched), np.nan),
            scores=np.full((kept, canaries), np.nan),
            drawn=np.zeros((kept, canaries), bool),
            sizes=np.full(rounds, np.nan),
            survivors=np.full(rounds, np.nan),
            counts=np.zeros(clients, np.int64),
            clip=np.zeros(4),
            expected=np.zeros(0, np.float32),
            steps=np.array([0.0, 0.0, 1.0]),
            server=server,
        )

    @classmethod
    def split(cls, state: Sequence[NDArray[np.generic]], inner: int) -> Notes:
        """From a mechanism's state whose first ``inner`` arrays are the mechanism's own."""
        own = state[inner:]
        names = [field.name for field in fields(cls)][:-1]
        return cls(**dict(zip(names, own[: len(names)], strict=True)), server=tuple(own[len(names) :]))  # type: ignore[arg-type]  # arrays, in the order of as_arrays

    def as_arrays(self) -> tuple[NDArray[np.generic], ...]:
        """In one order."""
        return (*(getattr(self, field.name) for field in fields(self)[:-1]), *self.server)

    def copied(self) -> Notes:
        """With arrays of its own, to be written to."""
        return replace(
            self, **{f.name: getattr(self, f.name).copy() for f in fields(self)[:-1] if f.name != "expected"}
        )


def sketched_coordinates(layers: Sequence[int], seed: Sequence[int]) -> NDArray[np.int64]:
    """Coordinates to keep of vectors with ``layers`` of these sizes: about ``SKETCHED``, alike by layer."""
    rng, each = np.random.default_rng(seed), max(16, SKETCHED // len(layers))
    starts = np.cumsum([0, *layers[:-1]])
    chosen = [
        start + np.sort(rng.choice(size, min(size, each), replace=False))
        for start, size in zip(starts, layers, strict=True)
    ]
    coordinates: NDArray[np.int64] = np.concatenate(chosen).astype(np.int64)
    return coordinates
