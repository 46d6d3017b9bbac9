"""The commands ``account`` and ``calibrate``: ε of planned trainings, without data and without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from privfed.privacy.plan import PrivacyPlan
    from privfed.privacy.sampling import SamplingScheme

AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


class Sampling(str, Enum):
    """How cohorts are drawn."""

    POISSON = "poisson"
    FIXED = "fixed"
    ROUND_ROBIN = "round_robin"
    ALL = "all"


class MechanismName(str, Enum):
    """Mechanisms, as in the settings."""

    GAUSSIAN = "gaussian"
    ADAPTIVE = "adaptive"
    LOCAL = "local"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    SKELLAM = "skellam"
    TREE = "tree"
    BANDED = "banded"
    DP_SGD = "dp_sgd"


def account(
    plan: PrivacyPlan,
    noise_multiplier: Annotated[
        float,
        typer.Option(
            help="Noise drawn in a round, over the clip norm (tree: a node; local: a client; dp_sgd: a step)."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """State the ε of a training by observer, and all that it depends on."""
    _print_guarantees(plan, noise_multiplier, as_json)


def calibrate(
    plan: PrivacyPlan,
    epsilon: Annotated[float, typer.Option(help="Target ε.")],
    against: Annotated[
        str, typer.Option(help="Observer that the target is meant against; protected: the worst of the protected.")
    ] = "protected",
    as_json: AsJson = False,
) -> None:
    """Find the smallest noise multiplier whose ε is within a target."""
    _print_guarantees(plan, plan.calibrate(epsilon, against), as_json)


def with_plan(command: Callable[..., None]) -> Callable[..., None]:
    """The command for typer: in place of its parameter ``plan`` it takes the options that a plan is made of."""
    of_plan, own = _parameters(_plan), _parameters(command)
    del own["plan"]

    @wraps(command)
    def run(**options: Any) -> None:
        command(_plan(**{name: options.pop(name) for name in of_plan}), **options)

    # Typer reads both. Options without a default are those that must be given, and come first.
    parameters = sorted([*own.values(), *of_plan.values()], key=lambda p: p.default is not p.empty)
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # inspect honours it
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    # The plan's type is not there at run time: its module takes a second to import.
    hints = get_type_hints(function, localns={"PrivacyPlan": Any}, include_extras=True)
    return {
        name: p.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, p in signature(function).parameters.items()
    }


def print_json(value: Any) -> None:
    """Strict JSON."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no infinity: it is written as the string ``inf``, as in ``report.json``."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return "inf" if value == float("inf") else value


def _plan(
    *,
    sampling: Annotated[Sampling, typer.Option(help="How each round's cohort is drawn.")],
    rounds: Annotated[int, typer.Option(help="Rounds of training.")],
    delta: Annotated[float, typer.Option(help="δ of the guarantee.")],
    mechanism: Annotated[
        MechanismName, typer.Option("--mechanism", help="Who adds which noise.")
    ] = MechanismName.GAUSSIAN,
    rate: Annotated[
        float | None, typer.Option(help="Of poisson: chance of each client to take part in a round.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Of fixed and round_robin: clients in a round.")] = None,
    clients: Annotated[
        int | None, typer.Option(help="Clients in all. Poisson with central noise does not need it.")
    ] = None,
    dimension: Annotated[int | None, typer.Option(help="Of integer noise: weights of the model.")] = None,
    bands: Annotated[int | None, typer.Option(help="Of banded noise: rounds over which it is correlated.")] = None,
    example_rate: Annotated[
        float | None, typer.Option(help="Of dp_sgd: chance of each example to be in a step.")
    ] = None,
    local_steps: Annotated[int | None, typer.Option(help="Of dp_sgd: steps of a client in a round.")] = None,
    clip_norm: Annotated[float, typer.Option(help="Of integer noise: L2 bound of an update.")] = 1.0,
    ring_bits: Annotated[int, typer.Option(help="Of integer noise: width of the ring.")] = 32,
    dropout: Annotated[
        float, typer.Option(help="Share of sampled clients that vanish, whose noise is missing.")
    ] = 0.0,
    colluders: Annotated[int, typer.Option(help="Clients that tell the server what they know.")] = 0,
) -> PrivacyPlan:
    """The training that the options describe."""
    from privfed.errors import SettingError
    from privfed.privacy.plan import DISTRIBUTED, PrivacyPlan

    scheme = _scheme(sampling, rounds, rate, size, clients)
    if not 0 <= dropout < 1:
        raise SettingError("must lie in [0, 1)", where="--dropout", value=dropout)
    for key, value in (("--example-rate", example_rate), ("--local-steps", local_steps)):
        if (mechanism is MechanismName.DP_SGD) != (value is not None):
            missing = value is None
            reason = "is missing: dp_sgd needs it" if missing else f"does not go with {mechanism.value}"
            raise SettingError(reason, where=key, value=value, remedy="" if missing else "Remove it")
    if sampling is Sampling.ROUND_ROBIN and mechanism is MechanismName.DP_SGD:
        raise SettingError("is not accounted with dp_sgd", where="--sampling", value=sampling.value)
    if mechanism not in (MechanismName.GAUSSIAN, MechanismName.DP_SGD) and clients is None:
        raise SettingError(f"is missing: {mechanism.value} needs it", where="--clients")
    if mechanism.value in DISTRIBUTED and dimension is None:
        raise SettingError(f"is missing: {mechanism.value} needs it", where="--dimension")
    return PrivacyPlan(
        mechanism.value,
        scheme,
        rounds,
        delta,
        population=clients or 1,
        dimension=dimension or 1,
        dropout=dropout,
        example_rate=1.0 if example_rate is None else example_rate,
        local_steps=1 if local_steps is None else local_steps,
        bands=bands,
        clip_norm=clip_norm,
        ring_bits=ring_bits,
        colluders=colluders,
    )


def _scheme(
    sampling: Sampling, rounds: int, rate: float | None, size: int | None, clients: int | None
) -> SamplingScheme:
    from privfed.errors import SettingError
    from privfed.privacy.sampling import (
        FixedSizeSampling,
        FullParticipation,
        PoissonSampling,
        RoundRobinSampling,
    )

    sized = {"size", "clients"}
    needs = {Sampling.POISSON: {"rate"}, Sampling.FIXED: sized, Sampling.ROUND_ROBIN: sized, Sampling.ALL: set()}
    given = {key for key, value in (("rate", rate), ("size", size), ("clients", clients)) if value is not None}
    for key in sorted(needs[sampling] - given):
        raise SettingError(f"is missing: sampling {sampling.value} needs it", where=f"--{key}")
    for key in sorted(given - needs[sampling] - {"clients"}):
        raise SettingError(f"does not go with sampling {sampling.value}", where=f"--{key}", remedy="Remove it")
    if rate is not None:
        return PoissonSampling(rate)
    if size is not None and clients is not None:
        if sampling is Sampling.FIXED:
            return FixedSizeSampling(size, clients)
        return RoundRobinSampling(size, clients, rounds)
    return FullParticipation()


def _print_guarantees(plan: PrivacyPlan, noise_multiplier: float, as_json: bool) -> None:
    """Against whoever sees the release first, then by observer."""
    from privfed.privacy.accounting import statements

    guarantees = plan.guarantees(noise_multiplier)
    if as_json:
        by_observer = {observer: guarantee.as_json() for observer, guarantee in guarantees.items()}
        print_json(
            {**guarantees["release"].as_json(), "noise_multiplier": noise_multiplier, "observers": by_observer}
        )
    else:
        typer.echo("\n".join([f"noise multiplier {noise_multiplier:.6g}", *statements(guarantees)]))
