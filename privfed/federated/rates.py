"""Learning rates that change from round to round, for clients and for the server."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["none", "exponential", "step", "cosine"]


@dataclass(frozen=True)
class RateSchedule:
    """The factor on a learning rate in each round: a linear warm-up, then a decay.

    With ``t`` rounds gone since the warm-up and ``f`` the ``factor``:

    * ``exponential``: ``f ** (t / every)``;
    * ``step``: ``f ** floor(t / every)``;
    * ``cosine``: from 1 towards ``f`` along half a wave over the remaining rounds (Loshchilov & Hutter 2017,
      equation 5, without restarts).

    Attributes:
        rounds: Of the whole training.
        decay: Which one.
        factor: In (0, 1].
        every: Rounds; all of them when ``None``.
        warmup: Round ``r`` of so many has the share ``r / warmup`` of the rate (Goyal et al. 2017, section 2.2).
    """

    rounds: int
    decay: Decay = "none"
    factor: float = 0.1
    every: int | None = None
    warmup: int = 0

    @property
    def constant(self) -> bool:
        """Whether every round has the same rate."""
        return self.decay == "none" and not self.warmup

    def __call__(self, number: int) -> float:
        """Of round ``number``, from 1; in (0, 1]."""
        if number <= self.warmup:
            return number / self.warmup
        gone, left = number - 1 - self.warmup, max(1, self.rounds - self.warmup)
        if self.decay == "exponential":
            return float(self.factor ** (gone / (self.every or left)))
        if self.decay == "step":
            return float(self.factor ** (gone // (self.every or left)))
        if self.decay == "cosine":
            return self.factor + (1 - self.factor) * (1 + math.cos(math.pi * min(1.0, gone / left))) / 2
        return 1.0
