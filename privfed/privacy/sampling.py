"""How cohorts are drawn, and what the accountant may therefore claim.

The scheme decides the event, so that no cohort gets the amplification of a scheme that it was not drawn by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from privfed.privacy.errors import PrivacyError

ADD_REMOVE = "add or remove one client"
REPLACE = "replace one client"
ZERO_OUT = "replace one client's update by zero"
ADD_REMOVE_EXAMPLE = "add or remove one example of one client"


class SamplingScheme(Protocol):
    """One way to draw cohorts."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    @property
    def neighbouring(self) -> str:
        """The neighbouring relation of the guarantee that goes with the scheme."""
        ...

    def describe(self) -> str:
        """In the words of a report."""
        ...


@dataclass(frozen=True)
class PoissonSampling:
    """Each client takes part with probability ``rate``, independently of everything."""

    rate: float
    name: str = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise PrivacyError("a sampling rate lies in (0, 1]", where="rate", value=self.rate)

    @property
    def neighbouring(self) -> str:
        """Adding or removing a client."""
        return ADD_REMOVE

    def describe(self) -> str:
        """In the words of a report."""
        return f"Poisson, rate {self.rate:g}"


@dataclass(frozen=True)
class FixedSizeSampling:
    """A cohort of exactly ``size`` of ``population`` clients, without replacement."""

    size: int
    population: int
    name: str = "fixed"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.population:
            raise PrivacyError(f"a cohort has from 1 to {self.population} clients", where="size", value=self.size)

    @property
    def neighbouring(self) -> str:
        """Replacing a client: with a size that is public, none can be added or removed."""
        return REPLACE

    def describe(self) -> str:
        """In the words of a report."""
        return f"fixed size, {self.size} of {self.population} without replacement"


@dataclass(frozen=True)
class FullParticipation:
    """Every client takes part in every round."""

    name: str = "all"

    @property
    def neighbouring(self) -> str:
        """Adding or removing a client."""
        return ADD_REMOVE

    def describe(self) -> str:
        """In the words of a report."""
        return "none: every client in every round"


@dataclass(frozen=True)
class KnownCohorts:
    """No amplification is claimed: the observer counts as knowing every cohort, and the client as in all of them.

    The neighbouring run has the same cohorts, in which the client sends zero (and what noise it adds).
    """

    name: str = "known"

    @property
    def neighbouring(self) -> str:
        """The client's update becomes zero."""
        return ZERO_OUT

    def describe(self) -> str:
        """In the words of a report."""
        return "no amplification claimed, a client of every round"


@dataclass(frozen=True)
class LocalPoissonSampling:
    """Each client draws the examples of ``steps`` steps a round, each with probability ``rate``, independently.

    The unit is an example. No amplification by cohorts is claimed: the client counts as one of every round.
    """

    rate: float
    steps: int
    name: str = "local_poisson"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise PrivacyError("a sampling rate lies in (0, 1]", where="rate", value=self.rate)
        if self.steps < 1:
            raise PrivacyError("must be at least 1", where="steps", value=self.steps)

    @property
    def neighbouring(self) -> str:
        """Adding or removing an example, while all clients stay."""
        return ADD_REMOVE_EXAMPLE

    def describe(self) -> str:
        """In the words of a report."""
        return (
            f"Poisson over the examples of each client, rate {self.rate:g}, {self.steps} steps a round, "
            "a client of every round"
        )


@dataclass(frozen=True)
class HiddenCohorts:
    """Random cohorts of ``population`` clients of which the observer knows the size, but not who is in them.

    The size is no secret where every client brings noise: the strength of the noise gives it away.
    """

    population: int
    name: str = "hidden"

    def __post_init__(self) -> None:
        if self.population < 1:
            raise PrivacyError("must be at least 1", where="population", value=self.population)

    @property
    def neighbouring(self) -> str:
        """The client's update becomes zero."""
        return ZERO_OUT

    def describe(self) -> str:
        """In the words of a report."""
        return f"random cohorts of {self.population} clients, their sizes known"


@dataclass(frozen=True)
class RoundRobinSampling:
    """Cohorts of ``size`` go round a fixed order of ``population`` clients; nothing about them is random.

    Each client takes part at most ``participations`` times in ``rounds`` rounds, ``separation`` or more apart: the
    (k, b)-participation of Choquette-Choo et al. (2023) that correlated noise is made for.
    """

    size: int
    population: int
    rounds: int
    name: str = "round_robin"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.population:
            raise PrivacyError(f"a cohort has from 1 to {self.population} clients", where="size", value=self.size)
        if self.rounds < 0:
            raise PrivacyError("must be 0 or more", where="rounds", value=self.rounds)

    @property
    def separation(self) -> int:
        """Rounds from one participation of a client to its next, at least."""
        return self.population // self.size

    @property
    def participations(self) -> int:
        """Of one client, at most."""
        return -(-self.rounds * self.size // self.population)

    def cohort(self, number: int) -> tuple[int, ...]:
        """Places in the order of the clients of round ``number``, from 1."""
        first = (number - 1) * self.size
        return tuple((first + i) % self.population for i in range(self.size))

    @property
    def neighbouring(self) -> str:
        """The client's updates become zero."""
        return ZERO_OUT

    def describe(self) -> str:
        """In the words of a report."""
        return (
            f"round-robin, {self.size} of {self.population}: each client in at most {self.participations} rounds, "
            f"{self.separation} or more apart"
        )


def unit_of(scheme: SamplingScheme) -> str:
    """Whose data is protected as one under the scheme."""
    return "example" if isinstance(scheme, LocalPoissonSampling) else "client"


def scheme_to_json(scheme: SamplingScheme) -> dict[str, Any]:
    """For the ledger."""
    return asdict(scheme)  # type: ignore[call-overload,no-any-return]  # every scheme is a dataclass


def scheme_from_json(values: Mapping[str, Any]) -> SamplingScheme:
    """From the ledger.

    Raises:
        PrivacyError: The scheme is unknown or its parameters are.
    """
    schemes: dict[str, type[Any]] = {
        "poisson": PoissonSampling,
        "fixed": FixedSizeSampling,
        "all": FullParticipation,
        "known": KnownCohorts,
        "hidden": HiddenCohorts,
        "round_robin": RoundRobinSampling,
        "local_poisson": LocalPoissonSampling,
    }
    kind = schemes.get(str(values.get("name")))
    try:
        if kind is not None:
            return kind(**values)  # type: ignore[no-any-return]  # one of three classes that fit
    except TypeError:
        pass
    raise PrivacyError("unknown sampling scheme", value=dict(values), remedy=f"Known: {', '.join(schemes)}")
