"""From a finished run to its evidence: every figure of the report, each from the object that measured it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from privfed import __version__
from privfed.audit import evidence as ev
from privfed.audit.assemble.accounting import accounting_of, sweep_of
from privfed.audit.assemble.checks import checks_of
from privfed.audit.assemble.clients import clients_of
from privfed.audit.assemble.empirical import canaries_of, canary_limits_of, membership_of, seen_canaries
from privfed.audit.assemble.material import Material
from privfed.audit.assemble.observers import observer_of
from privfed.audit.assemble.statements import statements_of, trust_of, unnoised_of
from privfed.audit.assemble.training import (
    abort_limit_of,
    accuracy_of,
    ledger_of,
    rounds_of,
    secure_aggregation_of,
)
from privfed.measurements import Measurements, Picture
from privfed.transcript import Observer
from privfed.verdict import counters_of_labels, readers_of_text, verdict

if TYPE_CHECKING:
    from privfed.exposure import Exposure

PACKAGES = ("tensorflow", "tensorflow-federated", "dp-accounting", "cryptography", "numpy")
LIMITS = (
    "Attacks give lower bounds: what these found nothing in, better ones may not.",
    "Central noise protects nobody against the server, which holds the sum before the noise.",
    "The server sees who takes part; sampling amplifies privacy only against those who do not.",
    "Choosing settings by looking at results costs privacy that this ε does not hold.",
)
ACTIVE = {
    "protocol": "An active server may call clients dropped until the threshold of a round is left; that it crafts "
    "models, or fills the directory of identities, is not played here.",
    "bfv": "An active server has the key holder decrypt what it likes, single updates too; that it crafts models "
    "is not played here.",
}
NOTHING_HIDDEN = (
    "The server has every update in the clear; that it crafts models, to see more, is not played here."
)
"""By mode of the sum: what an active server may do besides what is measured."""


def assemble(m: Material) -> ev.Evidence:
    """The evidence of a finished run."""
    attacks = tuple(_attack(exposure) for exposure in m.exposures)
    observers = tuple(observer_of(m, observer, attacks) for observer in Observer)
    canaries, sweep, membership = canaries_of(m), sweep_of(m), membership_of(m)
    clients, unnoised = clients_of(m), tuple(unnoised_of(m))
    return ev.Evidence(
        run=_run(m),
        verdict=verdict(observers, canaries, membership, readers_of_text(attacks), counters_of_labels(attacks)),
        observers=observers,
        accuracy=accuracy_of(m),
        rounds=tuple(rounds_of(m)),
        attacks=attacks,
        secure_aggregation=secure_aggregation_of(m),
        ledger=ledger_of(m),
        membership=membership,
        canaries=canaries,
        accounting=accounting_of(m),
        clients=clients,
        sweep=sweep,
        statements=tuple(statements_of(m)),
        checks=tuple(checks_of(m, canaries, sweep, unnoised)),
        trust=tuple(trust_of(m)),
        unnoised=unnoised,
        limits=limits_of(m, canaries),
    )


def limits_of(m: Material, canaries: ev.Canaries | None) -> tuple[str, ...]:
    """What the report's figures do not say."""
    return (
        *(f"This report is partial: {why}." for why in m.missing),
        *LIMITS,
        ACTIVE.get(m.experiment.settings.secure_aggregation.mode, NOTHING_HIDDEN),
        *abort_limit_of(m),
        *(SERVED_LIMITS if m.folder.served else ()),
        *canary_limits_of(canaries),
    )


def measurements_of(m: Material) -> Measurements:
    """What the evidence's scores are computed from, to be kept beside it."""
    return Measurements(
        pictures=[Picture.of(exposure.outcome) for exposure in m.exposures],
        mean=m.experiment.population.mean_image(),
        membership=[] if m.membership is None else m.membership.attacks,
        canaries=seen_canaries(m),
    )


SERVED_LIMITS = (
    "The clients of this training were real. Attacks on its rounds and membership inference are scored against "
    "the data that its settings name, on which the unprotected training ran as well: where these are not the "
    "clients' own, a failed attack says nothing of the clients.",
    "What colluding clients know is in no record of the server: no attack was run on the views of "
    "server+colluders and of the active server.",
)


def _run(m: Material) -> ev.Run:
    e, settings = m.experiment, m.experiment.settings
    data = e.population
    secure = settings.privacy.randomness == "secure"
    return ev.Run(
        name=settings.name,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        privfed_version=__version__,
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=" ".join([platform.system(), platform.machine(), *platform.libc_ver()]),
        git_commit=_git_commit(),
        seed=None if secure else settings.training.seed,
        randomness=e.streams.describe(),
        executor=settings.executor,
        seconds=m.seconds,
        status="partial" if m.missing else "complete",
        settings=settings.model_dump(mode="json"),
        settings_fingerprint=settings.fingerprint(),
        data=ev.Data(
            dataset=data.name,
            fingerprint=data.fingerprint,
            clients=data.clients,
            examples=len(data.labels),
            test_examples=len(data.test_labels),
            model=e.model.name,
            parameters=e.model.dimension,
        ),
    )


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _attack(exposure: Exposure) -> ev.AttackEvidence:
    from privfed.runs import exposure_values

    outcome = exposure.outcome
    return ev.AttackEvidence(
        **exposure_values(exposure), original=_png(outcome.original), reconstruction=_png(outcome.reconstruction)
    )


def _png(image: Any) -> str | None:
    is_picture = image is not None and image.ndim in (2, 3) and (image.ndim == 2 or image.shape[-1] in (1, 3))
    return ev.png(image) if is_picture else None
