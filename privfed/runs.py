"""What the commands do: train, attack, audit. Each leaves its folder so that ``privfed verify`` can judge it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from privfed.config import Settings
from privfed.console import Advance, Console
from privfed.errors import SettingError
from privfed.experiment import Experiment, compose
from privfed.exposure import AS_CONFIGURED, NO_DEFENCE, Exposure, attack_all, own_updates, probe
from privfed.federated.training import RoundReport, TrainingResult, digest
from privfed.rundir import TRANSCRIPT, MetricsFile, RunFolder, write_text
from privfed.transcript import Observer


def run_training(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Train; returns the figures of the end."""
    folder = RunFolder(out, settings)
    experiment = prepare(settings, console)
    result = train_protected(experiment, folder, console)
    final, guarantee = result.final_evaluation, experiment.guarantee
    return {
        "rounds": settings.training.rounds,
        "train_accuracy": result.reports[-1].metrics.train_accuracy if result.reports else None,
        "test_accuracy": final.accuracy if final else None,
        "guarantee": guarantee.as_json() if guarantee else None,
        "weights_sha256": digest(result.weights),
        "seconds": result.seconds,
        "folder": str(out),
    }


def run_attack(settings: Settings, observer: str, out: Path | None, console: Console) -> list[dict[str, Any]]:
    """Train as configured and attack what ``observer`` (or ``all``) saw; returns plain values by outcome."""
    observers = _observers(observer)
    settings = settings.model_copy(update={"attacks": settings.attacks.model_copy(update={"enabled": True})})
    folder = RunFolder(out, settings) if out else None
    experiment = prepare(settings, console)
    result = train_protected(experiment, folder, console)
    setting = own_updates(experiment, result.transcript, AS_CONFIGURED, observers)
    outcomes = [exposure_values(exposure) for exposure in attack_all(experiment, [setting], console)]
    if out:
        write_text(out / "attack.json", json.dumps(outcomes, indent=2, allow_nan=False) + "\n")
    return outcomes


def run_audit(settings: Settings, out: Path, console: Console) -> Any:
    """Train with and without protection, attack, account, and write the report; returns the evidence."""
    from privfed.audit.assemble import Material, assemble
    from privfed.audit.membership import loss_threshold_membership
    from privfed.federated.evaluation import per_example_losses
    from privfed.report import write_report

    started = time.perf_counter()
    folder = RunFolder(out, settings)
    experiment = prepare(settings, console)
    result = train_protected(experiment, folder, console)
    baseline = train_baseline(experiment, folder, console) if settings.audit.baseline else None
    exposures: list[Exposure] = []
    if settings.attacks.enabled and settings.training.rounds:
        tried = [probe(experiment)]
        if baseline is not None:
            open_views = [Observer.SERVER, Observer.CLIENT, Observer.RELEASE]
            tried.append(own_updates(experiment, baseline.transcript, NO_DEFENCE, open_views))
        tried.append(own_updates(experiment, result.transcript, AS_CONFIGURED, list(Observer)))
        exposures = attack_all(experiment, tried, console)
    membership = None
    if settings.audit.membership:
        data, losses = experiment.population, per_example_losses(experiment.model)
        membership = loss_threshold_membership(
            losses(result.weights, data.as_float(data.features), data.labels)[0],
            losses(result.weights, data.as_float(data.test_features), data.test_labels)[0],
        )
    evidence = assemble(
        Material(experiment, folder, result, baseline, exposures, membership, time.perf_counter() - started)
    )
    write_report(evidence, out)
    return evidence


def prepare(settings: Settings, console: Console) -> Experiment:
    """Everything that can be refused is refused here, before anything is trained."""
    console.say(f"{settings.name}: loading data and building the model")
    experiment = compose(settings)
    data = experiment.population
    console.say(
        f"{data.name}: {len(data.labels)} examples of {data.clients} clients; "
        f"{experiment.model.name} with {experiment.model.dimension} weights"
    )
    return experiment


def train_protected(experiment: Experiment, folder: RunFolder | None, console: Console) -> TrainingResult:
    """The training as configured, on the ledger, its files in ``folder``; in memory only without one."""
    if folder is None:
        return _train(experiment, None, None, "training", console)
    with experiment.open_ledger(folder.ledger) as ledger, folder.metrics() as metrics:
        result = _train(experiment, experiment.spending(ledger), metrics, "training", console)
        folder.save_weights(result.weights)
        result.transcript.save(folder.path / TRANSCRIPT)
        ledger.finish(digest(result.weights))
    return result


def train_baseline(experiment: Experiment, folder: RunFolder, console: Console) -> TrainingResult:
    """The same training without protection."""
    with folder.metrics(baseline=True) as metrics:
        return _train(experiment.unprotected(), None, metrics, "training without protection", console)


def _train(
    experiment: Experiment, spending: Any, metrics: MetricsFile | None, title: str, console: Console
) -> TrainingResult:
    with console.progress(title, experiment.settings.training.rounds) as advance:

        def observe(report: RoundReport) -> None:
            if metrics is not None:
                metrics.write(report.as_json())
            _tell(report, advance)

        return experiment.run(spending, observe)


def _tell(report: RoundReport, advance: Advance) -> None:
    held_out = f"test accuracy {report.evaluation.accuracy:.4f}" if report.evaluation else ""
    advance(f"round aborted: {report.metrics.aborted}" if report.metrics.aborted else held_out)


def _observers(name: str) -> list[Observer]:
    if name == "all":
        return list(Observer)
    try:
        return [Observer(name)]
    except ValueError:
        known = ", ".join(f'"{observer.value}"' for observer in Observer)
        raise SettingError(
            "no such observer", where="--observer", value=name, remedy=f"Known: {known}, all"
        ) from None


def exposure_values(exposure: Exposure) -> dict[str, Any]:
    """One outcome as plain values, without its images."""
    outcome, best = exposure.outcome, exposure.outcome.best
    return {
        "observer": outcome.observer.value,
        "workload": exposure.workload,
        "defence": exposure.defence,
        "kind": outcome.kind.value,
        "round": outcome.round,
        "contributors": outcome.contributors,
        "attack": outcome.attack,
        "failure": outcome.failure,
        "mse": best.mse if best else None,
        "psnr": best.psnr if best else None,
        "ssim": best.ssim if best else None,
        "label_correct": best.label_correct if best else None,
        "trivial_psnr": outcome.trivial,
        "margin_db": outcome.margin_db,
        "seconds": outcome.seconds,
        "evaluations": outcome.evaluations,
    }
