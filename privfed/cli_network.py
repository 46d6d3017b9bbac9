"""The commands ``privfed serve`` and ``privfed join``: a training whose clients come over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privfed.cli_accounting import AsJson, print_json
from privfed.errors import SettingError

Identity = Annotated[Path, typer.Option("--identity", help="Identity file, by privfed pki issue.")]


def serve(
    experiment: Annotated[Path, typer.Argument(help="The experiment: a TOML file.", metavar="EXPERIMENT")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where clients come to; port 0 for any.")],
    out: Annotated[Path, typer.Option(help="Folder for the run's files: new, empty, or of the same run.")],
    identity: Identity,
    revoked: Annotated[Path, typer.Option(help="Revocation list (revoked.pem); read anew when it changes.")],
    clients: Annotated[
        Path | None,
        typer.Option(
            help="Certificates of the clients that may connect, read anew when they change: others and revoked "
            "ones fail in the handshake. Default: clients.pem beside --revoked."
        ),
    ] = None,
    any_client: Annotated[
        bool,
        typer.Option("--any-client", help="Every client of the authority; the revoked are refused at each call."),
    ] = False,
    ready: Annotated[int, typer.Option(min=1, help="Clients that must be there before a round begins.")] = 2,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for them in later rounds; in the first for ever.")
    ] = 300.0,
    stage_seconds: Annotated[float, typer.Option(min=0.1, help="Deadline of a stage of the protocol.")] = 30.0,
    training_seconds: Annotated[float, typer.Option(min=0.1, help="Deadline of the stage with training.")] = 600.0,
    status_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Status page, /metrics and /healthz on loopback.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Most connections at the same time.")] = 2000,
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = [],  # noqa: B006 - typer copies it
    as_json: AsJson = False,
) -> None:
    """Train with real clients: the rounds, ledger, checkpoints and transcript of the simulation."""
    from privfed.settings_file import load_settings

    settings = load_settings(experiment, overrides)
    if any_client and clients is not None:
        raise SettingError("--any-client is given as well", where="--clients", value=clients, remedy="Keep one")
    from privfed.console import Console
    from privfed.network.remote import Deadlines
    from privfed.network.serve import Serving, run_server

    serving = Serving(
        listen,
        identity,
        revoked,
        Deadlines(stage_seconds, training_seconds),
        ready,
        patience,
        status_port,
        connections,
        None if any_client else clients or revoked.with_name("clients.pem"),
    )
    console = Console(quiet=as_json)
    summary = run_server(settings, out, serving, console)
    if as_json:
        print_json(summary)
    else:
        console.say(f"{summary['rounds']} rounds, model {summary['weights_sha256']}; files in {out}")


def join(
    address: Annotated[str, typer.Argument(help="The server.", metavar="HOST:PORT")],
    identity: Annotated[
        list[Path],
        typer.Option("--identity", help="Identity file; several are as many processes of this machine."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Its own data, as data.source, {client} in it its number; or an experiment's TOML: its share."
        ),
    ],
    min_noise: Annotated[float | None, typer.Option(min=0, help="Least noise multiplier to accept.")] = None,
    max_epsilon: Annotated[
        float | None, typer.Option(min=0, help="Most ε to accept, of this run and all earlier ones together.")
    ] = None,
    against: Annotated[str, typer.Option(help="Observer that --max-epsilon is meant against.")] = "protected",
    min_cohort: Annotated[int, typer.Option(min=2, help="Fewest clients in a round.")] = 2,
    min_threshold: Annotated[int, typer.Option(min=2, help="Fewest clients in a sum.")] = 2,
    max_clip_norm: Annotated[
        float | None, typer.Option(min=0, help="Longest clip norm to accept, of the plan and of every round.")
    ] = None,
    model_hash: Annotated[str | None, typer.Option(help="SHA-256 of the initial weights to accept.")] = None,
    allow_unmasked: Annotated[bool, typer.Option("--allow-unmasked", help="Let the server see updates.")] = False,
    allow_research: Annotated[
        bool, typer.Option("--allow-research", help="Accept noise from a known seed, which protects nobody.")
    ] = False,
    patience: Annotated[float, typer.Option(min=0, help="Seconds without the server before giving up.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Take part in a served training with one's own data, within limits that this side sets."""
    from privfed.console import Console
    from privfed.network.join import Joining, run_client, run_clients
    from privfed.network.limits import Limits

    limits = Limits(
        min_noise,
        max_epsilon,
        against,
        min_cohort,
        min_threshold,
        model_hash,
        allow_unmasked,
        allow_research,
        max_clip_norm,
    )
    console = Console(quiet=as_json)
    joinings = [Joining(address, one, data, limits, patience) for one in identity]
    if len(joinings) > 1:
        raise typer.Exit(max(run_clients(joinings, console), key=abs))
    summary = run_client(joinings[0], console)
    if as_json:
        print_json(summary)
    else:
        console.say(", ".join(f"{name} {value}" for name, value in summary.items()))
