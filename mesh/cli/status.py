"""`mesh status`: is the mesh well? Exit 0 if it is, 1 if something needs a look."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from mesh.cli.events import ContextOption, JsonOption, TenantOption
from mesh.cli.output import NO, command, console, print_json, print_table
from mesh.cli.policy.request import ask
from mesh.cli.session import Session, operator_session
from mesh.cli.subscription import describe
from mesh.cli.trust.options import lets_back
from mesh.control.readiness import missing_streams
from mesh.control.reconcile import now_ms
from mesh.errors import MeshError, StaleTrust
from mesh.jetstream.manage import api

app = typer.Typer(add_completion=False)

HEALTH_TIMEOUT_S = 2.0


@app.command("status", epilog="Example:  mesh status --json")
@command
async def status(context: ContextOption = None, tenant: TenantOption = None, json_: JsonOption = False) -> None:
    """Show streams, agents, subscriptions, dead letters and trust at a glance."""
    async with operator_session(context, tenant=tenant) as session:
        report = await _report(session)
    if json_:
        print_json(report)
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(NO)


async def _report(session: Session) -> dict[str, Any]:
    streams = [
        {"stream": info["config"]["name"], "messages": info["state"]["messages"], "bytes": info["state"]["bytes"]}
        for info in (await api(session.connection, "STREAM.LIST"))["streams"]
    ]
    agents = await _agents(session)
    subscriptions = await describe(session, team=None)
    dead = next((stream["messages"] for stream in streams if stream["stream"] == "DLQ"), 0)
    statement = session.trust.keyring.statement
    missing = await missing_streams(session.connection, session.plans)
    problems = [f"stream {name} is missing: another store, or the wrong key" for name in missing]
    problems += [f"agent {agent['agent']}: {agent['state']}" for agent in agents if agent["state"] != "ready"]
    problems += [
        f"agent {agent['agent']} does not push {name}: {target['state']}, {target['because'] or 'no answer yet'}"
        for agent in agents
        for name, target in agent.get("push", {}).items()
        if target["state"] != "running"
    ]
    problems += [
        f"subscription {fact['team']}/{fact['subscription']} is inactive: {fact['reason']}"
        for fact in subscriptions
        if not fact["active"]
    ]
    try:
        session.trust.keyring.check_fresh(now_ms())
    except StaleTrust as error:
        problems.append(str(error))
    problems += await _barred(session)
    return {
        "nats_url": session.context.mesh.nats_url,
        **({"tls": True} if session.context.mesh.tls_ca_file else {}),
        "tenant": session.context.tenant,
        "revision": session.plans.bundle.revision,
        "trust": {"epoch": statement.epoch, "age_s": round((now_ms() - statement.issued_ms) / 1000, 1)}
        if statement
        else None,
        "streams": sorted(streams, key=lambda stream: stream["stream"]),
        "agents": agents,
        "subscriptions": subscriptions,
        "dead_letters": dead,
        "problems": problems,
    }


async def _barred(session: Session) -> list[str]:
    """Who is shut out; or that the control plane, which alone knows, does not say."""
    try:
        said = await ask(session.connection, "list", {}, noun="trust")
    except MeshError as error:
        return [f"who is barred is not known: {error.message}; {error.next}".removesuffix("; ")]
    return [f"barred: {workload}; {lets_back(workload)}" for workload in said["barred"]]


async def _agents(session: Session) -> list[dict[str, Any]]:
    """Ask each agent's health port; `push` is there where the agent has push targets."""
    import aiohttp

    found = []
    timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for name, address in sorted(session.context.mesh.tenants[session.context.tenant].agents.items()):
            push = None
            try:
                async with http.get(f"{address.health_url}/readyz") as response:
                    state = "ready" if response.ok else "not ready"
                    push = (await response.json()).get("push")
            except (aiohttp.ClientError, TimeoutError, ValueError):
                state = "unreachable"
            said = {"agent": name, "url": address.url, "state": state}
            found.append(said if push is None else said | {"push": push})
    return found


def _print(report: dict[str, Any]) -> None:
    trust = report["trust"]
    age = f"trust epoch {trust['epoch']}, {trust['age_s']} s old" if trust else "no trust statement"
    tls = " over TLS" if "tls" in report else ""
    console.print(
        f"[bold]{report['tenant']}[/] on {report['nats_url']}{tls}, policy revision {report['revision']}, {age}\n"
    )
    print_table("Agents", ("agent", "door", "state"), ((a["agent"], a["url"], a["state"]) for a in report["agents"]))
    console.print()
    if pushed := _pushed(report["agents"]):
        print_table("Push", ("agent", "subscription", "target", "state", "last trouble"), pushed)
        console.print()
    print_table(
        "Streams",
        ("stream", "messages", "bytes"),
        ((s["stream"], s["messages"], s["bytes"]) for s in report["streams"]),
    )
    console.print()
    print_table(
        "Subscriptions",
        ("team", "subscription", "view", "lag", "in flight"),
        ((f["team"], f["subscription"], f["view"] or "", f["lag"], f["in_flight"]) for f in report["subscriptions"]),
    )
    console.print(f"\ndead letters: {report['dead_letters']}")
    for problem in report["problems"]:
        console.print(f"[bold yellow]look at[/] {escape(problem)}")


def _pushed(agents: list[dict[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    return [
        (agent["agent"], name, target["target"], target["state"], target["because"])
        for agent in agents
        for name, target in agent.get("push", {}).items()
    ]
