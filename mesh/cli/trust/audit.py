"""`mesh trust audit`: what every identity can do on the live server, and what of it nobody compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from mesh.cli.events import ContextOption, TenantOption
from mesh.cli.operator import operator_connection
from mesh.cli.output import NO, command, console, print_json
from mesh.cli.policy.options import JsonOption, PolicyCommand
from mesh.cli.policy.request import ask
from mesh.control.trust_audit import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = ("publish", "read", "create")
USUAL = (  # `workload_imports`, in words
    "Every agent and team besides publishes its own audit records and reports, reads the policy bundles, certificates,"
    " the trust statement, its own reports and the notices; an agent also asks for its certificates."
)


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        "audit", cls=PolicyCommand, epilog="Examples:  mesh trust audit   |   mesh trust audit --json | jq .flags"
    )(audit)


@command
async def audit(context: ContextOption = None, tenant: TenantOption = None, *, json_: JsonOption = False) -> None:
    """Show what every identity can publish, read and create on the live server, and flag what nobody compiled.

    Exit 0 where the server gives nobody more than the policies in force, 1 where something is flagged. While policies
    are being applied, rights that are about to go are flagged too: ask again when it is done.
    """
    async with operator_connection(context, tenant=tenant) as (_, connection):
        report = unpack(await ask(connection, "audit", {}, noun="trust"))
    if json_:
        print_json(report)
    else:
        _print(report)
    if report["flags"]:
        raise typer.Exit(NO)


def _print(report: dict[str, Any]) -> None:
    shown = [one for one in report["identities"] if one["kind"] != "gone" or one["state"] == "open"]
    for one in shown:
        _print_identity(one)
    if gone := len(report["identities"]) - len(shown):
        console.print(f"[dim]{_number(gone, 'account')} of workloads that the policies do not know: closed[/]")
    console.print(f"[dim]{USUAL}[/]\n", soft_wrap=True)
    for flag in report["flags"]:
        console.print(
            f"[bold red]{flag['code']}[/] {escape(flag['where'])}: {escape(flag['text'])}\n"
            f"  [dim]next      {escape(flag['next'])}[/]",
            soft_wrap=True,
        )
    whole = ", ".join(
        _number(count, what)
        for count, what in (
            (len(report["servers"]), "server"),
            (len(report["identities"]), "account"),
            (report["streams"], "stream"),
            (report["consumers"], "consumer"),
        )
    )
    verdict = (
        f"[bold red]{_number(len(report['flags']), 'thing')} beyond[/] what"
        if report["flags"]
        else "[bold green]nothing beyond[/] what"
    )
    console.print(f"{escape(report['tenant'])}: {verdict} revision {report['revision']} compiles: {whole}")


def _print_identity(one: dict[str, Any]) -> None:
    state = "" if one["state"] == "open" else f" [bold yellow]{one['state']}[/]"
    about = [_number(one["connections"], "connection"), *filter(None, [one["spiffe_id"]])]
    console.print(f"[bold]{one['kind']} {escape(one['identity'])}[/]{state} [dim]{escape(', '.join(about))}[/]")
    for verb in VERBS:
        _print_rights(verb, one[verb])


def _print_rights(verb: str, sentences: Sequence[str]) -> None:
    for index, sentence in enumerate(sentences or ["nothing"]):
        style = "" if sentences else "dim"
        console.print(
            f"  [cyan]{verb if not index else '':<8}[/] [{style or 'default'}]{escape(sentence)}[/]", soft_wrap=True
        )


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
