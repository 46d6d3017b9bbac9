"""Canary clients in the very training that is audited: who they are, how they take part, and what is kept of them.

A canary is a client that nobody is: a fair coin, known to the auditor alone, says whether it exists. Those that
do are sampled, clipped, encoded, masked and noised as every client; they are compared with those that do not.
Where neighbouring runs differ in an update that is zero (the zero-out relation), all canaries take part, and those
whose coin fell the other way send zeros.

* ``update``: sends one random direction in every round (Andrew et al. 2023), far longer than the clip norm, so
  that a missing clip shows as well. In many dimensions such directions disturb neither each other nor the model.
* ``input``: trains as everybody does, on random images with random labels; its direction is the update that it
  would send in the first round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privfed.data import Population
from privfed.errors import SettingError
from privfed.federated.client_work import ClientUpdates
from privfed.federated.cohorts import Cohort

Vector = NDArray[np.float32]

LENGTH = 100.0
"""Of a canary's update before the clip, over the clip norm."""
LARGEST_SHARE = 0.25
"""Norm of a round's canaries over the norm of its noise: above, they would act as noise (variance + 6 %)."""
LARGEST_BYTES = 1 << 30
"""Of all directions together, which are held in memory."""


@dataclass(frozen=True, eq=False)
class CanaryClients:
    """The canaries of one training.

    Attributes:
        kind: ``update`` or ``input``.
        first: Identifier of the first; the population's clients come before it.
        included: The coins, ``[k]``.
        directions: Unit vectors ``[k, d]``.
        rate: Chance of a client to be in a round.
        zero_out: Whether canaries that are not ``included`` take part and send zeros.
    """

    kind: str
    first: int
    included: NDArray[np.bool_]
    directions: Vector
    rate: float
    zero_out: bool = False

    @property
    def count(self) -> int:
        """Canaries, whether they exist or not."""
        return len(self.included)

    def noise_share(self, noise_multiplier: float) -> float:
        """Expected norm of a round's canaries over that of its noise, ``noise_multiplier`` clip norms each way."""
        together = math.sqrt(self.rate * self.count / 2)
        return together / (noise_multiplier * math.sqrt(self.directions.shape[1]))

    def admit(self, cohort: Cohort) -> Cohort:
        """A cohort drawn from population and canaries, without the canaries that do not exist."""
        if self.zero_out:
            return cohort
        there = tuple(c for c in cohort.clients if c < self.first or self.included[c - self.first])
        return Cohort(there, {c: stage for c, stage in cohort.dropouts.items() if c in set(there)})

    def check(self, noise_multiplier: float) -> None:
        """Refuse canaries that would change the training.

        Raises:
            SettingError: They would act as noise.
        """
        share = self.noise_share(noise_multiplier)
        if share > LARGEST_SHARE:
            most = int(self.count * (LARGEST_SHARE / share) ** 2)
            raise SettingError(
                f"in a round they would be {share:.2g} times as long as the noise, and act as noise themselves",
                where="audit.canaries",
                value=self.count,
                remedy=f"At most {most} are short enough beside this noise and model",
            )


def random_directions(count: int, dimension: int, seed: Sequence[int]) -> Vector:
    """Unit vectors ``[count, dimension]``, uniform on the sphere.

    Raises:
        SettingError: They do not fit into memory.
    """
    if 4 * count * dimension > LARGEST_BYTES:
        raise SettingError(
            f"their directions take {4 * count * dimension / 2**30:.1f} GiB, and 1 GiB is held at most",
            where="audit.canaries",
            value=count,
            remedy=f"Use at most {LARGEST_BYTES // (4 * dimension)} with a model of {dimension} weights",
        )
    return normalised(np.random.default_rng(seed).standard_normal((count, dimension), np.float32))


def normalised(vectors: Vector) -> Vector:
    """The rows of ``vectors`` ``[k, d]`` with norm 1."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: Vector = (vectors / np.maximum(norms, np.finfo(np.float64).tiny)).astype(np.float32)
    return unit


def gathered(updates: Iterable[ClientUpdates], count: int, dimension: int) -> Vector:
    """The updates of ``count`` clients as one array ``[count, dimension]``; not finite ones are zero."""
    found = np.zeros((count, dimension), np.float32)
    for chunk in updates:
        found[list(chunk.clients)] = chunk.deltas
    found[~np.isfinite(found).all(axis=1)] = 0.0
    return found


def random_clients(population: Population, count: int, seed: Sequence[int]) -> Population:
    """``count`` clients of the population's median size, with uniform random inputs and labels.

    Raises:
        SettingError: Inputs are tokens.
    """
    if population.tokens is not None:
        raise SettingError(
            "random inputs can be made in place of images, not of this data",
            where="audit.canary_kind",
            value="input",
            remedy='Use canary_kind = "update"',
        )
    rng, size = np.random.default_rng(seed), max(1, int(np.median(population.sizes)))
    shape = (count * size, *population.input_shape)
    features: NDArray[np.uint8] | Vector = rng.random(shape, np.float32)
    if population.features.dtype == np.uint8:
        features = np.rint(255 * features).astype(np.uint8)
    return replace(
        population,
        features=features,
        labels=rng.integers(0, population.classes, count * size).astype(population.labels.dtype),
        offsets=np.arange(count + 1, dtype=np.int64) * size,
    )
