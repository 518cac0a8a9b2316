"""The command line of the sidecar, with its help: `mesh-agent run | config | openapi | spool | adapter | --version`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.adapter import cli as adapter
from agent.openapi import DOORS
from agent.process import read_settings, run_from
from agent.settings import CONFIG_VARIABLE, as_dict, rows
from agent.spool import cli as spool
from mesh.errors import ConfigError

app = typer.Typer(
    name="mesh-agent",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(spool.app, name="spool")
app.add_typer(adapter.app, name="adapter")

Config = Annotated[
    Path,
    typer.Option(
        "--config", "-c", envvar=CONFIG_VARIABLE, help="The agent.toml; file names in it start from its directory."
    ),
]
DEFAULT = Path("agent.toml")
Door = Literal["application", "webhooks", "health"]  # the keys of DOORS


def _version(value: bool) -> None:
    if value:
        from mesh import __version__

        typer.echo(f"mesh-agent {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The sidecar: takes events on loopback, decides and masks them by policy, signs them, publishes them.

    For example:

    \b
      mesh-agent run --config .mesh/agents/crm-adapter/agent.toml
      MESH_AGENT_LOG_LEVEL=debug mesh-agent run -c agent.toml
      mesh-agent config -c agent.toml
    """  # noqa: D301 - \b keeps the lines apart


@app.command()
def run(config: Config = DEFAULT) -> None:
    """Run until SIGTERM, then drain: new requests get 503, accepted ones finish.

    A second SIGTERM ends at once. Once ready, ports.json beside agent.toml names the bound addresses.

    Exit status: 0 drained, 1 failed or not drained in time, 2 misuse.

    For example:

    \b
      mesh-agent run --config .mesh/agents/crm-adapter/agent.toml
      MESH_AGENT_HTTP_PORT=0 mesh-agent run -c agent.toml
    """  # noqa: D301 - as above
    raise typer.Exit(run_from(config))


@app.command(name="config")
def show(
    config: Config = DEFAULT,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Print every setting, its value and where it came from. Secrets are file names, never values.

    For example:

    \b
      mesh-agent config -c agent.toml
      MESH_AGENT_DRAIN_S=25 mesh-agent config -c agent.toml | grep drain
    """  # noqa: D301 - as above
    loaded = read_settings(config)
    if json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(as_dict(loaded))).decode())
        return
    table = rows(loaded)
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for name, value, unit, origin in table:
        typer.echo(f"{name:<{widths[0]}}  {value:<{min(widths[1], 44)}}  {unit:<{widths[2]}}  {origin}".rstrip())


@app.command()
def openapi(
    door: Annotated[Door, typer.Option("--door", help="Whose document.")] = "application", config: Config = DEFAULT
) -> None:
    """Print the OpenAPI 3.1 document of a door, without running anything: for generators, gateways and CI.

    The limits and the webhooks' sources in it are those of the settings; without an agent.toml, the usual ones.

    For example:

    \b
      mesh-agent openapi > agent.json
      mesh-agent openapi --door webhooks --config .mesh/agents/github-adapter/agent.toml
    """  # noqa: D301 - as above
    import msgspec

    if config != DEFAULT and not config.exists():
        raise ConfigError(f"{config} is not there", expected="an agent.toml", next="name another with --config")
    nobody = {"MESH_AGENT_NAME": "agent", "MESH_AGENT_TENANT": "tenant"}  # a document names neither
    settings = read_settings(config, {**nobody, **os.environ}).settings
    typer.echo(msgspec.json.format(msgspec.json.encode(DOORS[door](settings))).decode())
