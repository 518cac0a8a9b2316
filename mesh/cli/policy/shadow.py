"""`mesh policy shadow`: a candidate beside the policies in force, on live traffic. It reports and changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
import typer
from rich.markup import escape

from mesh.cli.author import author
from mesh.cli.events import ContextOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import NO, command, console, print_json, print_table
from mesh.cli.policy.options import DEFAULT_POLICIES, JsonOption, PoliciesOption, PolicyCommand
from mesh.cli.policy.request import ask
from mesh.control.door import pack
from mesh.policy_files import read_policies

app = typer.Typer(
    no_args_is_help=True,
    help="A candidate beside the policies in force, on live traffic: what would be otherwise, and nothing changes.",
)

SAMPLE = 1.0  # of the events: agents take no more than a tenth of their time for it, and say what they skipped

_WORDS = {
    "would_allow": "would allow",
    "would_deny": "would refuse",
    "team_gains": "team would get it",
    "team_loses": "team would lose it",
    "team_view": "team, other view",
    "view_added": "new copy",
    "view_removed": "no copy",
    "mask_changed": "other mask",
    "route_changed": "other route",
}  # in the order in which they are shown

_ORDER = {kind: number for number, kind in enumerate(_WORDS)}


@app.command(
    "start",
    cls=PolicyCommand,
    epilog="Examples:  mesh policy shadow start --policies next/   |   mesh policy shadow start --sample 0.1 --json",
)
@command
async def start(
    policies: PoliciesOption = DEFAULT_POLICIES,
    sample: Annotated[
        float, typer.Option("--sample", help="Part of the events that agents compare, above 0 and at most 1.")
    ] = SAMPLE,
    context: ContextOption = None,
    tenant: TenantOption = None,
    *,
    json_: JsonOption = False,
) -> None:
    """Have every agent try these policies beside those in force. A candidate that is being tried already ends.

    Exit 0 once it is handed out, 1 where no control plane answers, 2 where the policies do not load.
    """
    files = await anyio.to_thread.run_sync(read_policies, policies)
    body = {"files": pack(files.yaml, {}), "sample": sample, "author": author()}
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "shadow-start", body)
    if json_:
        print_json(said)
        return
    console.print(
        f"[bold]{said['tenant']}[/]: agents try what would be revision {said['revision']} on "
        f"{_percent(said['sample'])} of their events [dim]({said['digest'][:12]})[/]"
    )
    if said["same"]:
        console.print("[bold yellow]look at[/] these policies are the ones in force: there will be nothing to report")
    console.print("[dim]next: mesh policy shadow report, then mesh policy shadow stop[/]")


@app.command("report", cls=PolicyCommand, epilog="Example:  mesh policy shadow report --json")
@command
async def report(context: ContextOption = None, tenant: TenantOption = None, *, json_: JsonOption = False) -> None:
    """Show what the candidate would do otherwise, over all agents: counts, rules and paths, never values.

    Exit 0 where it agrees on every event compared, 1 where it does not or no candidate is being tried.
    """
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "shadow-report", {})
    if json_:
        print_json(said)
    else:
        _show(said)
    if said["disagreed"]:
        raise typer.Exit(NO)


@app.command("stop", cls=PolicyCommand, epilog="Example:  mesh policy shadow stop")
@command
async def stop(context: ContextOption = None, tenant: TenantOption = None, *, json_: JsonOption = False) -> None:
    """End the trial. Exit 0, also where nothing was being tried."""
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "shadow-stop", {"author": author()})
    if json_:
        print_json(said)
    elif said["stopped"]:
        console.print(f"[bold]{said['tenant']}[/]: what would be revision {said['revision']} is no longer tried")
    else:
        console.print("no candidate was being tried")


def _show(said: dict[str, Any]) -> None:
    began = datetime.fromtimestamp(said["started_ms"] / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    console.print(
        f"[bold]{said['tenant']}[/]: what would be revision {said['revision']} beside revision {said['against']}, "
        f"{_percent(said['sample'])} of events since {began}, started by {escape(said['author'] or 'somebody')}\n"
    )
    print_table(
        "Agents",
        ("agent", "instance", "state", "compared", "disagreed", "failed", "skipped"),
        [
            [one[name] for name in ("agent", "instance", "state", "compared", "disagreed", "failed", "skipped")]
            for one in said["agents"]
        ],
    )
    console.print()
    print_table(
        "Would be otherwise",
        ("what", "type", "about", "now", "candidate", "events", "last event"),
        [_row(found) for found in sorted(said["found"], key=lambda found: _ORDER.get(found["kind"], len(_ORDER)))],
    )
    if said["other"]:
        console.print(f"[dim]and {said['other']} events with more kinds of difference than are told apart[/]")
    if said["skipped"] or said["failed"]:
        console.print(
            f"[dim]{said['skipped']} events skipped for lack of time, {said['failed']} not compared: see logs[/]"
        )
    verdict = f"{said['disagreed']} of {said['compared']} events compared would be decided otherwise"
    console.print(f"\n{verdict}" if said["compared"] else "\nno event was compared yet: publish something, or wait")


def _row(found: dict[str, Any]) -> list[object]:
    about = " ".join(part for part in (found["about"], found["path"]) if part)
    words = _WORDS.get(found["kind"], found["kind"])
    return [words, found["type"], about, found["active"], found["candidate"], found["count"], found["event"]]


def _percent(part: float) -> str:
    return f"{100 * part:g}%"
