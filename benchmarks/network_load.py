"""What a load on the network is made of, and the processes that its clients run in."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import privfed.network  # before gRPC: it leaves TLS 1.2 out  # isort: skip

import numpy as np
from numpy.typing import NDArray

from privfed.federated.aggregation import Inputs, PlainAggregation, RingAggregation
from privfed.privacy.randomness import SeededSource
from privfed.secagg import ProtocolSum

BOUND = 1.0
assert privfed.network


@dataclass(frozen=True)
class Load:
    """What is asked for."""

    clients: int
    rounds: int
    dimension: int
    mode: str
    cohort: int
    trouble: float
    stage_seconds: float
    processes: int

    def trouble_of(self, draw: random.Random) -> str | None:
        """What happens to a client before it answers."""
        chance = draw.random()
        return "stalled" if chance < self.trouble / 2 else "reconnected" if chance < self.trouble else None

    @property
    def aggregation(self) -> Any:
        if self.mode == "off":
            return PlainAggregation()
        return RingAggregation(
            lambda number, threshold, model, bits: ProtocolSum(number, threshold, model=model, ring_bits=bits),
            ring_bits=32,
            threshold=None,
            masked=True,
        )

    def inputs(self, number: int, cohort: Any, weights: NDArray[np.float32]) -> Inputs:
        model = hashlib.sha256(weights.tobytes()).digest()
        return Inputs(
            number, tuple(cohort), self.dimension, BOUND, False, lambda c: SeededSource(number, c), model
        )


def spread(load: Load) -> list[list[int]]:
    return [list(range(i, load.clients, load.processes)) for i in range(load.processes)]


def start(target: Callable[..., None], load: Load, *arguments: Any) -> tuple[list[Any], Any]:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    *first, last = arguments
    processes = [context.Process(target=target, args=(load, *first, mine, last, ready)) for mine in spread(load)]
    for process in processes:
        process.start()
    return processes, ready
