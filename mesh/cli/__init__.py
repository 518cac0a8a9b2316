"""The command line: noun, then verb. `mesh --help` shows them all, with examples.

Exit codes: 0 yes, 1 no, 2 misuse. Every command that prints has `--json`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mesh import __version__
from mesh.cli import audit, catalog, control, dlq, events, policy, replay, subscription, trust
from mesh.cli.demo import demo
from mesh.cli.status import status
from mesh.cli.up import up

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An event mesh for SaaS integration on NATS JetStream.",
    epilog="Start here:  mesh demo    then:  mesh up    then:  mesh status",
)
app.command("up", epilog="Examples:  mesh up   |   mesh up --data /srv/mesh --nats-port 4222 --base-port 8400")(up)
app.command("demo", epilog="Examples:  mesh demo   |   mesh demo --events 1000 --json")(demo)
app.command("status", epilog="Example:  mesh status --json")(status)
app.add_typer(events.app, name="events")
app.add_typer(subscription.app, name="subscription")
app.add_typer(dlq.app, name="dlq")
app.add_typer(replay.app, name="replay")
app.add_typer(policy.app, name="policy")
app.add_typer(catalog.app, name="catalog")
app.add_typer(audit.app, name="audit")
app.add_typer(trust.app, name="trust")
app.add_typer(control.app, name="control")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mesh {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An event mesh for SaaS integration on NATS JetStream."""


def main() -> None:
    """The console script `mesh`."""
    app()
