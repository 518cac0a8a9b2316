"""`mesh-agent adapter parked | retry | drop`: what the agent refused for good, also while the adapter runs."""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.adapter.line import Line

app = typer.Typer(no_args_is_help=True, help="Events of a polling adapter that were refused for good.")

State = Annotated[Path, typer.Argument(help="The adapter's state file; its key lies beside it.")]
Seq = Annotated[int | None, typer.Argument(help="The one with this number; all, where none is given.")]


@app.command()
def parked(state: State, json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """List them, with the reason. Keys of items are shown; data is not.

    For example:

    \b
      mesh-agent adapter parked contacts.db
    """  # noqa: D301 - \b keeps the lines apart
    with _line(state) as line:
        rows = list(line.parked())
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode([row._asdict() for row in rows])).decode())
        return
    for row in rows:
        why = row.problem.get("rule") or row.problem.get("detail") or row.problem.get("message") or ""
        typer.echo("  ".join([str(row.seq), row.type or "-", row.key or "-", str(row.problem.get("code")), why]))
    if not rows:
        typer.echo("nothing is parked")


@app.command()
def retry(state: State, seq: Seq = None) -> None:
    """Publish them again, at the adapter's next turn; each in its old place, before newer ones of its item.

    For example:

    \b
      mesh-agent adapter retry contacts.db
      mesh-agent adapter retry contacts.db 17
    """  # noqa: D301 - as above
    with _line(state) as line:
        typer.echo(f"{line.retry(seq)} are tried again")


@app.command()
def drop(state: State, seq: Annotated[int, typer.Argument(help="The one with this number.")]) -> None:
    """Delete one: its event is never published.

    For example:

    \b
      mesh-agent adapter drop contacts.db 17
    """  # noqa: D301 - as above
    with _line(state) as line:
        typer.echo(f"{line.drop(seq)} dropped")


@contextmanager
def _line(state: Path) -> Iterator[Line]:
    from agent.adapter.database import connect
    from agent.adapter.line import Line

    connection, cloak = connect(state, make=False)
    with closing(connection):
        yield Line(connection, cloak)
