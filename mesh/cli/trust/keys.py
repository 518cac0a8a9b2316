"""`mesh trust list | show`: event keys and their certificates, and what everybody verifies by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mesh.cli.events import ContextOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import command, console, print_json, print_table
from mesh.cli.policy.options import JsonOption
from mesh.cli.policy.request import ask
from mesh.cli.times import length, shown
from mesh.cli.trust.options import KeyCommand, lets_back, team_of
from mesh.errors import NotFound

if TYPE_CHECKING:
    from mesh.context import Context

NOUN = "trust"  # of the control plane's door


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        "list", cls=KeyCommand, epilog="Examples:  mesh trust list   |   mesh trust list --agent crm-adapter --all"
    )(list_)
    app.command("show", cls=KeyCommand, epilog="Examples:  mesh trust show   |   mesh trust show KID --json")(show)


@command
async def list_(
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's keys.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also what has ended, and every revoked key.")] = False,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """List event keys: whose, until when, and whether they are revoked. Also who is barred.

    Exit 0, also where there is no key; 1 where there is no such agent.
    """
    async with operator_connection(context, tenant=tenant) as (place, connection):
        said = await ask(connection, "list", {"ended": everything}, noun=NOUN)
        while len(said["keys"]) < said["total"]:
            more = await ask(connection, "list", {"ended": everything, "skip": len(said["keys"])}, noun=NOUN)
            said["total"] = more["total"] if more["keys"] else len(said["keys"])
            said["keys"] += more["keys"]
    if agent is not None:
        _check_known(agent, said, place)
        said["keys"] = [key for key in said["keys"] if key["agent"] == agent]
        said["total"] = len(said["keys"])
    if json_:
        print_json(said)
        return
    columns = ("agent", "key", "until", "state")
    print_table(f"Event keys of {said['tenant']}", columns, [_row(key) for key in said["keys"]], keep=("key",))
    for workload in said["barred"]:
        console.print(f"[bold yellow]barred[/] {escape(workload)}: {escape(lets_back(workload))}")
    console.print(f"\n[dim]{_statement(said['statement'])}; new certificates come from {said['ca']['kid']}[/]")


def _check_known(agent: str, said: dict[str, Any], place: Context) -> None:
    """Raise NotFound where neither the mesh, nor a key, nor who is barred says that there is this agent."""
    names = {key["agent"] for key in said["keys"]} | {name for name in said["barred"] if not team_of(name)}
    known = sorted({*place.mesh.tenants[place.tenant].agents, *names} - {""})
    if agent not in known:
        raise NotFound(
            f"{said['tenant']} has no agent {agent[:64]}",
            expected=", ".join(known),
            got=agent[:64],
            next="`mesh trust list` shows them all",
        )


@command
async def show(
    kid: Annotated[str | None, typer.Argument(help="A key's id, as `list` shows it.", metavar="KID")] = None,
    context: ContextOption = None,
    tenant: TenantOption = None,
    *,
    json_: JsonOption = False,
) -> None:
    """Show one key with its certificate; without KID what everybody verifies by: roots, keys, the statement.

    Exit 0 where there is such a key, 1 where there is not.
    """
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "show", {"kid": kid or ""}, noun=NOUN)
    if json_:
        print_json(said)
    elif kid:
        _show_key(said)
    else:
        _show_anchors(said)


def _show_key(said: dict[str, Any]) -> None:
    rows = {
        "key": said["kid"],
        "agent": said["agent"] or "none of today's policies",
        "identity": said["spiffe_id"],
        "valid": f"{shown(said['not_before_ms'])} to {shown(said['not_after_ms'])}",
        "certified by": said["issuer_kid"] or "a root",
        "state": _state(said),
    }
    for name, value in rows.items():
        console.print(f"[dim]{name:<13}[/]{escape(value)}", soft_wrap=True)
    console.print()
    for pem in said["chain"]:
        console.print(escape(pem.rstrip()), soft_wrap=True)


def _show_anchors(said: dict[str, Any]) -> None:
    console.print(f"[bold]{escape(said['tenant'])}[/] in the trust domain {escape(said['trust_domain'])}\n")
    for root in said["roots"]:
        console.print(f"[dim]root         [/]{root['kid']}, until {shown(root['not_after_ms'])}")
        console.print(f"[dim]             sha256 {root['sha256']}[/]", soft_wrap=True)
    ca = said["ca"]
    console.print(f"[dim]mesh CA      [/]{ca['kid']}, until {shown(ca['not_after_ms'])}")
    console.print(f"[dim]trust key    [/]{said['trust_key']}")
    console.print(f"[dim]policy key   [/]{said['policy_key']}")
    console.print(f"[dim]statement    [/]{_statement(said['statement'])}")


def _row(key: dict[str, Any]) -> list[object]:
    if key["not_after_ms"] is None:
        return ["(no certificate)", key["kid"], "", _state(key)]
    return [key["agent"] or key["spiffe_id"], key["kid"], shown(key["not_after_ms"]), _state(key)]


def _state(key: dict[str, Any]) -> str:
    if key["state"] in {"good", "ended"}:
        return str(key["state"])
    return f"revoked from {shown(key['revoked_from_ms'])}"


def _statement(statement: dict[str, Any]) -> str:
    age = length(time.time_ns() // 1_000_000 - statement["issued_ms"])
    count = statement["revoked"]
    return f"statement {statement['epoch']}, {age} old, revokes {count} key{'' if count == 1 else 's'}"
