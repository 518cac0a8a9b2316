"""The answer of `mesh policy who-can-see`, for machines and for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from mesh.cli.output import console
from mesh.policy.atoms import Atom, in_words
from mesh.policy.coverage import lines_of
from mesh.policy.documents import Document
from mesh.policy.matrix import Cell, Matrix
from mesh.policy.texts import instant_text


def seen_as_dict(
    documents: Sequence[Document], matrix: Matrix, field: str, cells: Sequence[Cell], *, team: str | None
) -> dict[str, Any]:
    """What is said of *field*: who sees it and how, who does not read its types, who can guess it.

    Args:
        documents: The tenant's; they know their lines.
        matrix: Of the types that were asked about.
        field: As asked.
        cells: The answers.
        team: Where only one was asked about.
    """
    lines = lines_of(documents)
    atoms = {cell.reading.atom for cell in cells}
    alike: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        reading = cell.reading
        alike.setdefault((reading.team, cell.words, reading.view, reading.rule, reading.until_ms), []).append(cell)
    unread: dict[tuple[str, str], list[Atom]] = {}
    for reading in matrix.readings:
        if not reading.view and (not atoms or reading.atom in atoms) and team in (None, reading.team):
            unread.setdefault((reading.team, reading.enforced), []).append(reading.atom)
    tags = {tag for cell in cells for tag in cell.tags}
    return {
        "field": field,
        "tenant": matrix.tenant,
        "seen": [_entry(group, matrix, lines) for group in alike.values()],
        "unread": [
            {"team": who, "enforced": how, "types": in_words(types, matrix.atoms)}
            for (who, how), types in unread.items()
        ],
        "guesses": [
            {"team": g.team, "domain": g.domain, "tags": list(g.tags), "rule": g.rule}
            for g in matrix.guesses
            if team in (None, g.team) and not tags.isdisjoint(g.tags)
        ],
    }


def _entry(cells: Sequence[Cell], matrix: Matrix, lines: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """What *cells*, which differ in types and paths alone, have in common."""
    cell, reading = cells[0], cells[0].reading
    file, line = lines.get(reading.rule or "", ("", 0))
    return {
        "team": reading.team,
        "sees": cell.words,
        "action": cell.action,
        "types": in_words((c.reading.atom for c in cells), matrix.atoms),
        "paths": list(dict.fromkeys(c.path for c in cells)),
        "tags": list(dict.fromkeys(tag for c in cells for tag in c.tags)),
        "view": reading.view,
        "rule": reading.rule,
        "file": file,
        "line": line,
        "rows": reading.rows,
        "until": None if reading.until_ms is None else instant_text(reading.until_ms),
    }


def print_seen(answer: dict[str, Any]) -> None:
    """The same for a person: two lines for each team and mask."""
    console.print(f"[bold]who can see {escape(answer['field'])}[/]")
    width = max((len(entry["team"]) for entry in (*answer["seen"], *answer["unread"])), default=0)
    for entry in answer["seen"]:
        fields = "" if entry["paths"] == [answer["field"]] else f"[dim]at[/] {escape(', '.join(entry['paths']))}"
        colour = "bold red" if entry["action"] == "clear" else "bold"
        console.print(f"  [cyan]{escape(entry['team']):<{width}}[/]  [{colour}]{escape(entry['sees'])}[/]  {fields}")
        console.print(
            f"  {'':<{width}}  [dim]of[/] {escape(', '.join(entry['types']))}  [dim]view {escape(entry['view'])}, by"
            f" {escape(_by(entry))}[/]",
            soft_wrap=True,
        )
    for entry in answer["unread"]:
        how = "" if entry["enforced"] == "nats" else " [yellow](agent only: NATS would hand out the copies)[/]"
        team = f"[cyan]{escape(entry['team']):<{width}}[/]"
        console.print(f"  {team}  no read of {escape(', '.join(entry['types']))}{how}", soft_wrap=True)
    for guess in answer["guesses"]:
        console.print(
            f"  [yellow]guess[/] {escape(guess['team'])} reads tokens of the domain {escape(guess['domain'])} and may"
            " publish into it: it can test guesses",
            soft_wrap=True,
        )


def _by(entry: dict[str, Any]) -> str:
    words = [f"{entry['rule']} ({entry['file']}:{entry['line']})"]
    if entry["rows"]:
        words.append("rows")
    if entry["until"]:
        words.append(f"until {entry['until']}")
    return ", ".join(words)
