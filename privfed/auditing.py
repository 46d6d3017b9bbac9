"""``privfed audit``: a training under protection, everything that judges it, and the report."""

from __future__ import annotations

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privfed.audit.assemble import Material, assemble, measurements_of
from privfed.audit.assemble.accounting import read_search
from privfed.audit.evidence import AS_CONFIGURED, NO_DEFENCE, Evidence
from privfed.composition import compose
from privfed.config import Settings
from privfed.console import Console
from privfed.errors import PrivFedError, Stopped
from privfed.experiment import Experiment
from privfed.exposure import Exposure, Setting, attack_all, own_updates, probes
from privfed.federated.training import TrainingResult
from privfed.measurements import MEASUREMENTS, save
from privfed.membership import MembershipFindings, infer_membership
from privfed.publication import publish, withdraw
from privfed.rundir import RunFolder
from privfed.runs import train_alone, train_baseline, train_protected
from privfed.transcript import Observer

INTERRUPTED = "it was interrupted before every attack was run"


def run_audit(
    settings: Settings,
    out: Path,
    console: Console,
    *,
    sweep: Path | None = None,
    key: Ed25519PrivateKey | None = None,
) -> Evidence:
    """Train with and without protection, attack, account, and write the report; returns the evidence.

    ``sweep`` is the folder of a sweep on the same clients, shown beside the run; ``key`` signs the report.

    Raises:
        Stopped: An interrupt; once the training is done, what there is by then is in a partial report.
    """
    if sweep is not None:
        read_search(sweep)  # refused before anything is trained
    started = time.perf_counter()
    folder = RunFolder(out, settings)
    experiment = compose(settings)
    result = train_protected(experiment, folder, console)
    withdraw(out)
    baseline = train_baseline(experiment, folder, console) if settings.audit.baseline else None
    control = None
    if settings.audit.canary_control:
        control = train_alone(experiment.without_canaries(), "training without canaries", console)
    exposures: list[Exposure] = []
    missing: list[str] = []
    membership: MembershipFindings | None = None
    try:
        if settings.attacks.enabled and settings.training.rounds:
            attack_all(experiment, _tried(experiment, result, baseline), console, exposures.append)
        if settings.audit.membership:
            try:
                membership = infer_membership(experiment, result.weights, console)
            except PrivFedError as error:
                missing.append(f"membership inference came to nothing: {error}")
    except KeyboardInterrupt:
        missing.append(INTERRUPTED)
    material = Material(
        experiment,
        folder,
        result,
        baseline,
        exposures,
        membership,
        time.perf_counter() - started,
        control,
        sweep,
        tuple(missing),
    )
    evidence = assemble(material)
    save(out / MEASUREMENTS, measurements_of(material))
    publish(evidence, out, key)
    if INTERRUPTED in missing:
        raise Stopped(f"stopped; the report in {out} is partial, and the same command makes it whole", 130)
    return evidence


def _tried(experiment: Experiment, result: TrainingResult, baseline: TrainingResult | None) -> list[Setting]:
    """What is attacked: single examples, and the run's own updates without and with its defences."""
    tried = probes(experiment)
    if baseline is not None:
        open_views = [Observer.SERVER, Observer.CLIENT, Observer.RELEASE]
        tried.append(own_updates(experiment, baseline.transcript, NO_DEFENCE, open_views))
    tried.append(own_updates(experiment, result.transcript, AS_CONFIGURED, list(Observer)))
    return tried
