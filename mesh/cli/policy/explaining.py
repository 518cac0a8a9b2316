"""How `mesh policy explain` looks to a person: the decision, then the rules, the masks and the event behind it."""

from __future__ import annotations

import msgspec
from rich.markup import escape
from rich.table import Table

from mesh.cli.output import console
from mesh.policy.explain import Explanation
from mesh.policy.explain_rules import RuleTrace

_COLOURS = {"true": "green", "false": "red"}


def print_explanation(answer: Explanation, who: str, type_: str, *, publishing: bool) -> None:
    """Print *answer*; *who* asked about *type_*."""
    decision = "[bold green]ALLOW[/]" if answer.allowed else "[bold red]DENY[/]"
    by = f": {answer.rule}" if answer.rule else ""
    console.print(f"{decision}  {answer.reason}{by}", soft_wrap=True)
    verb = "publishing" if publishing else "reading"
    view = f" in the view {answer.view}" if answer.view else ""
    facts = f"enforced by {answer.enforced}, revision {answer.revision}, test keys"
    console.print(f"{escape(who)} {verb} {escape(type_)}{view}; {facts}", style="dim", soft_wrap=True)
    if answer.rules:
        console.print("\n[bold]Rules that could have decided[/]")
    elif answer.reason == "no-allow-matched":
        console.print("\nNo allow and no deny is about this.")
    for trace in answer.rules:
        _print_rule(trace)
    if answer.paths:
        console.print()
        _print_paths(answer)
    _print_events(answer)


def _print_rule(trace: RuleTrace) -> None:
    mark = "[green]match[/]" if trace.matched else "[dim]no match[/]"
    place = escape(f"{trace.file}:{trace.line}")
    console.print(f"  {mark}  {trace.effect} [bold]{escape(trace.rule)}[/]  [cyan]{place}[/]", soft_wrap=True)
    console.print(f"      {escape(trace.why)}", soft_wrap=True)
    for part in trace.parts:
        colour = _COLOURS.get(part.result, "yellow")
        indent = " " * (8 + 2 * part.depth)
        console.print(f"{indent}{escape(part.text)}  [{colour}]{part.result}[/]", soft_wrap=True)


def _print_paths(answer: Explanation) -> None:
    table = Table(title="Masks", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("path", "tags", "masks", "chosen"):
        table.add_column(column, style="cyan" if column == "path" else "", overflow="fold")
    for path in answer.paths:
        table.add_row(*(escape(text) for text in (path.path, ", ".join(path.tags), ", ".join(path.masks), path.chosen)))
    console.print(table)


def _print_events(answer: Explanation) -> None:
    if answer.event is not None:
        console.print("\n[bold]The event as it is handed over[/]")
        console.print_json(msgspec.json.encode(answer.event).decode())
    if answer.copies is None or not answer.allowed:
        return
    if not answer.copies:
        console.print("\nNo copies: nobody may read this event.")
    for copy in answer.copies:
        route = f", by the route {copy.route}" if copy.route else ""
        console.print(f"\n[bold]The copy of {escape(copy.type)} in the view {copy.view}[/]{escape(route)}")
        console.print_json(msgspec.json.encode(copy.event).decode())
