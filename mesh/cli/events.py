"""`mesh events`: look at stored events, always in some team's view; or only whether all of them are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
import msgspec
import typer
from rich.markup import escape

from mesh.cli.output import command, console, print_json, print_line, print_table
from mesh.cli.session import Session, operator_session
from mesh.cli.times import moment_ms
from mesh.control.completeness import Stores, check_source, event_streams, moment_of
from mesh.control.reader import reading, view_filters
from mesh.control.reconcile import now_ms
from mesh.errors import ConfigError, MeshError, NotFound
from mesh.findings import Range
from mesh.inbound import Admitted, Reading
from mesh.subjects import Pattern
from mesh.tracks import FAR_MS

if TYPE_CHECKING:
    from mesh.findings import Finding, Report
    from mesh.signing import Received

app = typer.Typer(no_args_is_help=True, help="Look at stored events, always in some team's view.")

ContextOption = Annotated[str | None, typer.Option("--context", help="mesh.json or its directory; else MESH_CONTEXT.")]
TeamOption = Annotated[str | None, typer.Option("--team", help="Whose view; else MESH_TEAM.")]
_POINT = "RFC 3339, 90s, 15m, 24h, 7d ago, or a message's place, such as EV_local_crm:991"
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Whose mesh, where there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]

FOUND = 3  # exit code: something is wrong with the record of the source
SHOWN_FINDINGS = 50  # on a terminal; --json has them all
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


@app.command(
    "verify",
    epilog="Examples:  mesh events verify --source /crm/contact   |   "
    "mesh events verify --source /crm/contact --from 2h --to EV_local_crm:991 --json",
)
@command
async def verify(
    *,
    source: Annotated[str, typer.Option("--source", help="The events' CloudEvents source.")],
    from_: Annotated[str, typer.Option("--from", help=f"From then on: {_POINT}.")] = "",
    to: Annotated[str, typer.Option("--to", help="Up to then, likewise; else all that is stored.")] = "",
    view: Annotated[str, typer.Option("--view", help="Only copies in this view.")] = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Check that all a source published is stored, in its order, and nothing beside it: signatures, numbers, marks.

    Prints no data of events. Exit 0 where nothing is wrong, 3 where something is; what cannot be shown either way is
    listed. Where numbers lack, everything stored is read, whatever the range.
    """
    async with operator_session(context, tenant=tenant) as session:
        connection, site = session.connection, session.plans.grants(now_ms=now_ms()).site
        asked = Range(
            await _point_ms(session, site, from_) if from_ else 0, await _point_ms(session, site, to) if to else FAR_MS
        )
        stores = Stores(connection, session.verify, session.trust.certificate, session.trust.keyring, site)
        report = await check_source(stores, source, asked, view=view, now_ms=now_ms())
    if json_:
        print_json({"complete": not report.findings, **msgspec.structs.asdict(report)})
    else:
        _show_report(report)
    if report.findings:
        raise typer.Exit(FOUND)


async def _point_ms(session: Session, site: str, text: str) -> int:
    """The moment of a time, or of a message's place in a stream."""
    stream, _, digits = text.rpartition(":")
    if not digits.isdecimal() or (stream and not stream.startswith("EV_")):
        return moment_ms(text)
    if not stream:
        streams = sorted(await event_streams(session.connection, site))
        if len(streams) != 1:
            raise ConfigError(
                "a number alone names no message", expected=f"one of {', '.join(streams)}, `:` and the number", got=text
            )
        stream = streams[0]
    return await moment_of(session.connection, site, stream, int(digits))


def _show_report(report: Report) -> None:
    """For people. What a message says of itself is anybody's word, so it is no markup."""
    print_table(
        f"{report.source}: {report.copies} copies",
        ("view", "epoch", "stored", "void", "numbers", "marked up to", "ended"),
        [
            (
                counted.view,
                counted.epoch,
                counted.stored,
                counted.void,
                f"{counted.first} to {counted.last}",
                counted.marked,
                "yes" if counted.ended else "no",
            )
            for counted in report.counted
        ],
    )
    for finding in report.findings[:SHOWN_FINDINGS]:
        console.print(
            f"[bold red]{finding.what}[/] {escape(_where(finding))}: {escape(finding.because)}", soft_wrap=True
        )
    if len(report.findings) > SHOWN_FINDINGS:
        console.print(f"[dim]and {len(report.findings) - SHOWN_FINDINGS} more; --json has them all[/]")
    for text in report.unproven:
        console.print(f"[bold yellow]not shown[/] {escape(text)}", soft_wrap=True)
    verdict = f"[bold red]{len(report.findings)} findings[/]" if report.findings else "[bold green]complete[/]"
    console.print(f"the record of {escape(report.source)}: {verdict}")


def _where(finding: Finding) -> str:
    place = f" at {finding.stream}:{finding.seq}" if finding.stream else ""
    view = f" in view {finding.view}" if finding.view else ""
    numbers = str(finding.first) if finding.first == finding.last else f"{finding.first} to {finding.last}"
    number = f"number {numbers}" if finding.first else "a message" if finding.stream else "the record"
    epoch = f" of epoch {finding.epoch}" if finding.epoch else ""
    return "".join(c if c.isprintable() else "�" for c in f"{number}{epoch}{view}{place}")


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
