"""How `mesh dlq` shows letters. What they say is a workload's word: neither markup nor control characters here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from rich.markup import escape

from mesh.cli.output import console, errors
from mesh.cli.times import shown

COLUMNS = ("letter", "subscription", "reason", "tries", "type", "event", "buried")
SHOWN_REFUSALS = 20  # on a terminal; --json has them all


def list_row(row: dict[str, Any]) -> tuple[object, ...]:
    """A letter as cells of `COLUMNS`."""
    state = " (under way)" if row["run"] else ""
    again = f", redriven {row['redriven']}x" if row.get("redriven") else ""
    return (
        row["letter"],
        f"{row['team']}/{row['subscription']}",
        f"{_plain(row['reason'])}{again}{state}",
        row.get("attempts", "-"),
        row["type"] or "-",
        _plain(row["id"]) or "-",
        shown(row["at_ms"]),
    )


def show_letter(found: dict[str, Any]) -> None:
    """One letter, whole."""
    record = found["record"] or {}
    facts = {
        "letter": f"{found['letter']} of {found['team']}/{found['subscription']}",
        "buried": shown(found["at_ms"]),
        "reason": found["reason"],
        "class": record.get("error_class"),
        "attempts": record.get("attempts"),
        "first error": _when(record.get("first_ms"), record.get("first_error")),
        "last error": _when(record.get("last_ms"), record.get("last_error")),
        "type": found["type"],
        "lies at": f"{record.get('stream')}:{record.get('sequence')}" if record else None,
        "trace": record.get("traceparent"),
        "correlation": record.get("correlation"),
        "redriven": _redriven(record),
        "under way": f"in run {found['run']}" if found["run"] else None,
    }
    for name, value in facts.items():
        if value:
            console.print(f"[cyan]{name:<13}[/]{escape(_plain(str(value)))}", soft_wrap=True)
    for number, attempt in enumerate(record.get("history", ()), start=1):
        said = _plain(attempt.get("error", "")) or "the same"
        console.print(f"  [dim]{number:>2} {shown(attempt['at_ms'])}[/] {escape(said)}", soft_wrap=True)
    if record.get("event") is None:
        console.print("[bold yellow]look at[/] the event is not in it: nobody vouched for it, so it cannot be redriven")
    else:
        console.print_json(data=record["event"])


def say_refused(refused: list[dict[str, Any]]) -> None:
    """Which letters cannot be redriven, and why."""
    for one in refused[:SHOWN_REFUSALS]:
        console.print(
            f"[bold yellow]not sent[/] letter {one['letter']}: {escape(_plain(one['because']))} [dim]{one['code']}[/]",
            soft_wrap=True,
        )
    if len(refused) > SHOWN_REFUSALS:
        kinds = Counter(one["code"] for one in refused[SHOWN_REFUSALS:])
        console.print("not sent: " + ", ".join(f"{count} more for {code}" for code, count in sorted(kinds.items())))


def say_missing(numbers: list[int]) -> None:
    """Which letters were asked for by number and are not there."""
    for number in numbers[:SHOWN_REFUSALS]:
        console.print(f"[bold yellow]not there[/] letter {number} [dim]not-found[/]", soft_wrap=True)
    if len(numbers) > SHOWN_REFUSALS:
        console.print(f"not there: {len(numbers) - SHOWN_REFUSALS} more")


def say_stopped(told: dict[str, Any]) -> None:
    """What a redrive that ends in an error did before."""
    letters = f"{told['sent']} letter{'' if told['sent'] == 1 else 's'}"
    errors.print(f"{letters} sent back before that, in run {told['run']}", soft_wrap=True)


def say_outcome(told: dict[str, Any]) -> None:
    """What a redrive did."""
    letters = f"{told['sent']} letter{'' if told['sent'] == 1 else 's'}"
    if told["dry_run"]:
        console.print(f"{letters} would be sent")
        return
    console.print(f"{letters} sent back, in run {told['run']}" if told["sent"] else "no letter sent")
    if "handled" in told:
        parts = [f"{told['handled']} handled"]
        parts += [f"[bold yellow]{told['back']} failed again[/]"] if told["back"] else []
        parts += [f"{told['waiting']} not handled yet"] if told["waiting"] else []
        console.print(", ".join(parts))
    elif told["sent"]:
        console.print(f"[dim]`mesh dlq list --run {told['run']}` shows what fails again[/]")


def _when(at_ms: int | None, error: str | None) -> str | None:
    return f"{error} ({shown(at_ms)})" if error and at_ms else error


def _redriven(record: dict[str, Any]) -> str | None:
    if not record.get("redriven"):
        return None
    return f"{record['redriven']} times before; last as letter {record.get('former')}, in run {record.get('redrive')}"


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return "".join(c if c.isprintable() else "�" for c in text)
