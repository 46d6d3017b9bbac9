"""What a training plans to spend: a mechanism, its cohorts and its rounds, before any of it happens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from privfed.privacy.accounting import Guarantee, by_observer, times
from privfed.privacy.calibration import smallest_noise, smallest_where
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.errors import PrivacyError
from privfed.privacy.factorisation import Banded, BinaryTree, banded, tree
from privfed.privacy.mechanisms import (
    AdaptiveClipping,
    CentralGaussian,
    CorrelatedGaussian,
    DistributedNoise,
    ExampleGaussian,
    ExampleNoise,
    LocalGaussian,
    Mechanism,
)
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling, RoundRobinSampling, SamplingScheme

Kind = Literal["gaussian", "adaptive", "local", "discrete_gaussian", "skellam", "tree", "banded", "dp_sgd"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DISTRIBUTED = ("discrete_gaussian", "skellam")
CORRELATED = ("tree", "banded")
OVERSIZE = 2.0**-40
"""A Poisson cohort is larger than what a ring is made for with at most this probability."""


@dataclass(frozen=True)
class PrivacyPlan:
    """All that ε depends on, but the noise multiplier.

    Attributes:
        kind: The mechanism.
        sampling: How cohorts are drawn.
        rounds: Of training.
        delta: Of every guarantee.
        clip_norm: L2 bound on each client's update.
        population: Clients in all.
        dropout: Share of sampled clients that vanish, on average.
        wanted: Clients that a round is to be left with, where more are drawn for those that vanish; all when not
            given. Sums are divided by it, and noise of clients is planned for no more of them.
        secure: Noise from the system's CSPRNG.
        quantile: Of adaptive clipping.
        quantile_rate: Of adaptive clipping.
        dimension: Weights of the model; needed for integer noise.
        bands: Of banded noise; as many as the cohorts allow when not given.
        ring_bits: Of secure aggregation.
        masked: Whether secure aggregation hides single contributions.
        threshold: Fewest survivors of a round.
        colluders: Clients that tell ``server+colluders`` what they know.
        seed: Of what is random and public.
        example_rate: Of ``dp_sgd``: chance of each example to be in a step.
        local_steps: Of ``dp_sgd``: of each client in a round.
        update_scale: Of ``dp_sgd``: learning rate over batch size, for what observers know of the noise.
        guests: Clients beyond the population that are drawn as clients are, such as canaries; no ε counts them.
    """

    kind: Kind
    sampling: SamplingScheme
    rounds: int
    delta: float
    clip_norm: float = 1.0
    population: int = 1
    dropout: float = 0.0
    wanted: float | None = None
    secure: bool = False
    quantile: float = 0.5
    quantile_rate: float = 0.2
    dimension: int = 1
    bands: int | None = None
    ring_bits: int = 32
    masked: bool = True
    threshold: int = 2
    colluders: int = 0
    seed: int = 0
    example_rate: float = 1.0
    local_steps: int = 1
    update_scale: float = 1.0
    guests: int = 0

    @property
    def expected_cohort(self) -> float:
        """Clients drawn in a round: exactly, or on average under Poisson sampling."""
        if isinstance(self.sampling, PoissonSampling):
            return self.sampling.rate * self.population
        if isinstance(self.sampling, FixedSizeSampling | RoundRobinSampling):
            return float(self.sampling.size)
        return float(self.population)

    @property
    def expected_survivors(self) -> int:
        """Clients whose inputs arrive in a round, on average, rounded down; no more than are wanted."""
        return max(1, math.floor(min(self.wanted_cohort, self.expected_cohort * (1 - self.dropout))))

    @property
    def wanted_cohort(self) -> float:
        """What sums are divided by: public, and the same whoever takes part."""
        return self.expected_cohort if self.wanted is None else self.wanted

    @cached_property
    def largest_cohort(self) -> int:
        """Clients and guests in a round, which Poisson cohorts exceed with a probability below ``OVERSIZE``."""
        everybody = self.population + self.guests
        if isinstance(self.sampling, FixedSizeSampling | RoundRobinSampling):
            return math.ceil(self.expected_cohort)
        if not isinstance(self.sampling, PoissonSampling):
            return everybody
        from scipy.stats import binom

        return min(everybody, int(binom.isf(OVERSIZE, everybody, self.sampling.rate)) + 1)

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """The mechanism with so much noise.

        Raises:
            PrivacyError: A parameter is out of range, or the ring is too narrow.
        """
        if self.kind == "adaptive":
            return AdaptiveClipping(
                self.clip_norm,
                noise_multiplier,
                expected_cohort=self.wanted_cohort,
                quantile=self.quantile,
                rate=self.quantile_rate,
                secure=self.secure,
            )
        if self.kind == "local":
            return LocalGaussian(self.clip_norm, noise_multiplier, self.secure)
        if self.kind == "discrete_gaussian" or self.kind == "skellam":
            params = DistributedParams.for_cohort(
                self.kind,
                self.clip_norm,
                self.dimension,
                noise_multiplier,
                expected_survivors=self.expected_survivors,
                cohort_size=self.largest_cohort,
                ring_bits=self.ring_bits,
            )
            return DistributedNoise(
                self.kind,
                params,
                self.population,
                threshold=self.threshold,
                masked=self.masked,
                colluders=self.colluders,
                seed=self.seed,
                secure=self.secure,
            )
        if self.kind == "dp_sgd":
            example = ExampleNoise(self.clip_norm, noise_multiplier, self.example_rate, self.secure)
            return ExampleGaussian(example, self.local_steps, self.update_scale)
        if self.kind in CORRELATED:
            return self._correlated(noise_multiplier)
        return CentralGaussian(self.clip_norm, noise_multiplier, self.secure)

    def _correlated(self, noise_multiplier: float) -> CorrelatedGaussian:
        sampling = self.sampling
        if not isinstance(sampling, RoundRobinSampling):
            raise PrivacyError(
                f"{self.kind} noise needs cohorts in a fixed order",
                where="cohort.sampling",
                value=sampling.name,
                remedy='Set cohort.sampling = "round_robin" and cohort.size',
            )
        rounds = sampling.rounds
        if self.kind == "tree":
            strategy: Banded | BinaryTree = tree(rounds)
        else:
            strategy = banded(rounds, min(rounds, self.bands or sampling.separation))
        return CorrelatedGaussian(self.clip_norm, noise_multiplier, strategy, sampling, self.secure)

    def guarantees(self, noise_multiplier: float) -> dict[str, Guarantee]:
        """By observer, what all rounds spend when as many clients survive as expected; others have ε = ∞."""
        mechanism = self.mechanism(noise_multiplier)
        releases = mechanism.releases(self.sampling, self.expected_survivors)
        return by_observer([times(releases, 1 if mechanism.whole_run else self.rounds)], self.delta)

    def calibrate(self, epsilon: float, against: str = "protected") -> float:
        """The least noise multiplier with ε within ``epsilon``.

        Args:
            epsilon: The target.
            against: An observer, or ``protected`` for the worst of those whom the mechanism protects from.

        Raises:
            PrivacyError: No noise reaches it, or the mechanism does not protect from the observer.
        """
        if self.rounds < 1:
            raise PrivacyError("must be at least 1", where="rounds", value=self.rounds)

        def spent(noise_multiplier: float) -> float:
            return self.stated(self.guarantees(noise_multiplier), against).epsilon

        if self.kind in DISTRIBUTED:
            return smallest_where(spent, epsilon)
        return smallest_noise(spent, epsilon, self.delta)

    def rounds_within(self, noise_multiplier: float, limit: float, against: str = "protected") -> int:
        """The largest number of rounds, up to ``rounds``, whose ε is within ``limit``."""
        low, high = 0, self.rounds  # ε rises with the rounds
        while low < high:
            middle = (low + high + 1) // 2
            spent = self.stated(replace(self, rounds=middle).guarantees(noise_multiplier), against).epsilon
            low, high = (middle, high) if spent <= limit else (low, middle - 1)
        return low

    def stated(self, guarantees: Mapping[str, Guarantee], against: str) -> Guarantee:
        """The guarantee against an observer, or the worst against those that are protected.

        Raises:
            PrivacyError: The mechanism does not protect from the observer.
        """
        if against == "protected":
            return max(guarantees.values(), key=lambda guarantee: guarantee.epsilon)
        if against not in guarantees:
            raise PrivacyError(
                f"the mechanism {self.kind} does not protect from it",
                where="privacy.against",
                value=against,
                remedy=f"Protected here: {', '.join(guarantees) or 'nobody'}",
            )
        return guarantees[against]
