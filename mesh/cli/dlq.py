"""`mesh dlq`: what handlers could not handle. Look at it, send it back, or throw it away."""

from __future__ import annotations

import os
import secrets
from collections import deque
from contextlib import contextmanager
from errno import EEXIST
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import msgspec
import typer
from rich.markup import escape

from mesh.cli.author import author
from mesh.cli.dlq_pages import BATCH, NOUN, chosen_letters, pages
from mesh.cli.dlq_sending import Sending, outcome_of, send
from mesh.cli.dlq_shown import COLUMNS, list_row, say_missing, say_outcome, say_refused, say_stopped, show_letter
from mesh.cli.events import ContextOption, JsonOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import NO, command, console, fail, print_json, print_table
from mesh.cli.policy.request import ask
from mesh.errors import ConfigError, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(no_args_is_help=True, help="Dead letters: what handlers could not handle.")

DEFAULT_RATE = 100.0  # letters a second: a handler that was down is not flooded as it comes back

TeamFilter = Annotated[str, typer.Option("--team", help="Only this team's.")]
SubscriptionFilter = Annotated[str, typer.Option("--subscription", help="Only this subscription's.")]
BecauseFilter = Annotated[str, typer.Option("--because", help="Only with this reason; * stands for any characters.")]
BecauseOrReasonFilter = Annotated[
    str, typer.Option("--because", "--reason", help="Only with this reason; * stands for any characters.")
]
TypeFilter = Annotated[str, typer.Option("--type", help="Only of these types, as in NATS: * one token, > the rest.")]
SinceFilter = Annotated[str, typer.Option("--since", help="Only from then on: RFC 3339, or 90s, 15m, 24h, 7d ago.")]
UntilFilter = Annotated[str, typer.Option("--until", help="Only before then.")]
IdFilter = Annotated[str, typer.Option("--id", help="Only of the event with this id.")]
SeqFilter = Annotated[list[int] | None, typer.Option("--seq", min=1, help="Only this letter; may be repeated.")]
RunFilter = Annotated[str, typer.Option("--run", help="Only what failed again in this redrive.")]
AllOption = Annotated[bool, typer.Option("--all", help="Really all letters, where no filter is given.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why you do it; kept in the audit trail.")]


@app.command("list", epilog="Examples:  mesh dlq list   |   mesh dlq list --team support --because 'no-*' --since 24h")
@command
async def list_(
    *,
    team: TeamFilter = "",
    subscription: SubscriptionFilter = "",
    because: BecauseOrReasonFilter = "",
    type_: TypeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    id_: IdFilter = "",
    seq: SeqFilter = None,
    run: RunFilter = "",
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="The newest so many; 0: all.")] = 100,
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """List dead letters, oldest first: whose, why, and of which event; never what is in it."""
    chosen = chosen_letters(team, subscription, because, type_, since, until, id_, seq, run)
    found: deque[dict[str, Any]] = deque(maxlen=count or None)
    total = 0
    async with operator_connection(context, tenant=tenant) as (_, connection):
        async for page in pages(connection, "list", {"chosen": chosen}):
            found += page["letters"]
            total += len(page["letters"])
    if json_:
        print_json({"letters": list(found), "total": total})
        return
    print_table("Dead letters", COLUMNS, map(list_row, found), keep=("letter",))
    if total > len(found):
        console.print(f"[dim]the newest {len(found)} of {total}; -n 0 shows all[/]")


@app.command("show", epilog="Example:  mesh dlq show 17")
@command
async def show(
    letter: Annotated[int, typer.Argument(min=1, help="The letter's number, as `mesh dlq list` shows it.")],
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Print one dead letter, whole: each attempt, where the event lies, and the event in the team's view."""
    async with operator_connection(context, tenant=tenant) as (_, connection):
        found = await ask(connection, "show", {"chosen": {"letters": [letter]}}, noun=NOUN)
    if json_:
        print_json(found)
    else:
        show_letter(found)


@app.command("redrive", epilog="Example:  mesh dlq redrive --subscription invoices --since 2h --reason 'API is back'")
@command
async def redrive(
    *,
    team: TeamFilter = "",
    subscription: SubscriptionFilter = "",
    because: BecauseFilter = "",
    type_: TypeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    id_: IdFilter = "",
    seq: SeqFilter = None,
    run: RunFilter = "",
    everything: AllOption = False,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Letters a second.")] = DEFAULT_RATE,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for what becomes of them.")] = 0,
    dry_run: DryRunOption = False,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Send letters back to the subscriptions that buried them: they are handled again, after V1 to V9 as ever.

    Each stays in the dead letters until it was handled, and is another letter where it fails again. Exit 1 where one
    cannot be sent, or where `--wait` saw one fail or ran out.
    """
    chosen = _chosen_for_a_change(
        chosen_letters(team, subscription, because, type_, since, until, id_, seq, run), everything=everything
    )
    new_run = secrets.token_hex(8)
    body = {"chosen": chosen, "run": new_run, "dry_run": dry_run, "author": author(), "reason": reason}
    sending = Sending()
    outcome: dict[str, int] = {}
    failed: MeshError | None = None
    async with operator_connection(context, tenant=tenant) as (_, connection):
        try:
            await send(connection, body, rate, sending)
            if wait and not dry_run:
                outcome = await outcome_of(connection, new_run, sending, wait)
        except MeshError as error:
            failed = error
    refused = sending.refused
    told = {"run": new_run, "dry_run": dry_run, "sent": len(sending.sent), "refused": refused, **outcome}
    if failed is not None:
        if sending.sent and not dry_run and not json_:
            say_stopped(told)
        fail(failed, as_json=json_, beside=told)
    if json_:
        print_json(told)
    else:
        say_refused(refused)
        say_outcome(told)
    if refused or outcome.get("back") or outcome.get("waiting"):
        raise typer.Exit(NO)


@app.command("discard", epilog="Example:  mesh dlq discard --seq 17 --seq 18 --reason 'test data, INC-4711'")
@command
async def discard(
    *,
    team: TeamFilter = "",
    subscription: SubscriptionFilter = "",
    because: BecauseFilter = "",
    type_: TypeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    id_: IdFilter = "",
    seq: SeqFilter = None,
    run: RunFilter = "",
    everything: AllOption = False,
    dry_run: DryRunOption = False,
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Delete letters for good: what they held on the disk is overwritten. One that is being redriven is taken back.

    Exit 1 where one that is asked for by its number is not there.
    """
    chosen = _chosen_for_a_change(
        chosen_letters(team, subscription, because, type_, since, until, id_, seq, run), everything=everything
    )
    if not reason and not dry_run:
        raise ConfigError("say why: what is discarded is gone", expected="--reason TEXT", next="see --help")
    body = {"chosen": chosen, "dry_run": dry_run, "author": author(), "reason": reason, "limit": BATCH}
    discarded, missing = 0, list[int]()
    async with operator_connection(context, tenant=tenant) as (_, connection):
        async for page in pages(connection, "discard", body):
            discarded += page["discarded"]
            missing += page["missing"]
    if json_:
        print_json({"discarded": discarded, "missing": missing, "dry_run": dry_run})
    else:
        say_missing(missing)
        letters = f"{discarded} letter{'' if discarded == 1 else 's'}"
        console.print(f"{letters} would be discarded" if dry_run else f"{letters} discarded")
    if missing:
        raise typer.Exit(NO)


@app.command("export", epilog="Example:  mesh dlq export letters.jsonl --team support --since 7d")
@command
async def export(
    file: Annotated[Path, typer.Argument(help="Where to; it must not be there yet.")],
    *,
    team: TeamFilter = "",
    subscription: SubscriptionFilter = "",
    because: BecauseFilter = "",
    type_: TypeFilter = "",
    since: SinceFilter = "",
    until: UntilFilter = "",
    id_: IdFilter = "",
    seq: SeqFilter = None,
    run: RunFilter = "",
    reason: ReasonOption = "",
    context: ContextOption = None,
    tenant: TenantOption = None,
    json_: JsonOption = False,
) -> None:
    """Write letters whole, a JSON document a line, into a file that only you may read: events are in it.

    The file has its name once all of them are in it; until then they are beside it, in one that ends in `.part`.
    """
    chosen = chosen_letters(team, subscription, because, type_, since, until, id_, seq, run)
    body = {"chosen": chosen, "author": author(), "reason": reason}
    count = 0
    async with operator_connection(context, tenant=tenant) as (_, connection):
        with _new_file(file) as output:
            async for page in pages(connection, "export", body):
                for letter in page["letters"]:
                    output.write(msgspec.json.encode(letter) + b"\n")
                    count += 1
    if json_:
        print_json({"file": str(file), "letters": count})
        return
    letters = f"{count} letter{'' if count == 1 else 's'}"
    console.print(f"{letters} in {escape(str(file))}: events are in it, so keep it as you keep them", soft_wrap=True)


@contextmanager
def _new_file(file: Path) -> Iterator[BinaryIO]:
    """A file to write into, which has its name at the end of the block; after an error there is none."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        if file.exists() or file.is_symlink():
            raise FileExistsError(EEXIST, os.strerror(EEXIST))
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _not_made(file, error) from error
    try:
        with os.fdopen(descriptor, "wb") as output:
            yield output
        try:
            os.link(part, file)  # never over one that somebody made meanwhile, as a rename would
        except OSError as error:
            raise _not_made(file, error) from error
    finally:
        part.unlink()


def _not_made(file: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{file} cannot be made: {error.strerror}", expected="a file that is not there yet", next="name another one"
    )


def _chosen_for_a_change(chosen: dict[str, Any], *, everything: bool) -> dict[str, Any]:
    """A change of all letters has to be meant."""
    if not chosen and not everything:
        raise ConfigError(
            "say which letters are meant",
            expected="a filter such as --subscription or --seq, or --all",
            next="--because chooses by the letters' reason; see --help",
        )
    return chosen
