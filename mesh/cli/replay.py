"""`mesh replay`: stored events into one subscription again; what others get, and its own live position, stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.markup import escape

from mesh.cli.author import author
from mesh.cli.events import ContextOption, JsonOption, TeamOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import MISUSE, NO, command, console, errors, print_json, print_table
from mesh.cli.policy.request import ask
from mesh.cli.times import moment_ms, shown
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.cli.operator import OperatorConnection

app = typer.Typer(help="Stored events into one subscription again. Handlers see the run's id as `event.replay`.")

NOUN = "replay"
LOOK_S = 1.0  # between two looks at a replay that somebody waits for

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]


@app.callback(
    invoke_without_command=True,
    epilog="Examples:  mesh replay --subscription invoices --team billing --from 24h --dry-run"
    "   |   mesh replay --subscription contacts --team support --from 2026-11-20T08:00:00Z --to 1h"
    "   |   mesh replay list   |   mesh replay cancel 6f1c2a90d3b45e78",
)
@command
async def replay(
    ctx: typer.Context,
    *,
    subscription: Annotated[str, typer.Option("--subscription", help="Which; nobody else is delivered anything.")] = "",
    team: TeamOption = None,
    begin: Annotated[str, typer.Option("--from", help="RFC 3339, a time ago such as 24h, or a sequence.")] = "",
    end: Annotated[str, typer.Option("--to", help="Likewise: stored before that time, or up to it; now.")] = "",
    types: Annotated[list[str] | None, typer.Option("--type", help="Only these: * one token, > the rest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count; replay nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Begin, and do not wait for the end.")] = False,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Replay what is stored between two points to one subscription; waits until it is settled."""
    if ctx.invoked_subcommand is not None:
        return
    if not subscription or not begin:
        typer.echo(ctx.get_help())
        raise typer.Exit(MISUSE)
    async with operator_connection(context, tenant=tenant, team=team) as (found, connection):
        found.team_address()  # says which teams there are, where none was named
        asked = {
            "team": found.team,
            "subscription": subscription,
            **_point("from", begin),
            **(_point("to", end) if end else {}),
            "types": types or [],
            "dry_run": dry_run,
            "author": author(),
            "reason": reason,
        }
        begun = await ask(connection, "start", asked, noun=NOUN)
        if not json_:
            _say_begun(begun, dry_run=dry_run)
        ended = begun if dry_run or detach else await _wait(connection, begun, quiet=json_)
    if json_:
        print_json(ended)
    elif not dry_run and not detach:
        console.print(f"{ended['state']}: {ended['count'] - ended['left']} of {ended['count']} settled")
    if not dry_run and not detach and ended["state"] != "finished":
        raise typer.Exit(NO)


@app.command("list", epilog="Example:  mesh replay list --json")
@command
async def list_(context: ContextOption = None, tenant: TenantOption = None, json_: JsonOption = False) -> None:
    """List the replays that are open, and those that ended last."""
    async with operator_connection(context, tenant=tenant) as (_, connection):
        runs = (await ask(connection, "list", {}, noun=NOUN))["runs"]
    if json_:
        print_json(runs)
        return
    print_table(
        "Replays",
        ("run", "subscription", "state", "left", "of", "since", "by", "why"),
        (
            (
                run["run"],
                f"{run['team']}/{run['subscription']}",
                run["state"],
                run["left"],
                run["count"],
                shown(run["started_ms"]),
                run["author"] or "-",
                run["reason"] or "-",
            )
            for run in runs
        ),
        keep=("run",),
    )


@app.command("cancel", epilog="Example:  mesh replay cancel 6f1c2a90d3b45e78 --reason 'wrong day'")
@command
async def cancel(
    run: Annotated[str, typer.Argument(help="The run's id, as `mesh replay list` shows it.")],
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """End a replay: what was handed out is still settled, the rest is not replayed."""
    async with operator_connection(context, tenant=tenant) as (_, connection):
        ended = await ask(connection, "cancel", {"run": run, "author": author(), "reason": reason}, noun=NOUN)
    if json_:
        print_json(ended)
    else:
        console.print(f"cancelled; {ended['left']} of {ended['count']} were not settled")


def _point(name: str, text: str) -> dict[str, int]:
    """A sequence or a time as the door takes it.

    Raises:
        ConfigError: It is neither.
    """
    if text.isdecimal():
        return {f"{name}_seq": int(text)}
    at_ms = moment_ms(text)
    if at_ms < 1:
        raise ConfigError(f"`--{name}` is before 1970", expected="a time, or a sequence from 1", got=text[:40])
    return {f"{name}_ms": at_ms}


async def _wait(connection: OperatorConnection, begun: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """How the replay ended. Whoever stops waiting stops nothing."""
    left = begun["left"]
    while True:
        runs: list[dict[str, Any]] = (await ask(connection, "list", {}, noun=NOUN))["runs"]
        mine = next((run for run in runs if run["run"] == begun["run"]), None)
        if mine is None:  # another control plane leads since, and it ended before
            return {**begun, "state": "gone"}
        if mine["state"] in {"finished", "cancelled"}:
            return mine
        if mine["left"] != left and not quiet:
            errors.print(f"[dim]  {mine['left']} left[/]")
        left = mine["left"]
        await anyio.sleep(LOOK_S)


def _say_begun(begun: dict[str, Any], *, dry_run: bool) -> None:
    whose = f"{begun['team']}/{begun['subscription']}"
    if begun["bound_ms"]:
        console.print(f"[dim]its team may be shown nothing that was stored before {shown(begun['bound_ms'])}[/]")
    for stream, part in begun["streams"].items():
        console.print(f"  {escape(stream)}  {part['first']} to {part['last']}: {part['count']} copies")
    if dry_run:
        console.print(f"{begun['count']} stored copies would be replayed to {escape(whose)}")
        return
    console.print(f"run [cyan]{begun['run']}[/]: {begun['count']} stored copies to {escape(whose)}")
    if begun["client"] == "nats":
        console.print(f"  pull them from the durable {escape(begun['durable'])}")
