"""The command line: parses and dispatches only. TensorFlow is imported by the commands that train or attack."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfed import __version__
from privfed.cli_accounting import AsJson, account, calibrate, print_json, with_plan
from privfed.cli_network import join, serve
from privfed.cli_pki import pki
from privfed.cli_runs import Sign, compare, report, signing_key, verify
from privfed.errors import PrivFedError, SettingError

if TYPE_CHECKING:
    from privfed.console import Console

_ENVIRONMENT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What a full, failing or read-only disk says."""

app = typer.Typer(
    name="privfed",
    help="Train federated under differential privacy and secure aggregation; show what leaks, and to whom.",
    no_args_is_help=True,
    epilog="Exit codes: 0 done; 1 done, and something does not hold, was not checked, or failed (verify, doctor, "
    "a trial of a sweep); 2 refused, in one line; 128 and the number of a signal that stopped it, such as 130 "
    "after Ctrl-C.",
    pretty_exceptions_enable=False,
)

Experiment = Annotated[Path, typer.Argument(help="The experiment: a TOML file.", metavar="EXPERIMENT")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the run's files: new, empty, or of the same run.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: --set privacy.epsilon=4")
]
SearchOut = Annotated[
    Path, typer.Option("--out", help="Folder for all trials: new, empty, or of the same search.")
]
Jobs = Annotated[int, typer.Option(min=1, max=64, help="Trials beside each other, each in a process of its own.")]


@app.command()
def audit(
    experiment: Annotated[
        Path,
        typer.Argument(help="The experiment: a TOML file; or the folder of its run.", metavar="EXPERIMENT|DIR"),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the run's files: new, empty, or of the same run.")
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A sweep or tuning on the same clients, to show and to charge."),
    ] = None,
    sign: Sign = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Train with and without protection, attack every observer's view, and write the report.

    Of a folder the run is taken as it is, such as one that privfed serve has finished.
    """
    if experiment.is_dir():
        experiment, out = experiment / "config.toml", out or experiment
    if out is None:
        raise SettingError("is missing", where="--out", remedy="Name a folder for the run's files")
    settings = _settings(experiment, overrides)
    key = signing_key(sign)
    from privfed.auditing import run_audit
    from privfed.console import Console

    console = Console(quiet=as_json)
    evidence = run_audit(settings, out, console, sweep=sweep, key=key)
    if as_json:
        print_json(json.loads(evidence.model_dump_json()))
    else:
        console.summary(evidence, out / "report.html")


@app.command()
def train(experiment: Experiment, out: Out, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006 - typer copies it
    """Train only: metrics, ledger, model and transcript, but neither attacks nor report.

    An audit's canaries stay out, unless --set asks for them.
    """
    settings = _settings(experiment, overrides, canaries=False)
    from privfed.console import Console
    from privfed.runs import run_training

    console = Console(quiet=as_json)
    summary = run_training(settings, out, console)
    if as_json:
        print_json(summary)
    else:
        console.training_summary(summary)


@app.command()
def attack(
    experiment: Experiment,
    observer: Annotated[str, typer.Option(help="Whose view is attacked, or all.")] = "all",
    method: Annotated[
        str,
        typer.Option(
            "--attack",
            help="An attack's name; auto: cheapest first, until one verifies itself; all: those of the settings.",
        ),
    ] = "auto",
    targets: Annotated[int | None, typer.Option(min=1, help="Observations attacked for each observer.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(metavar="defences", help="Cross the attacks with defences, from the server's side."),
    ] = None,
    time: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Of a grid: begin no further cell after these.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run and attack.json, or for the grid.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Train, and attack what an observer saw of the training's own rounds; or cross attacks with defences.

    An audit's canaries stay out, unless --set asks for them.
    """
    changes = [*overrides]
    if method != "all":
        changes.append(f'attacks.methods=["{method}"]')
    if targets is not None:
        changes.append(f"attacks.targets={targets}")
    settings = _settings(experiment, changes, canaries=False)
    from privfed.console import Console

    console = Console(quiet=as_json)
    if grid is not None:
        _attack_grid(settings, grid, observer, out, console, time, as_json)
        return
    if time is not None:
        raise SettingError("goes with --grid", where="--time", value=time, remedy="Remove it")
    from privfed.runs import run_attack

    found = run_attack(settings, observer, out, console)
    if as_json:
        print_json(found)
    else:
        console.attacks(found["summary"])
        if out:
            console.path("outcomes", out / "attack.json")


def _attack_grid(
    settings: Any,
    grid: str,
    observer: str,
    out: Path | None,
    console: Console,
    seconds: float | None,
    as_json: bool,
) -> None:
    if grid != "defences":
        raise SettingError("no such grid", where="--grid", value=grid, remedy="Known: defences")
    if observer not in ("all", "server"):
        raise SettingError("the grid is of the server's view", where="--observer", value=observer)
    from privfed.defences.run import run_grid, show_grid

    found = run_grid(settings, out, console, seconds=seconds)
    if as_json:
        print_json(found)
    else:
        show_grid(found, out, console)


@app.command()
def sweep(
    experiment: Experiment,
    out: SearchOut,
    vary: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE,…", help="Vary a setting; privacy.epsilon=inf is without noise."),
    ] = [],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(min=1, help="Trials of each combination, each with its own seed.")] = 1,
    jobs: Jobs = 1,
    baseline: Annotated[
        Path | None, typer.Option(help="CSV with epsilon,accuracy,label: another system's curve.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Train over a grid of settings and seeds; show accuracy against ε, and what the sweep itself spends."""
    from privfed.console import Console
    from privfed.sweep.grid import Base
    from privfed.sweep.run import run_sweep, show_sweep

    console = Console(quiet=as_json)
    base = Base(experiment, tuple(overrides))
    result = run_sweep(base, vary, seeds, jobs, out, console, baseline=baseline)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        show_sweep(result, out, console)
    if result.status != "complete":
        raise typer.Exit(1)


@app.command()
def tune(
    experiment: Experiment,
    out: SearchOut,
    budget: Annotated[int, typer.Option(min=1, max=1000, help="Trials in all.")] = 30,
    ranges: Annotated[
        list[str],
        typer.Option("--range", metavar="KEY=LOW:HIGH[:log]", help="Search a setting here; KEY=none leaves it."),
    ] = [],  # noqa: B006 - typer copies it
    objective: Annotated[
        str, typer.Option(help="What is to be large: test_accuracy or train_accuracy.")
    ] = "test_accuracy",
    seed: Annotated[int, typer.Option(min=0, help="Of the search; each training has its own.")] = 0,
    jobs: Jobs = 1,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Search clip norm, learning rates, local epochs and momentum; state what the search itself spends."""
    from privfed.console import Console
    from privfed.sweep.grid import Base
    from privfed.sweep.tune import run_tune, show_tune

    console = Console(quiet=as_json)
    base = Base(experiment, tuple(overrides))
    result = run_tune(base, ranges, budget, jobs, out, console, objective=objective, seed=seed)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        show_tune(result, out, console)
    if result.status != "complete":
        raise typer.Exit(1)


app.command()(with_plan(account))
app.command()(with_plan(calibrate))
app.command()(serve)
app.command()(join)
app.add_typer(pki, name="pki")


@app.command()
def datasets(
    folder: Annotated[Path | None, typer.Option(help="A folder of IDX files to look into.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="TensorFlow Datasets' folder, if not the usual one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the sources of data, and what of them is here."""
    from privfed.console import Console
    from privfed.data import describe

    found = describe(folder=folder, data_dir=data_dir)
    if as_json:
        print_json({"datasets": found})
    else:
        Console().table("Sources of data", found)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The TOML file to write.", metavar="FILE")] = Path(
        "experiment.toml"
    ),
) -> None:
    """Write an experiment to begin with: every setting, explained, those that matter set."""
    from privfed.starter import write_starter

    write_starter(path)
    typer.echo(f"{path}: run it with privfed audit {path} --out reports/{path.stem}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Print versions and hardware, and check randomness, masking, noise, accounting and TensorFlow."""
    from privfed.doctor import examine

    marks, found = {None: " ", True: "✓", False: "✗"}, []
    for finding in examine():
        found.append(finding)
        if not as_json:
            typer.echo(f"{marks[finding.sound]} {finding.what:22}{finding.found}")
    if as_json:
        print_json({"findings": [finding.as_json() for finding in found]})
    if any(finding.sound is False for finding in found):
        raise typer.Exit(1)


app.command()(report)
app.command()(compare)
app.command()(verify)


@app.callback(invoke_without_command=True)
def _of_all(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress: results and faults alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for every step.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Progress as JSON on standard error, an object a line.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"privfed {__version__}")
        raise typer.Exit
    from privfed.console import Console, Telling

    asked = [
        telling
        for telling, wanted in ((Telling.QUIET, quiet), (Telling.VERBOSE, verbose), (Telling.JSON, log_json))
        if wanted
    ]
    if len(asked) > 1:
        raise SettingError("exclude each other", where="--quiet, --verbose and --log-json", remedy="Give one")
    Console.telling = asked[0] if asked else Telling.USUAL


def _settings(path: Path, overrides: list[str], *, canaries: bool = True) -> Any:
    from privfed.settings_file import NO_CANARIES, load_settings

    return load_settings(path, overrides if canaries else [*NO_CANARIES, *overrides])


def main() -> None:
    """Run the command line; a fault that a person can mend is one line and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes on hardware it did not find
    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # what typer makes of an interrupt, without a word
            print("privfed: interrupted; what was spent stays on the ledger", file=sys.stderr)  # noqa: T201 - one line is all
            sys.stderr.flush()
            os._exit(130)  # at once: the interpreter would wait for threads that still train clients
        raise
    except Exception as error:
        words = _in_words(error)
        if words is None:
            raise
        from privfed.console import Console

        Console().fault(words)
        sys.exit(getattr(error, "exit_code", 2))


def _in_words(error: Exception) -> str | None:
    """What a person can mend; ``None`` for a fault of the program."""
    if isinstance(error, MemoryError):
        return "the memory is used up. Make the model or the cohort smaller"
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        file = error.filename or "a file of the run"
        return (
            f"{file}: cannot be written or read: {os.strerror(error.errno)}. Mend that, and give the command again"
        )
    return str(error) if _is_ours(error) else None


def _is_ours(error: Exception) -> bool:
    # Imported here, since `privfed --help` should not wait for packages that it does not need.
    from privfed.privacy.errors import PrivacyError
    from privfed.secagg.errors import SecAggError

    return isinstance(error, PrivFedError | PrivacyError | SecAggError)
