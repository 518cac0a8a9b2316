"""`mesh-agent spool inspect | export`: for an agent that does not run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer

from agent.process import read_settings
from agent.settings import CONFIG_VARIABLE
from mesh.errors import ConfigError
from mesh.event import rfc3339

if TYPE_CHECKING:
    from agent.spool.offline import Exported, Inspection

app = typer.Typer(no_args_is_help=True, help="What the agent's spool holds; for an agent that does not run.")

Config = Annotated[
    Path,
    typer.Option("--config", "-c", envvar=CONFIG_VARIABLE, help="The agent.toml; the spool is the one that it names."),
]
DEFAULT = Path("agent.toml")
EXIT_DAMAGED = 1


@app.command()
def inspect(
    config: Config = DEFAULT,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Count what waits in the spool, and name what was refused and why; no event's values.

    Of a running agent /readyz says the same. Exit status: 0 sound, 1 some rows or part of the log cannot be read, 2
    misuse or no key.

    For example:

    \b
      mesh-agent spool inspect -c .mesh/agents/crm-adapter/agent.toml
    """  # noqa: D301 - \b keeps the lines apart
    from agent.spool import offline

    database = offline.open_stopped(read_settings(config).settings, config.resolve().parent)
    try:
        found = offline.inspect(database)
    finally:
        database.close()
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found.as_dict())).decode())
    else:
        for stream, held in sorted(found.streams.items()):
            typer.echo(f"{stream}  {held.copies} copies  {held.bytes} bytes  oldest {rfc3339(held.oldest_ms)}")
        for row in found.refused:
            typer.echo(f"refused  {row['reason']}  {row['type']}  {row['source']}  {row['event']}  view {row['view']}")
        if not found.streams and not found.refused:
            typer.echo("the spool is empty")
    _end(found, quiet=json)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="A file that is not there yet; it is made for its owner alone (0600).")],
    config: Config = DEFAULT,
    discard_refused: Annotated[
        bool, typer.Option("--discard-refused", help="Then remove the refused copies from the spool.")
    ] = False,
) -> None:
    """Write every copy to FILE as JSON lines, DECRYPTED: masked as for its view, but personal data all the same.

    The spool stays as it is, so that the agent sends what waits once it runs again.

    For example:

    \b
      mesh-agent spool export spool.jsonl -c .mesh/agents/crm-adapter/agent.toml
    """  # noqa: D301 - as above
    from agent.spool import offline

    settings = read_settings(config).settings
    database = offline.open_stopped(settings, config.resolve().parent, read_only=not discard_refused)
    try:
        with os.fdopen(_made(file), "wb") as out:
            written = offline.export(database, out)
            out.flush()
            os.fsync(out.fileno())
        if discard_refused:
            offline.forget_refused(database, written.refused)
    finally:
        database.close()
    typer.echo(f"{file} holds {written.copies} copies that wait and {len(written.refused)} refused ones, decrypted")
    _end(written)


def _end(found: Inspection | Exported, *, quiet: bool = False) -> NoReturn:
    rows = found.damaged - bool(found.lost)
    if rows and not quiet:
        typer.echo(f"{rows} rows cannot be read", err=True)
    if found.lost and not quiet:
        typer.echo(found.lost, err=True)
    raise typer.Exit(EXIT_DAMAGED if found.damaged else 0)


def _made(file: Path) -> int:
    try:
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be made: {error.strerror or error.__class__.__name__}",
            expected="a file that is not there yet, in a directory that is",
            next="name another",
        ) from error
