"""`mesh policy apply | rollback | status | history`: through the control plane of a mesh that is up.

Exit codes: 0 yes; 1 no (the policies' own tests fail, somebody does not run what is in force, nobody answers);
2 misuse, or policies that do not load.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.markup import escape

from mesh.cli.author import author
from mesh.cli.events import ContextOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import NO, command, console, fail, print_json, print_table
from mesh.cli.policy.diffing import diff_as_dict, print_diff
from mesh.cli.policy.options import DEFAULT_POLICIES, JsonOption, PoliciesOption, PolicyCommand, now_ms, tenant_of
from mesh.cli.policy.request import ask, progress
from mesh.cli.session import operator_session
from mesh.control.door import pack
from mesh.errors import MeshError, PolicyTestsFailed
from mesh.policy.diff import compare
from mesh.policy.load import load
from mesh.policy.trial import plans_of
from mesh.policy_files import PolicyFiles, read_policies

if TYPE_CHECKING:
    from mesh.cli.operator import OperatorConnection
    from mesh.policy.diff import Diff

APPLY_S = 120.0  # tests, rights, the bundle, and up to 30 s for the agents

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the bundle and shown by history.")]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-backlog",
        help="Durables of teams that see less begin after what is stored: plain NATS clients cannot pull it either.",
    ),
]

_STEPS = {
    "tests": "running the policies' own tests",
    "read": "reading the older revision",
    "withdraw": "taking away what is no longer granted",
    "extend": "adding keys, streams and filters",
    "bundle": "handing out the signed bundle",
    "agents": "waiting until everybody runs it",
    "settle": "leaving publishers exactly their subjects",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        "apply",
        cls=PolicyCommand,
        epilog="Examples:  mesh policy apply   |   mesh policy apply --policies policies/ --reason 'DPIA 2026-07'",
    )(apply)
    app.command(
        "rollback",
        cls=PolicyCommand,
        epilog="Examples:  mesh policy rollback   |   mesh policy rollback 4 --reason 'INC-4711'",
    )(rollback)
    app.command("status", cls=PolicyCommand, epilog="Example:  mesh policy status --json")(status)
    app.command("history", cls=PolicyCommand, epilog="Example:  mesh policy history --limit 100 --json")(history)


@command
async def apply(
    policies: PoliciesOption = DEFAULT_POLICIES,
    reason: ReasonOption = "",
    *,
    skip_backlog: SkipOption = False,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Make these policies the ones in force: show what changes, run their tests, hand them out signed.

    Exit 0 when everybody runs them, 1 where a test fails or somebody does not follow, 2 where they do not load.
    """
    files = await anyio.to_thread.run_sync(read_policies, policies)
    against, diff = await _difference(files, context, tenant)
    if not json_:
        print_diff(diff)
    body = {
        "files": pack(files.yaml, files.fixtures),
        "author": author(),
        "reason": reason,
        "skip_backlog": skip_backlog,
        "expected": against,
    }
    try:
        async with operator_connection(context, tenant=diff.tenant) as (_, connection):
            applied = await _ask(connection, "apply", body, quiet=json_)
    except PolicyTestsFailed as error:
        _no(error, as_json=json_)
    _applied(applied, {"diff": diff_as_dict(diff)}, as_json=json_)


@command
async def rollback(
    revision: Annotated[int | None, typer.Argument(help="Which; the one before the one in force unless given.")] = None,
    reason: ReasonOption = "",
    *,
    skip_backlog: SkipOption = False,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Bring the policies of an older revision back, grants included. It becomes a new revision: numbers only rise.

    Exit 0 when everybody runs them, 1 where somebody does not follow or there is no such revision.
    """
    body = {"revision": revision, "author": author(), "reason": reason, "skip_backlog": skip_backlog}
    async with operator_connection(context, tenant=tenant) as (_, connection):
        applied = await _ask(connection, "rollback", body, quiet=json_)
    _applied(applied, {}, as_json=json_)


@command
async def status(context: ContextOption = None, tenant: TenantOption = None, *, json_: JsonOption = False) -> None:
    """Show who runs which revision. Exit 0 where everybody runs the one in force, 1 where somebody does not."""
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "status", {})
    if json_:
        print_json(said)
    else:
        console.print(f"[bold]{said['tenant']}[/]: revision {said['revision']}, {_told(said)}\n")
        columns = ("who", "kind", "instance", "version", "revision", "reported", "state")
        print_table("Instances", columns, [_row(one) for one in said["instances"]])
        for durable in said["draining"]:
            console.print(f"[dim]draining an old view:[/] {escape(durable)}")
    if any(one["state"] != "current" for one in said["instances"]):
        raise typer.Exit(NO)


@command
async def history(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="So many, the newest first.")] = 20,
    context: ContextOption = None,
    tenant: TenantOption = None,
    *,
    json_: JsonOption = False,
) -> None:
    """Show the revisions that can be rolled back to: when, by whom, why."""
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "history", {"limit": limit})
    if json_:
        print_json(said)
        return
    columns = ("revision", "applied", "author", "digest", "rollback of", "reason")
    print_table(f"Revisions of {said['tenant']}", columns, [_revision(one) for one in said["revisions"]])


# --- asking ----------------------------------------------------------------------------------------------------------


async def _difference(files: PolicyFiles, context: str | None, tenant: str | None) -> tuple[int, Diff]:
    """The revision in force, and what the files change about it."""
    policies = await anyio.to_thread.run_sync(load, files.yaml)
    async with operator_session(context, tenant=tenant or _only(policies.tenants)) as session:
        in_force = session.plans
    named = tenant_of(policies, session.context.tenant)
    bundle = in_force.bundle
    new = plans_of(policies, site=bundle.site, trust_domain=bundle.trust_domain)[named]
    return bundle.revision, await anyio.to_thread.run_sync(compare, in_force, new, now_ms())


def _only(tenants: tuple[str, ...]) -> str | None:
    return tenants[0] if len(tenants) == 1 else None


async def _ask(connection: OperatorConnection, verb: str, body: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    with progress(connection, _STEPS, quiet=quiet) as inbox:
        return await ask(connection, verb, {**body, "progress": inbox}, timeout_s=APPLY_S)


# --- printing --------------------------------------------------------------------------------------------------------


def _applied(applied: dict[str, Any], more: dict[str, Any], *, as_json: bool) -> None:
    """What was done; exit 1 where somebody does not follow."""
    if as_json:
        print_json({**applied, **more})
    elif applied["unchanged"]:
        console.print(f"these policies are in force already, as revision {applied['revision']}")
    else:
        took_s = sum(step["ms"] for step in applied["steps"]) / 1000
        what = f", the policies of revision {applied['rollback_of']}" if applied["rollback_of"] else ""
        console.print(
            f"[bold green]revision {applied['revision']} is in force[/]{what} [dim]({applied['digest'][:12]})[/],"
            f" {took_s:.1f} s"
        )
        for durable in applied["restarted"]:
            console.print(f"begins after what was stored: {escape(durable)}")
        for durable in applied["draining"]:
            console.print(f"[dim]goes on delivering an old view until it is drained:[/] {escape(durable)}")
        for one in applied["behind"]:
            why = f"refuses it: {one['code']}" if one["code"] else f"still runs revision {one['revision']}"
            console.print(f"[bold yellow]look at[/] {escape(one['workload'])} {escape(one['instance'])}: {escape(why)}")
    if applied["behind"]:
        raise typer.Exit(NO)


def _no(error: MeshError, *, as_json: bool) -> None:
    """The answer is no, and the command line was right."""
    try:
        fail(error, as_json=as_json)
    except typer.Exit:
        raise typer.Exit(NO) from None


def _row(one: dict[str, Any]) -> list[object]:
    reported = f"{one['age_s']:.0f} s ago" if one["instance"] else "never"
    state = one["state"] + (f" {one['code']}" if one["code"] else "")
    return [one["name"], one["kind"], one["instance"], one["version"], one["revision"] or "", reported, state]


def _told(one: dict[str, Any]) -> str:
    who = f" by {one['author']}" if one["author"] else ""
    back = f", the policies of revision {one['rollback_of']}" if one["rollback_of"] else ""
    return f"in force since {_time(one['created_ms'])}{escape(who)}{back} ({one['digest'][:12]})"


def _revision(one: dict[str, Any]) -> list[object]:
    number = f"{one['revision']} in force" if one["in_force"] else one["revision"]
    if "error" in one:
        return [number, "", "", one["digest"][:12], "", f"cannot be read: {one['error']}"]
    back = one["rollback_of"] or ""
    return [number, _time(one["created_ms"]), one["author"], one["digest"][:12], back, one["reason"]]


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
