"""Randomness by purpose, round and client: no two uses share a stream, and the order of work does not matter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from privfed.privacy.randomness import RandomSource, SeededSource, SystemSource


class Purpose(IntEnum):
    """What randomness is for. The numbers are part of the seeds: never renumber."""

    COHORT = 1
    DROPOUT = 2
    SHUFFLE = 3
    ROUNDING = 4
    NOISE = 5
    CLIENT_NOISE = 6
    ORDER = 7
    CANARIES = 8
    PEERS = 9


_SIMULATION = frozenset({Purpose.DROPOUT, Purpose.SHUFFLE, Purpose.ORDER, Purpose.CANARIES, Purpose.PEERS})
"""Not secret in any mode: who vanishes is a simulation; the order of examples, canaries, peers protect nobody."""


@dataclass(frozen=True)
class Streams:
    """The streams of one run.

    Attributes:
        seed: Of the run.
        secure: Whether what privacy rests on (cohorts, rounding, noise) comes from the operating system's CSPRNG.
    """

    seed: int
    secure: bool

    def key(self, purpose: Purpose, round_number: int, client: int | None = None) -> tuple[int, ...]:
        """The seed of one stream."""
        return (self.seed, int(purpose), round_number, *(() if client is None else (client,)))

    def source(self, purpose: Purpose, round_number: int, client: int | None = None) -> RandomSource:
        """The stream itself."""
        if self.secure and purpose not in _SIMULATION:
            return SystemSource()
        return SeededSource(*self.key(purpose, round_number, client))

    def describe(self) -> str:
        """In the words of the report."""
        if self.secure:
            return "operating system CSPRNG for cohorts, rounding and noise (secure mode)"
        return (
            f"seeded generators, seed {self.seed} (research mode: reproducible, no secret from who knows the seed)"
        )
