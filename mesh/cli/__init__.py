"""The command line: noun, then verb. `mesh --help` shows them all, with examples.

Exit codes: 0 yes, 1 no, 2 misuse. Every command that prints has `--json`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from mesh import __version__
from mesh.lean import without_websockets

# Each is imported when it is asked for: half of the time that a command takes would be the import of the others.
_COMMANDS = {"up": "mesh.cli.up", "demo": "mesh.cli.demo", "status": "mesh.cli.status"}
_NOUNS = {
    "events": "mesh.cli.events",
    "subscription": "mesh.cli.subscription",
    "dlq": "mesh.cli.dlq",
    "replay": "mesh.cli.replay",
    "policy": "mesh.cli.policy",
    "catalog": "mesh.cli.catalog",
    "audit": "mesh.cli.audit",
    "trust": "mesh.cli.trust",
    "control": "mesh.cli.control",
}


class LazyGroup(TyperGroup):
    """Commands and nouns whose modules are imported when they are asked for; each module has an `app`."""

    commands: dict[str, Any]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {**dict.fromkeys([*_COMMANDS, *_NOUNS]), **self.commands}  # None until it is asked for

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or noun of that name; None where there is none."""
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _loaded(cmd_name)
        return super().get_command(ctx, cmd_name)


def _loaded(name: str) -> Any:
    without_websockets()
    if name in _COMMANDS:
        return get_command(import_module(_COMMANDS[name]).app)
    noun = get_group(import_module(_NOUNS[name]).app)
    noun.name = name
    return noun


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An event mesh for SaaS integration on NATS JetStream.",
    epilog="Start here:  mesh demo    then:  mesh up    then:  mesh status",
)


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
