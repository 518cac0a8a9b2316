"""`mesh policy lint`, `schema` and `explain`: files alone, no mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape

from mesh.cli.output import NO, YES, console, print_json
from mesh.cli.policy.asking import asked, check_view, event_of, nothing_to_ask, publisher, reader
from mesh.cli.policy.explaining import print_explanation
from mesh.cli.policy.options import (
    DEFAULT_POLICIES,
    JsonOption,
    PoliciesOption,
    PolicyCommand,
    PolicyTenantOption,
    loaded,
    now_ms,
    offline,
    tenant_of,
)
from mesh.errors import ConfigError, PolicyError, PolicyErrors
from mesh.policy.documents import PolicySet
from mesh.policy.explain import explain_publish, explain_read
from mesh.policy.lint import warnings
from mesh.policy.model import KINDS
from mesh.policy.sentences import Sentence, sentences
from mesh.policy.trial import plans_of

TRUST_DOMAIN = "mesh.local"  # that of `mesh up`, for conditions that read `principal.id`


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        "lint", cls=PolicyCommand, epilog="Examples:  mesh policy lint   |   mesh policy lint --policies DIR --json"
    )(lint)
    app.command(
        "schema", cls=PolicyCommand, epilog="Examples:  mesh policy schema View   |   mesh policy schema --out schemas"
    )(schema)
    app.command(
        "explain",
        cls=PolicyCommand,
        epilog="Examples:  mesh policy explain --team support --subscribe crm.contact.updated.v1 --event contact.json"
        "   |   mesh policy explain --agent crm-adapter --publish crm.deal.won.v1 --event deal.json --json",
    )(explain)


# --- lint ------------------------------------------------------------------------------------------------------------


@offline
def lint(
    policies: PoliciesOption = DEFAULT_POLICIES, tenant: PolicyTenantOption = None, json_: JsonOption = False
) -> None:
    """Read the policies back, a sentence a rule, with what deserves a look. Exit 1 where they do not load."""
    try:
        held = loaded(policies)
        made = plans_of(held)
    except PolicyErrors as error:
        _print_load_errors(error, as_json=json_)
        raise typer.Exit(NO) from None
    if tenant is not None:
        name = tenant_of(held, tenant)
        held = PolicySet(held.of(name), held.warnings)
        made = {name: made[name]}
    read_back, found = sentences(held, made, now_ms=now_ms()), warnings(held, made, now_ms=now_ms())
    if json_:
        print_json({"sentences": [s.as_dict() for s in read_back], "warnings": [_told(w) for w in found]})
    else:
        _print_lint(read_back, found)


def _told(warning: PolicyError) -> dict[str, Any]:
    details = warning.details
    return {"file": details["file"], "line": details["line"], "message": _bare(warning), "next": warning.next}


def _bare(error: PolicyError) -> str:
    """The message without the place it begins with."""
    return error.message.removeprefix(f"{error.details['file']}:{error.details['line']}: ")


def _print_load_errors(error: PolicyErrors, *, as_json: bool) -> None:
    if as_json:
        print_json({"error": error.as_dict()})
        return
    for one in error.errors:
        console.print(
            f"[bold]{escape(one.details['file'])}:{one.details['line']}[/]  [red]error[/]  {escape(_bare(one))}"
        )
        console.print(f"  [dim]fix  [/]{escape(one.next)}", soft_wrap=True)
    count = len(error.errors)
    console.print(f"\n[bold red]{count} error{'' if count == 1 else 's'}[/]: the policies do not load")


def _print_lint(read_back: list[Sentence], found: list[PolicyError]) -> None:
    file = ""
    for sentence in read_back:
        if sentence.file != file:
            file = sentence.file
            console.print(f"[bold]{escape(file)}[/]")
        console.print(f"  [dim]{sentence.line:>4}[/]  {escape(sentence.says)}", soft_wrap=True)
    if found:
        console.print()
    for warning in found:
        place = f"{warning.details['file']}:{warning.details['line']}"
        console.print(f"[yellow]warning[/]  [bold]{escape(place)}[/]  {escape(_bare(warning))}", soft_wrap=True)
        console.print(f"  [dim]next  [/]{escape(warning.next)}", soft_wrap=True)
    count = len(found)
    console.print(f"\nthe policies load: {len(read_back)} sentences, {count} warning{'' if count == 1 else 's'}")


# --- schema ----------------------------------------------------------------------------------------------------------


@offline
def schema(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}; else the schema of all.")] = None,
    *,
    out: Annotated[Path | None, typer.Option("--out", help="Write each kind's schema into this directory.")] = None,
    json_: JsonOption = False,
) -> None:
    """Print the JSON Schema (2020-12) of a kind, or of all, for editors."""
    from mesh.policy.schema import json_schema, schemas

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"there is no kind {kind}", expected=", ".join(KINDS), got=kind, next="name one of them")
    made = {kind: json_schema(kind)} if kind is not None else schemas()
    if out is None:
        print_json(made[kind] if kind is not None else made)
        return
    written = _write_schemas({kind: json_schema(kind) for kind in ([kind] if kind else KINDS)}, out)
    if kind is None:
        written += _write_schemas({"policy": made}, out)
    if json_:
        print_json({"files": [str(path) for path in written]})
    else:
        console.print("\n".join(escape(str(path)) for path in written))


def _write_schemas(made: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"{name.lower()}.schema.json" for name in made]
        for path, content in zip(paths, made.values(), strict=True):
            path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror}", expected="a directory", next="name another with --out"
        ) from None
    return paths


# --- explain ---------------------------------------------------------------------------------------------------------


@offline
def explain(
    *,
    policies: PoliciesOption = DEFAULT_POLICIES,
    tenant: PolicyTenantOption = None,
    team: Annotated[str | None, typer.Option("--team", help="Who reads; or publishes, with its agent.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Who publishes; or reads, as its team.")] = None,
    publish: Annotated[str | None, typer.Option("--publish", metavar="TYPE", help="The type it publishes.")] = None,
    subscribe: Annotated[str | None, typer.Option("--subscribe", metavar="TYPE", help="The type it reads.")] = None,
    event: Annotated[Path | None, typer.Option("--event", help="A CloudEvent as JSON; - is standard input.")] = None,
    view: Annotated[str | None, typer.Option("--view", help="Where the team's grants give several.")] = None,
    trust_domain: Annotated[str, typer.Option("--trust-domain", help="Of `principal.id`.")] = TRUST_DOMAIN,
    json_: JsonOption = False,
) -> None:
    """Say what the policies make of one event, and why: rules with file and line, conditions, masks. Exit 1 on deny.

    The event is the one the source has, before any mask. One of another type counts as of the type that is asked
    about; read under a type that routes lead to, it is their copy. Tokens and ciphertexts are made with test keys.
    """
    type_ = asked(team, agent, publish, subscribe, view)
    fields = event_of(event, type_)
    answer = nothing_to_ask(policies, publishing=publish is not None)
    if answer is None:
        held = loaded(policies)
        name = tenant_of(held, tenant)
        plans = plans_of(PolicySet(held.of(name)), trust_domain=trust_domain)[name]
        if publish is not None:
            event_ = {**fields, "type": type_}
            answer = explain_publish(held, plans, publisher(plans, team, agent), event_, now_ms=now_ms())
        else:
            who = reader(plans, team, agent)
            check_view(plans, view)
            answer = explain_read(held, plans, who, type_, fields, view=view, now_ms=now_ms())
    if json_:
        print_json(answer.as_dict())
    else:
        print_explanation(answer, team or agent or "", type_, publishing=publish is not None)
    raise typer.Exit(YES if answer.allowed else NO)
