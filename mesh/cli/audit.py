"""`mesh audit`: who was refused, who saw more than usual, who changed policies; and whether that record is whole."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape

from mesh import audit
from mesh.audit_check import Verification
from mesh.cli.events import ContextOption, JsonOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import NO, command, console, print_json
from mesh.cli.times import moment_ms, shown
from mesh.control.trail import last_sequence, stored_trail
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from mesh.audit import Record
    from mesh.audit_check import Problem

app = typer.Typer(no_args_is_help=True, help="Who was refused, who saw more than usual, who changed the policies.")

SHOWN_PROBLEMS = 50  # on a terminal; --json has them all


@app.command(
    "list",
    epilog="Examples:  mesh audit list --kind denied --since 1h   |   mesh audit list --writer desk -n 0 --json",
)
@command
async def list_(
    kind: Annotated[str | None, typer.Option("--kind", help=f"Only these: {', '.join(audit.KINDS)}.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only stored from then on: RFC 3339, or 90s, 15m, 24h, 7d ago.")
    ] = None,
    writer: Annotated[
        str | None, typer.Option("--writer", help="Only by this agent, team-<team>, or process of either.")
    ] = None,
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="The newest so many; 0: all.")] = 100,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Print audit records, oldest first: ids, rules and the policies' paths, never an event's values."""
    if kind is not None and kind not in audit.KINDS:
        raise ConfigError(f"no audit record is called {kind}", expected=", ".join(audit.KINDS), got=kind)
    begin = shown(moment_ms(since), timespec="milliseconds") if since else ""
    found: deque[Record] = deque(maxlen=count or None)
    unreadable = 0
    name, _, instance = (writer or "").partition(".")
    async with operator_connection(context, tenant=tenant) as (_, connection):
        last = await last_sequence(connection)
        whole = kind or name or begin or not count  # else the last so many messages hold the last so many records
        first = 1 if whole else max(1, last - count + 1)
        async for stored in stored_trail(connection, name=name, since=begin, first=first, last=last):
            try:
                record = audit.read(stored.line)
            except ValueError:
                unreadable += 1
                continue
            if (kind is None or record.kind == kind) and (not instance or record.writer == writer):
                found.append(record)
    if json_:
        print_json({"records": [_fields(record) for record in found], "unreadable": unreadable})
        return
    for record in found:
        _show(record)
    console.print(f"[dim]{len(found)} record{'' if len(found) == 1 else 's'}[/]")
    if unreadable:
        console.print(f"[bold yellow]look at[/] {unreadable} lines cannot be read: `mesh audit verify` says where")


@app.command("verify", epilog="Example:  mesh audit verify --json")
@command
async def verify(context: ContextOption = None, tenant: TenantOption = None, json_: JsonOption = False) -> None:
    """Check every writer's chain from its first record. Exit 0 where all of it holds, 1 where it does not."""
    checking = Verification()
    async with operator_connection(context, tenant=tenant) as (_, connection):
        last = await last_sequence(connection)
        async for stored in stored_trail(connection, last=last):
            checking.add(stored)
        checking.end(last)
    problems = checking.problems()
    if json_:
        print_json({
            "holds": not problems,
            "records": checking.records,
            "writers": checking.writers,
            "lost": checking.lost,
            "problems": problems,
        })  # fmt: skip
    else:
        _report(checking, problems)
    if problems:
        raise typer.Exit(NO)


def _report(checking: Verification, problems: list[Problem]) -> None:
    writers = len(checking.writers)
    whole = f"{checking.records} records by {writers} writer{'' if writers == 1 else 's'}"
    for problem in problems[:SHOWN_PROBLEMS]:
        place = f"{problem.writer} record {problem.seq}" if problem.writer else "the stream"
        console.print(
            f"[bold red]{problem.what}[/] {escape(place)}, message {problem.stream_seq}: {escape(problem.because)}",
            soft_wrap=True,
        )
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"[dim]and {len(problems) - SHOWN_PROBLEMS} more; --json has them all[/]")
    if checking.lost:
        console.print(
            f"[bold yellow]look at[/] writers say that {checking.lost} records found no room and were dropped"
        )
    verdict = "[bold green]holds[/]" if not problems else f"[bold red]does not hold[/] in {len(problems)} places"
    console.print(f"the audit trail {verdict}: {whole}")


def _fields(record: Record) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.structs.asdict(record)
    return fields | {"at": _moment(record.at_ms)}


def _show(record: Record) -> None:
    """One record on one line; its facts are a workload's words, so they are no markup."""
    facts = " ".join(f"[dim]{escape(name)}[/]={escape(_text(value))}" for name, value in record.facts.items())
    console.print(
        f"[dim]{_moment(record.at_ms)}[/] [bold]{escape(record.kind)}[/] [cyan]{escape(record.writer)}[/] {facts}",
        soft_wrap=True,
    )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return "".join(c if c.isprintable() else "�" for c in text)


def _moment(at_ms: int) -> str:
    try:
        return shown(at_ms)
    except (ValueError, OverflowError, OSError):
        return str(at_ms)  # a workload wrote it
