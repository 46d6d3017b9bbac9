"""The commands ``privfed pki init | issue | revoke``: the authority that says who is who."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

pki = typer.Typer(
    help="The authority: Ed25519-signed certificates of clients and servers. Keep its folder off both.",
    no_args_is_help=True,
)

Authority = Annotated[Path, typer.Argument(help="The authority's folder.", metavar="DIR")]
Client = Annotated[int | None, typer.Option(min=0, help="A client's number in the population, from 0.")]
Server = Annotated[str | None, typer.Option(help="A server's name or address, as clients write it.")]


@pki.command()
def init(folder: Authority) -> None:
    """Make an authority: a key (0600), its certificate, and an empty revocation list."""
    from privfed.network.pki import create

    create(folder)
    typer.echo(folder / "ca.pem")


@pki.command()
def issue(
    folder: Authority,
    client: Client = None,
    server: Server = None,
    count: Annotated[int, typer.Option(min=1, help="Of clients: so many numbers from --client on.")] = 1,
    days: Annotated[int, typer.Option(min=1, help="How long it is valid.")] = 365,
) -> None:
    """Make keys and a certificate; writes an identity file (0600), to be moved to its owner."""
    from privfed.network.pki import issue

    if client is None:
        typer.echo(issue(folder, server=server, days=days))
        return
    for number in range(client, client + count):
        typer.echo(issue(folder, client=number, server=server, days=days))


@pki.command()
def revoke(
    folder: Authority,
    client: Client = None,
    server: Server = None,
    days: Annotated[int, typer.Option(min=1, help="Until the new list must be renewed.")] = 30,
) -> None:
    """Revoke a client's or server's certificates and sign a new list; without either, only renew the list."""
    from privfed.network.pki import revoke

    count = revoke(folder, client, server, days)
    typer.echo(f"{folder / 'revoked.pem'}: {count} certificate{'' if count == 1 else 's'} newly revoked")
