"""What the commands do: train and attack. Each leaves its folder so that ``privfed verify`` can judge it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from privfed.attack_scores import outcome_values, summarise
from privfed.audit.evidence import AS_CONFIGURED
from privfed.composition import compose
from privfed.config import Settings
from privfed.console import Advance, Console
from privfed.errors import OutputError, SettingError, Stopped
from privfed.experiment import Experiment
from privfed.exposure import Exposure, attack_all, own_updates
from privfed.federated.checkpoint import Checkpoints
from privfed.federated.client_evaluation import evaluate_clients
from privfed.federated.training import Keeping, RoundReport, Spending, TrainingResult, digest
from privfed.files import write_text
from privfed.manifest import seal
from privfed.memory import check_memory
from privfed.privacy.accounting import Guarantee, marks, shared, statements
from privfed.privacy.ledger_report import ended_rounds, verify_ledger
from privfed.rundir import TRANSCRIPT, MetricsFile, RunFolder
from privfed.tensorboard import EventFile
from privfed.transcript import Observer

ATTACK_FILES = ("attack.jsonl", "attack.json")
TRAINING = "training"
"""Title of the one training whose model is released."""


def _seal(out: Path, console: Console, besides: tuple[str, ...] = ()) -> None:
    """Write the hashes of the folder's files, now that they are finished."""
    if seal(out, besides):
        console.say("files have changed since they were signed, and the signature was removed")


def run_training(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Train; returns the figures of the end."""
    folder = RunFolder(out, settings)
    experiment = compose(settings)  # all that can be refused is refused here, before anything is trained
    result = train_protected(experiment, folder, console)
    final, guarantees = result.final_evaluation, verify_ledger(folder.ledger).guarantees
    held_out = _evaluate_held_out(experiment, result, folder)
    _seal(out, console)
    return {
        "rounds": len(result.reports),
        "train_accuracy": result.reports[-1].metrics.train_accuracy if result.reports else None,
        "test_accuracy": final.accuracy if final else None,
        **({} if held_out is None else {"held_out_clients": held_out}),
        "guarantees": {observer: g.as_json() for observer, g in guarantees.items()},
        "statements": statements(guarantees),
        "weights_sha256": digest(result.weights),
        "seconds": result.seconds,
        "folder": str(out),
    }


def _evaluate_held_out(experiment: Experiment, result: TrainingResult, folder: RunFolder) -> dict[str, Any] | None:
    """Accuracy over clients that did not train; ``clients.json`` also has the loss."""
    if experiment.held_out is None:
        return None
    found = evaluate_clients(experiment.model, result.weights, experiment.held_out)
    write_text(folder.path / "clients.json", json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n")
    return found.accuracy.as_json()


def run_attack(settings: Settings, observer: str, out: Path | None, console: Console) -> dict[str, Any]:
    """Train as configured and attack what ``observer`` (or ``all``) saw; returns outcomes and their summary.

    Each outcome is in ``attack.jsonl`` as soon as it is there, and ``attack.json`` has them all in the end.

    Raises:
        Stopped: An interrupt; the outcomes until then are in both files.
    """
    observers = _observers(observer)
    settings = settings.model_copy(update={"attacks": settings.attacks.model_copy(update={"enabled": True})})
    folder = RunFolder(out, settings) if out else None
    experiment = compose(settings)
    result = train_protected(experiment, folder, console)
    if out:
        _seal(out, console, besides=ATTACK_FILES)
    setting = own_updates(experiment, result.transcript, AS_CONFIGURED, observers)
    rows: list[dict[str, Any]] = []
    stopped = False
    with ExitStack() as stack:
        lines = stack.enter_context(MetricsFile(out / ATTACK_FILES[0])) if out else None

        def keep(exposure: Exposure) -> None:
            rows.append(outcome_values(exposure.outcome))
            if lines is not None:
                lines.write(rows[-1])

        try:
            attack_all(experiment, [setting], console, keep)
        except KeyboardInterrupt:
            stopped = True
    found = {"status": "partial" if stopped else "complete", "outcomes": rows, "summary": summarise(rows)}
    if out:
        write_text(out / ATTACK_FILES[1], json.dumps(found, indent=2, allow_nan=False) + "\n")
        _seal(out, console)
    if stopped:
        kept = f", kept in {out}" if out else ""
        raise Stopped(f"stopped after {len(rows)} outcomes{kept}", 130)
    return found


def train_protected(
    experiment: Experiment,
    folder: RunFolder | None,
    console: Console,
    *,
    served: bool = False,
    every: int | None = None,
    stopping: Callable[[], None] = lambda: None,
    observe: Callable[[RoundReport], None] = lambda report: None,
) -> TrainingResult:
    """The training as configured, on the ledger, its files in ``folder``; in memory only without one.

        OutputError: The folder holds an unfinished training with real clients.
    in place of what the settings say; ``stopping`` is called when a signal asks to stop after the round, and
    ``observe`` after each round.

    Raises:
        SettingError: There is no memory for it, or a library is missing.
        Stopped: A signal asked for it; the same command goes on from there.
        OutputError: The folder holds a training with real clients that is not finished: nobody else goes on.
    """
    if not served:  # real clients hold their updates themselves
        check_memory(experiment)
        experiment.aggregation()  # a missing library is better told before anything is written
    if folder is None:
        _introduce(experiment, console)
        return _train(experiment, None, None, TRAINING, console)
    if not served and folder.served and verify_ledger(folder.ledger).final_sha256 is None:
        raise OutputError(
            "holds a training with real clients that is not finished",
            where=f"--out {folder.path}",
            remedy="Go on with it by privfed serve",
        )
    folder.claim()
    with experiment.open_ledger(folder.ledger) as ledger, _stop_requests(console, stopping) as requests:
        _introduce(experiment, console)  # nothing was said before: a refusal stands alone
        folder.remove_unfinished()  # the ledger is locked: nobody else is writing them
        checkpoints = Checkpoints(folder.checkpoints, experiment.settings.fingerprint())
        keeping = Keeping(
            checkpoints,
            every or experiment.settings.training.checkpoint_every,
            stop=lambda: bool(requests),
            patience=experiment.settings.training.patience,
            warn=console.say,
        )
        result = _train(experiment, experiment.spending(ledger), folder, TRAINING, console, keeping, more=observe)
        if result.unfinished:
            raise Stopped(
                f"stopped after round {len(result.reports)}; the same command goes on from there",
                128 + requests[0],
            )
        folder.save_weights(result.weights)
        result.transcript.save(folder.path / TRANSCRIPT)
        ledger.finish(digest(result.weights))
        if requests:
            raise Stopped("stopped after the training; the same command goes on from there", 128 + requests[0])
    return result


def _introduce(experiment: Experiment, console: Console) -> None:
    data = experiment.population
    console.say(
        f"{experiment.settings.name}: {data.name}, {len(data.labels)} examples of {data.clients} clients; "
        f"{experiment.model.name} with {experiment.model.dimension} weights"
    )


def train_baseline(experiment: Experiment, folder: RunFolder, console: Console) -> TrainingResult:
    """The same training without protection."""
    return _train(experiment.unprotected(), None, folder, "training without protection", console, baseline=True)


def train_alone(experiment: Experiment, title: str, console: Console) -> TrainingResult:
    """A training in memory only, that nothing is spent on."""
    return _train(experiment, None, None, title, console)


def _train(
    experiment: Experiment,
    spending: Spending | None,
    folder: RunFolder | None,
    title: str,
    console: Console,
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    *,
    baseline: bool = False,
    more: Callable[[RoundReport], None] = lambda report: None,
) -> TrainingResult:
    with ExitStack() as stack:
        files: list[MetricsFile | EventFile] = []
        advances: list[Advance] = []
        spent_at = set() if experiment.noise_multiplier is None else set(marks(experiment.rounds))

        def resumed(reports: Sequence[RoundReport]) -> None:
            if folder is not None:
                earlier = [report.as_json() for report in reports]
                files.append(stack.enter_context(folder.metrics(baseline=baseline, earlier=earlier)))
                if experiment.settings.training.tensorboard and not baseline:
                    events = stack.enter_context(EventFile(folder.path))
                    for values in earlier:
                        events.write(values)
                    files.append(events)
            if reports:
                console.say(f"going on after round {len(reports)}")
            planned = experiment.guarantees()
            watched = experiment.stated(planned)
            if watched is not None and title == TRAINING:  # a control is not released
                console.say(f"ε is spent {watched.terms(shared(planned)[watched])}")
            advances.append(stack.enter_context(console.progress(title, experiment.rounds, len(reports))))

        def observe(report: RoundReport) -> None:
            for file in files:
                file.write(report.as_json())
            spent = None
            if report.metrics.round in spent_at:
                # From the ledger, which also holds what earlier attempts spent.
                by_observer = (
                    experiment.guarantees(report.metrics.round)
                    if folder is None
                    else verify_ledger(folder.ledger).guarantees
                )
                spent = experiment.stated(by_observer)
            advances[0](_state(report, spent))
            more(report)

        def within(done: int, rounds: int) -> int:
            if folder is None or spending is None:
                return rounds
            if missing := set(range(1, done + 1)) - ended_rounds(folder.ledger):
                raise OutputError(
                    f"lacks round {min(missing)}, which the checkpoint holds: what was spent is unknown",
                    where=str(folder.ledger),
                    remedy="Restore the ledger from a copy, or name another folder",
                )
            allowed = experiment.rounds_after_replays(folder.ledger, done, rounds)
            if allowed < rounds:
                console.say(
                    f"rounds that were lost and drawn anew count again: the training ends after round {allowed} "
                    f"of {rounds}, since more would exceed ε = {experiment.budget:g}"
                )
            return allowed

        return experiment.run(spending, observe, replace(keeping, resumed=resumed, within=within))


def _state(report: RoundReport, spent: Guarantee | None) -> str:
    """How the training stands, in a few words."""
    metrics = report.metrics
    parts = [f"aborted: {metrics.aborted}"] if metrics.aborted else []
    if metrics.train_loss is not None:
        parts.append(f"loss {metrics.train_loss:.4f}")
    if report.evaluation:
        parts.append(f"test accuracy {report.evaluation.accuracy:.4f}")
    if spent is not None:
        parts.append(f"ε {spent.epsilon:.3g}")
    return ", ".join(parts)


@contextmanager
def _stop_requests(console: Console, stopping: Callable[[], None]) -> Iterator[list[int]]:
    """The signals that asked to stop so far: the first ends the round, a second interrupt ends everything."""
    requests: list[int] = []

    def note(number: int, frame: object) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)
        stopping()
        with suppress(Exception):  # it came while a line was being written, or amid an import of what writes it
            console.say("stopping after this round; interrupt again to stop at once")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield requests
        return
    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


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
        "text": asdict(outcome.text) if outcome.text else None,
        "labels": asdict(outcome.labels) if outcome.labels else None,
        "seconds": outcome.seconds,
        "evaluations": outcome.evaluations,
    }
