"""`mesh trust revoke | rotate | admit`: through the control plane of a mesh that is up.

Exit codes: 0 done; 1 no (there is no such key or agent, an agent has no new key, nobody answers); 2 misuse.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.markup import escape

from mesh.cli.author import author
from mesh.cli.events import ContextOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import NO, command, console, print_json, print_table
from mesh.cli.policy.options import JsonOption
from mesh.cli.policy.request import ask, problem_error, progress
from mesh.cli.times import length, moment_ms, shown
from mesh.cli.trust.keys import NOUN
from mesh.cli.trust.options import KeyCommand, admit_line, lets_back, team_of
from mesh.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from mesh.cli.operator import OperatorConnection

ROTATE_S = 60.0  # 15 s for the agents, and what the accounts of a large mesh take
STORE_S = 120.0  # the server stops, its keys are wrapped anew, it starts and reads its streams
LOOK_S = 0.2  # between two looks at how that went
LOOK_TIMEOUT_S = 2.0  # for an answer to one

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]

_STEPS = {
    "ca": "making a new mesh CA",
    "keys": "revoking the keys of today, 15 s from now",
    "agents": "waiting until the agents have other keys",
    "credentials": "replacing NATS credentials",
    "store": "giving the server's store another key; the server restarts",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        "revoke",
        cls=KeyCommand,
        epilog="Examples:  mesh trust revoke KID --reason INC-4711   |   mesh trust revoke --agent crm-adapter --now"
        "   |   mesh trust revoke --agent crm-adapter --from 2026-11-22T08:00:00Z",
    )(revoke)
    app.command(
        "rotate",
        cls=KeyCommand,
        epilog="Examples:  mesh trust rotate --agent crm-adapter   |   mesh trust rotate --all --credentials"
        "   |   mesh trust rotate --ca --revoke-old",
    )(rotate)
    app.command(
        "admit",
        cls=KeyCommand,
        epilog="Examples:  mesh trust admit crm-adapter --reason 'rebuilt'   |   mesh trust admit --team support",
    )(admit)


@command
async def revoke(
    kid: Annotated[str | None, typer.Argument(help="One key, or an earlier mesh CA.", metavar="KID")] = None,
    *,
    agent: Annotated[str | None, typer.Option("--agent", help="All that this agent has; it is barred as well.")] = None,
    team: Annotated[str | None, typer.Option("--team", help="Bar this team: its NATS account is closed.")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="From when on: RFC 3339, or 90s, 15m, 24h ago. What came later is quarantined."),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="From now on, not a second ahead.")] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Also a KID that no certificate names: a mesh CA of long ago.")
    ] = False,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Refuse what a key seals, from a cut on. What was stored before it stays good.

    The cut lies a second ahead, so that everybody knows of it in time and an honest agent has another key by then.
    `--agent` also closes its NATS account and refuses it new keys, until `mesh trust admit`. Asks nothing; says what
    it did.
    """
    named = [name for name, what in (("KID", kid), ("--agent", agent), ("--team", team)) if what is not None]
    if len(named) != 1:
        raise ConfigError(
            "these are several things to revoke" if named else "say what is to be revoked",
            expected="one of KID, --agent and --team",
            got=" and ".join(named) or "none of them",
            next="revoke them one after the other" if named else "see --help",
        )
    if now and from_ is not None:
        raise ConfigError("--now and --from are two cuts", expected="one of them")
    if team is not None and (now or from_ is not None):
        raise ConfigError("a team seals nothing, so there is no cut", expected="--team alone")
    body = {
        "kid": kid or "",
        "agent": agent or "",
        "team": team or "",
        "now": now,
        "unknown": unknown,
        "from_ms": None if from_ is None else moment_ms(from_),
        "author": author(),
        "reason": reason,
    }
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "revoke", body, noun=NOUN)
    if json_:
        print_json(said)
    else:
        _revoked(said)


@command
async def rotate(
    agents: Annotated[list[str] | None, typer.Option("--agent", help="Its event keys; give it several times.")] = None,
    teams: Annotated[list[str] | None, typer.Option("--team", help="Its NATS credentials.")] = None,
    *,
    everybody: Annotated[bool, typer.Option("--all", help="The event keys of every agent.")] = False,
    credentials: Annotated[bool, typer.Option("--credentials", help="The agents' NATS credentials, too.")] = False,
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="NATS credentials before are refused now, wherever the new ones have to go."),
    ] = False,
    ca: Annotated[bool, typer.Option("--ca", help="A new mesh CA; needs the root's key.")] = False,
    revoke_old: Annotated[
        bool, typer.Option("--revoke-old", help="With --ca: the old one certifies nobody any more, in any tenant.")
    ] = False,
    store: Annotated[bool, typer.Option("--store", help="Another encryption key for the server's store.")] = False,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Replace keys and credentials of a mesh that runs, without losing an event.

    The event keys of today are revoked 15 s from now; agents enrol others at once. NATS credentials of before are good
    for 15 min more where you have to hand out the new ones, as on Kubernetes. Exit 0 when the agents have other keys, 1
    where one that runs has none yet.
    """
    body = {
        "agents": agents or [],
        "teams": teams or [],
        "everybody": everybody,
        "credentials": credentials,
        "ca": ca,
        "revoke_old": revoke_old,
        "store": store,
        "author": author(),
        "reason": reason,
        **({"overlap_s": 0.0} if at_once else {}),
    }
    if revoke_old and not ca:
        raise ConfigError(
            "the old mesh CA goes only where there is a new one",
            expected="--ca with --revoke-old",
            next="mesh trust rotate --ca --revoke-old",
        )
    if not (agents or teams or everybody or ca or store):
        raise ConfigError("say what is to be rotated", expected="--agent, --team, --all, --ca or --store")
    if credentials and not (agents or everybody):
        raise ConfigError("say whose credentials", expected="--agent or --all; --team needs no --credentials")
    async with operator_connection(context, tenant=tenant) as (_, connection):
        with progress(connection, _STEPS, quiet=json_) as inbox:
            said = await ask(connection, "rotate", {**body, "progress": inbox}, noun=NOUN, timeout_s=ROTATE_S)
        if said["store"]:
            await _store_renewed(connection)
    if json_:
        print_json(said)
    else:
        _rotated(said)
    if any(one["state"] == "late" for one in said["agents"]):
        raise typer.Exit(NO)


@command
async def admit(
    agent: Annotated[str | None, typer.Argument(help="The agent to let back in.", metavar="AGENT")] = None,
    *,
    team: Annotated[str | None, typer.Option("--team", help="The team to let back in.")] = None,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Let a barred agent or team back, with new NATS credentials and a new enrolment token in its directory.

    What was revoked stays revoked: keys, and the credentials it had. Of one that is not barred, files that were lost
    are written again; exit 0 all the same.
    """
    if (agent is None) == (team is None):
        raise ConfigError("say who is to be admitted", expected="one of AGENT and --team", next="see --help")
    body = {"agent": agent or "", "team": team or "", "author": author(), "reason": reason}
    async with operator_connection(context, tenant=tenant) as (_, connection):
        said = await ask(connection, "admit", body, noun=NOUN)
    if json_:
        print_json(said)
    elif said["admitted"]:
        console.print(f"{escape(said['workload'])} is admitted; its credentials are new")
    elif said["written"]:
        files = ", ".join(f"{name} ({what})" for name, what in said["written"].items())
        console.print(f"{escape(said['workload'])} was not barred; written again: {escape(files)}", soft_wrap=True)
    else:
        console.print(f"{escape(said['workload'])} was not barred, and has its files: nothing was changed")


async def _store_renewed(connection: OperatorConnection) -> None:
    """Wait until the server is back with another key for its store.

    Raises:
        MeshError: What became of it instead.
        Unavailable: Nobody says, in `STORE_S`.
    """
    with anyio.move_on_after(STORE_S):
        while True:
            await anyio.sleep(LOOK_S)
            try:
                found = await ask(connection, "store-status", {}, noun=NOUN, timeout_s=LOOK_TIMEOUT_S)
            except Unavailable:
                continue  # the server restarts
            if found["state"] == "done":
                return
            if found["error"]:
                raise problem_error(found["error"])
    raise Unavailable(
        f"the mesh did not say within {STORE_S:.0f} s what became of its store", next="look at `mesh status`"
    )


def _revoked(said: dict[str, Any]) -> None:
    for key in said["keys"]:
        console.print(
            f"[bold]{escape(key['kid'])}[/]: what is stored from"
            f" [bold]{shown(key['from_ms'], timespec='milliseconds')}[/] on is refused {_relative(key['from_ms'])}",
            soft_wrap=True,
        )
    workload = said["barred"]
    team = team_of(workload)
    if team:
        console.print(
            f"the team {escape(team)} is barred: its NATS account is closed, so it reads nothing and connects no more"
            f" [dim](it has no event keys to revoke; {said['took_ms']} ms after the request)[/]",
            soft_wrap=True,
        )
    elif workload:
        keys = len(said["keys"])
        console.print(
            f"{escape(workload)} is barred: its connections are cut, it gets no certificate"
            f" [dim]({keys} key{'' if keys == 1 else 's'} revoked)[/]"
        )
    if workload:
        console.print(f"[dim]next: {escape(admit_line(workload))}, once it is in good hands again[/]")
    if not team:
        console.print(f"[dim]statement {said['epoch']} says so, {said['took_ms']} ms after the request[/]")


def _relative(at_ms: int) -> str:
    left_ms = at_ms - time.time_ns() // 1_000_000
    return f"(in {left_ms / 1000:.1f} s)" if left_ms > 0 else f"({length(left_ms)} ago)"


def _rotated(said: dict[str, Any]) -> None:
    if said["ca"]:
        old = "certifies nobody any more" if said["ca"]["old_revoked"] else "stays good"
        console.print(f"new certificates come from {said['ca']['new']}; the mesh CA before, {said['ca']['old']}, {old}")
    if said["agents"]:
        columns = ("agent", "revoked", "enrolled", "state")
        print_table(
            f"Event keys of {said['tenant']}", columns, [[one[name] for name in columns] for one in said["agents"]]
        )
        console.print(f"the keys before are refused from {shown(said['cut_ms'])} on")
    for one in said["agents"]:
        if one["state"] == "late":
            console.print(f"[bold yellow]look at[/] {escape(one['agent'])}: it runs and has no new key; see its log")
    for name in said["skipped"]:
        console.print(f"{escape(name)} is barred, and was left out: {lets_back(escape(name))}")
    for workload in said["credentials"]:
        before = f"are good for {length(round(1000 * said['overlap_s']))} more" if said["overlap_s"] else "are refused"
        console.print(f"{escape(workload)} has new NATS credentials; those before {before}")
    if said["store"]:
        console.print("the server's store has another encryption key")
