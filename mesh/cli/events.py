"""`mesh events`: look at stored events, always in some team's view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
import msgspec
import typer
from rich.markup import escape

from mesh.cli.output import command, console, print_json, print_line
from mesh.cli.session import Session, operator_session
from mesh.control.reader import reading, view_filters
from mesh.control.reconcile import now_ms
from mesh.errors import MeshError, NotFound
from mesh.inbound import Admitted, Reading
from mesh.subjects import Pattern

if TYPE_CHECKING:
    from mesh.signing import Received

app = typer.Typer(no_args_is_help=True, help="Look at stored events, always in some team's view.")

ContextOption = Annotated[str | None, typer.Option("--context", help="mesh.json or its directory; else MESH_CONTEXT.")]
TeamOption = Annotated[str | None, typer.Option("--team", help="Whose view; else MESH_TEAM.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Whose mesh, where there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]

SETTLE_S = 2.0  # after the last stored event was due, how long `show` waits for stragglers


@app.command(
    "tail", epilog="Examples:  mesh events tail 'crm.>' --team analytics   |   mesh events tail '>' --count 1 --json"
)
@command
async def tail(
    pattern: Annotated[str, typer.Argument(help="Types, as in NATS: * one token, > one or more.")] = ">",
    *,
    team: TeamOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Stop after so many; 0: go on.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="Begin with what is stored.")] = False,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Print events as they are stored, in the view of a team: what that team would see."""
    async with operator_session(context, tenant=tenant, team=team) as session:
        filters, reading_as = _filters(session, Pattern.parse(pattern)), session.reading(session.context.team or "")
        seen = 0
        async with reading(session.connection, filters, new_only=not everything) as (_, events):
            async for received in events:
                shown = await _look(session, received, reading_as)
                if shown is None:
                    continue
                print_line(shown) if json_ else _show_line(shown)
                seen += 1
                if count and seen >= count:
                    return


@app.command("show", epilog="Example:  mesh events show evt-17 --team support")
@command
async def show(
    id: Annotated[str, typer.Argument(help="The event's id.")],
    team: TeamOption = None,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Print every stored event with this id as a team sees it, and whether it verifies. Reads all that is stored."""
    async with operator_session(context, tenant=tenant, team=team) as session:
        found = []
        needle = id.encode()
        filters, reading_as = _filters(session, Pattern.parse(">")), session.reading(session.context.team or "")
        async with reading(session.connection, filters, new_only=False) as (
            stored,
            events,
        ):
            for _ in range(stored):
                with anyio.move_on_after(SETTLE_S):
                    received = await events.receive()
                    if (
                        needle in received.body
                        and (shown := await _look(session, received, reading_as))
                        and (shown["event"]["id"] == id or not shown["verified"])  # nobody vouches for its id
                    ):
                        found.append(shown)
                    continue
                break
        if not found:
            raise NotFound(
                f"{session.context.team} sees no event {id}",
                expected="the id of a stored event that the team may see",
                got=id,
                next="`mesh events tail --all` lists what it sees",
            )
    if json_:
        print_json(found)
        return
    for shown in found:
        _show_line(shown)
        console.print_json(data=shown["event"])
        facts = {name: value for name, value in shown.items() if name != "event"}
        console.print("\n".join(f"  [dim]{name:<11}[/]{value}" for name, value in facts.items()))


def _filters(session: Session, pattern: Pattern) -> dict[str, list[str]]:
    session.context.team_address()  # says which teams there are, where none was named
    team = session.context.team or ""
    filters = view_filters(session.plans, team, pattern, now_ms=now_ms())
    if not filters:
        raise NotFound(
            f"{team} may read nothing that matches",
            expected="a pattern within its grants",
            got=pattern.written,
            next="`mesh subscription list` shows what each team reads",
        )
    return filters


async def _look(session: Session, received: Received, reading_as: Reading) -> dict[str, Any] | None:
    """What the team sees of one event; None where it may not."""
    place = {"stream": received.stream, "seq": received.sequence, "subject": received.subject}
    try:
        verified = await session.verify(received)
        admitted = await session.admit(verified, reading_as, now_ms=now_ms())
    except MeshError as error:
        return {**place, "verified": False, "code": error.code, "event": {"id": "", "type": ""}}
    if not isinstance(admitted, Admitted):
        return None
    return {
        **place,
        "verified": True,
        "signer": str(admitted.spiffe_id),
        "kid": verified.kid,
        "view": admitted.view,
        "rule": admitted.rule,
        "event": admitted.fields,
    }


def _show_line(shown: dict[str, Any]) -> None:
    """One event on one line; its values are anybody's, so they are neither markup nor control characters here."""
    mark = "[green]verified[/]" if shown["verified"] else f"[red]{shown['code']}[/]"
    event = shown["event"]
    place = f"[dim]{shown['stream']}:{shown['seq']}[/]"
    data = escape(msgspec.json.encode(event.get("data", "")).decode())
    console.print(f"{place} [bold]{event['type']}[/] {event['id']} {mark} {data}", soft_wrap=True)
