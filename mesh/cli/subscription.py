"""`mesh subscription`: what each team has delivered, how, and how far behind it is."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from mesh.cli.events import ContextOption, JsonOption, TeamOption, TenantOption
from mesh.cli.output import command, console, print_json, print_table
from mesh.cli.session import Session, operator_session
from mesh.control.reconcile import now_ms
from mesh.errors import NotFound
from mesh.jetstream.manage import consumer_info
from mesh.jetstream.topology import durables
from mesh.policy.pacing import pacing

app = typer.Typer(no_args_is_help=True, help="What each team has delivered, and how far behind it is.")


async def describe(session: Session, *, team: str | None) -> list[dict[str, Any]]:
    """Every subscription of *team*, or of all teams; lag is what is stored for it and not yet acked."""
    grants = session.plans.grants(now_ms=now_ms())
    found = []
    for grant in grants.subscriptions.values():
        if team is not None and grant.team != team:
            continue
        fact: dict[str, Any] = {
            "team": grant.team,
            "subscription": grant.name,
            "view": grant.view,
            "active": grant.active,
            "reason": grant.reason,
            "types": [pattern.written for pattern in grant.filters],
            "durable": grant.durable,
            "agent_only": grant.agent_only,
            "delivery": pacing(grant),
            "ordered": grant.ordered,
            "client": grant.client,
            "streams": [],
            "lag": 0,
            "in_flight": 0,
            "redelivered": 0,
        }
        for durable in durables(grants.site, grants.domains, grant) if grant.active else ():
            info = await consumer_info(session.connection, durable.stream, durable.name)
            if durable.stream not in fact["streams"]:
                fact["streams"].append(durable.stream)
            fact["lag"] += info["num_pending"] + info["num_ack_pending"]
            fact["in_flight"] += info["num_ack_pending"]
            fact["redelivered"] += info["num_redelivered"]
        found.append(fact)
    return found


@app.command("list", epilog="Example:  mesh subscription list --team analytics")
@command
async def list_(
    team: TeamOption = None, context: ContextOption = None, tenant: TenantOption = None, json_: JsonOption = False
) -> None:
    """List subscriptions: of one team, or of all."""
    async with operator_session(context, tenant=tenant, team=team) as session:
        facts = await describe(session, team=session.context.team)
    if json_:
        print_json(facts)
        return
    print_table(
        "Subscriptions",
        ("team", "subscription", "view", "lag", "in flight", "types"),
        (
            (
                fact["team"],
                fact["subscription"],
                fact["view"] or "-",
                fact["lag"],
                fact["in_flight"],
                " ".join(fact["types"]) if fact["active"] else f"inactive: {fact['reason']}",
            )
            for fact in facts
        ),
    )


@app.command("show", epilog="Example:  mesh subscription show contacts --team support")
@command
async def show(
    name: Annotated[str, typer.Argument(help="The subscription's name.")],
    team: TeamOption = None,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Show one subscription: durable, view, types, lag; or why it is inactive."""
    async with operator_session(context, tenant=tenant, team=team) as session:
        session.context.team_address()
        facts = [fact for fact in await describe(session, team=session.context.team) if fact["subscription"] == name]
    if not facts:
        raise NotFound(f"{team} has no subscription {name}", got=name, next="`mesh subscription list` shows them all")
    if json_:
        print_json(facts[0])
        return
    for key, value in facts[0].items():
        text = (", " if key == "delivery" else " ").join(value) if isinstance(value, list) else str(value)
        console.print(f"[cyan]{key:<13}[/]{escape(text)}", soft_wrap=True)
